"""One chunk of structures to the rows of the table: sorted by size into batches that fit, evaluated, judged, a sample checked.

How a chunk is divided depends on nothing but its structures and the settings, so that whoever scores it, and however often it was begun, the
numbers are the same to the last bit on a CPU.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fdcore.distribution import ReferenceDistribution, reference_distribution
from fdcore.errors import ComputeError, FdcoreError
from fdcore.records import Evaluation, Failure, ModelCard, Structure
from fdcore.screening import rows
from fdcore.screening.rows import Row
from fdcore.structures import with_charge_spin

if TYPE_CHECKING:
    from fdcore.models.base import Model, Prepared

# A structure during whose evaluation the process ended so often is not tried again.
DEATHS = 2
# A chunk that was taken so often is scored one structure at a time, so that the one that ends the process is known.
CAREFUL_FROM = 4


@dataclass(frozen=True)
class How:
    """check_share: the share of structures that are scored a second time, alone; charge (e), spin: where a file is silent."""

    check_share: float = 0.01
    charge: int | None = None
    spin: int | None = None


def score(
    model: Model,
    items: Sequence[Structure | Failure],
    how: How,
    watch: Watch | None = None,
    judges: Executor | None = None,
    ahead: Executor | None = None,
) -> Generator[int, None, list[Row]]:
    """Yields how many of the items are done, returns their rows in the order given. `watch`: one structure at a time, each written down
    before it is begun. `judges`: processes that make the rows while the model goes on (a GPU evaluates ten structures while one is judged).
    `ahead`: a thread that makes the graphs of the next batch while the model works on the present one; not with a `watch`, which must know
    whose turn it is."""
    out: list[Row | None] = [None] * len(items)
    structures: dict[int, Structure] = {}
    for k, item in enumerate(items):
        if isinstance(item, Failure):
            out[k] = rows.unread(item)
        elif watch is not None and watch.deadly(k):
            out[k] = rows.refused(item, *ENDED)
        else:
            structures[k] = with_charge_spin(item, how.charge, how.spin)
    reference = reference_distribution(model.card.id)
    coming: dict[int, Future[Row]] = {}
    done = len(items) - len(structures)
    yield done
    groups = _groups(model, structures, 1 if watch is not None else None)
    for group, batch in _prepared(model, structures, groups, watch, ahead):
        found = answers(model, batch)
        try:
            for k, answer in zip(group, found, strict=True):
                alone = _alone_difference(model, structures[k], answer, how)
                if judges is None:
                    out[k] = _row(structures[k], answer, model.card, reference, alone)
                else:
                    coming[k] = judges.submit(_row, structures[k], answer, model.card, reference, alone)
                done += 1
            yield done
        except GeneratorExit:
            # Ended by order: no structure is to blame.
            if watch is not None:
                watch.over()
            raise
    for k, row in coming.items():
        out[k] = row.result()
    if watch is not None:
        watch.over()
    return [row for row in out if row is not None]


def _groups(model: Model, structures: Mapping[int, Structure], most: int | None) -> Iterator[list[int]]:
    """Structures of about one size together, as many as a batch of this model holds, or `most`."""
    edges = {k: model.edges(structure) for k, structure in structures.items()}
    full = model.full_batch_edges()
    group: list[int] = []
    total = 0.0
    for k in sorted(structures, key=lambda k: (edges[k], k)):
        if group and (total + edges[k] > full or len(group) == most):
            yield group
            group, total = [], 0.0
        group.append(k)
        total += edges[k]
    if group:
        yield group


def _prepared(
    model: Model,
    structures: Mapping[int, Structure],
    groups: Iterator[list[int]],
    watch: Watch | None,
    ahead: Executor | None,
) -> Iterator[tuple[list[int], Prepared]]:
    """Each group with its batch, ready to be evaluated."""
    if ahead is None or watch is not None:
        for group in groups:
            if watch is not None:
                watch.begins(group[0])
            yield group, model.prepare([structures[k] for k in group])
        return
    coming: tuple[list[int], Future[Prepared]] | None = None
    for group in groups:
        before, coming = coming, (group, ahead.submit(model.prepare, [structures[k] for k in group]))
        if before is not None:
            yield before[0], before[1].result()
    if coming is not None:
        yield coming[0], coming[1].result()


def answers(model: Model, batch: Prepared) -> list[Evaluation | FdcoreError]:
    """One answer for each. What a backend throws that nobody foresaw is found by asking alone, and is the answer for that structure."""
    try:
        return model.evaluate_prepared(batch)
    except Exception as error:
        if len(batch.checked) > 1:
            return [answer for s in batch.checked for answer in _alone(model, s)]
        return [
            ComputeError(
                f"{model.card.id} ended in an error that was not foreseen ({type(error).__name__}: {str(error)[:200]}).",
                "Look at the structure; score it alone with `fdcore score`.",
            )
        ]


def _alone(model: Model, structure: Structure | FdcoreError) -> list[Evaluation | FdcoreError]:
    return [structure] if isinstance(structure, FdcoreError) else answers(model, model.prepare([structure]))


def _alone_difference(model: Model, structure: Structure, answer: Evaluation | FdcoreError, how: How) -> float | None:
    """How far U_Delta moves when the structure is scored again, alone; None where it is not of the sample."""
    if isinstance(answer, FdcoreError) or not sampled(structure, how.check_share):
        return None
    (again,) = _alone(model, structure)
    return None if isinstance(again, FdcoreError) else abs(again.force_delta - answer.force_delta)


def _row(
    structure: Structure,
    answer: Evaluation | FdcoreError,
    card: ModelCard,
    reference: ReferenceDistribution | None,
    alone_difference: float | None,
) -> Row:
    if isinstance(answer, FdcoreError):
        return rows.refused(structure, answer.message, answer.hint)
    row = rows.scored(structure, answer, card, reference)
    row["alone_difference_eV_per_A"] = alone_difference
    return row


def sampled(structure: Structure, share: float) -> bool:
    """Whether this structure is of the sample: decided by its content, so by nobody's order."""
    return int(structure.content_id[:8], 16) < share * 2**32


ENDED = (
    "The process that evaluated this structure ended, twice.",
    "Look at the structure; score it alone with `fdcore score` to see what happens.",
)


class Watch:
    """Which structure of a chunk was being evaluated when the process ended; a file that outlives it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._deaths: dict[int, int] = {}
        if file.is_file():
            for line in file.read_text().splitlines():
                place = int(line)
                self._deaths[place] = self._deaths.get(place, 0) + 1

    def deadly(self, place: int) -> bool:
        return self._deaths.get(place, 0) >= DEATHS

    def begins(self, place: int) -> None:
        """What was begun before has survived: only earlier deaths and this one stay written."""
        self._write({**self._deaths, place: self._deaths.get(place, 0) + 1})

    def over(self) -> None:
        self._write(self._deaths)

    def _write(self, deaths: Mapping[int, int]) -> None:
        text = "".join(f"{place}\n" * count for place, count in deaths.items())
        new = self._file.with_suffix(".new")
        new.write_text(text)
        new.replace(self._file)
