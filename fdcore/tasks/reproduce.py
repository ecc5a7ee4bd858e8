"""The paper's figures and tables as one run: its parts (fdcore/reproduce/protocols.py) are runs of other tasks, one after the other.

parts  one row per part that is complete: its place among the parts, how many structures it worked on, and how long it took

A part that is complete is a product, a folder of its name that is read like any run of its task; a part that could not be done is a note, and so
is one that needs its result. What the parts say is a pure function of them (fdcore/reproduction.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fdcore.errors import ComputeError, FdcoreError, UsageError
from fdcore.reproduce.protocols import Part, Source, effort_of, parts
from fdcore.reproduce.settings import Reproduction
from fdcore.spec import ModelChoice, Spec
from fdcore.store.series import Checkpoint, Column, Tables, read_table
from fdcore.tasks import task
from fdcore.tasks.base import Job, Note, Parameters, Product, Progress, Record, Rows, Run, Savable
from fdcore.tasks.md import MdParameters
from fdcore.tasks.nested import RECORD, Kept, write_record

if TYPE_CHECKING:
    from fdcore.records import Structure

# What stands between the name of a part and that of a product of its own.
OWN = "--"


@dataclass(frozen=True)
class ReproduceParameters(Parameters, Reproduction):
    """As `Reproduction`."""


class ReproduceTask:
    name = "reproduce"
    unit = "second of one core, roughly"

    def check(self, spec: Spec) -> None:
        parameters: ReproduceParameters = ReproduceParameters.of(spec)
        if len(parameters.names) != spec.n_structures:
            raise UsageError(f"{len(parameters.names)} names are given for {spec.n_structures} structures.")
        effort_of(parameters)
        # Heavy only where a calculator is asked for.
        from fdcore.reference import reference

        for name in set(parameters.references) - {""}:
            reference(name)

    def tables(self, spec: Spec, structures: Sequence[Structure]) -> Tables:
        return {"parts": {"part": Column("<i4"), "structures": Column("<i8"), "seconds": Column()}}

    def run(self, job: Job) -> Run:
        whole = _Whole(job)
        yield from whole.run()
        return whole.summary()


def spec_of(whole: Spec, part: Part, n_structures: int, climbs: Sequence[int] | None) -> Spec:
    """What a part is asked; `climbs` as of the task `validate`."""
    parameters = dict(part.parameters)
    if part.task == "validate" and climbs is not None:
        parameters["climbs"] = list(climbs)
    assert whole.model is not None
    choice = None if not part.model else ModelChoice(part.model, whole.model.dtype, whole.model.device)
    return Spec(part.task, choice, "", n_structures, parameters, whole.seed, whole.versions)


def inputs_of(
    asked: Sequence[Part], part: Part, spec: Spec, structures: Sequence[Structure], kept: Callable[[str], Path]
) -> tuple[tuple[Structure, ...], tuple[int, ...]]:
    """What a part works on, and of each structure which other it is like (its climb, its run, its system).

    kept : from the name of an earlier part to its folder. ComputeError where that part has left nothing.
    """
    source = part.source
    if source.kind == "given":
        return tuple(structures[p] for p in source.places), source.places
    if source.kind == "displaced":
        return _displaced(spec, source, structures)
    earlier = next(p for p in asked if p.name == source.part)
    folder = kept(source.part)
    if not folder.is_dir():
        raise ComputeError(f"{part.name} needs {source.part}, which could not be done.", "See why, and repeat it.")
    found = {"climbed": _climbed, "frames": _frames, "labelled": _labelled}[source.kind](
        asked, earlier, spec, structures, kept, folder / RECORD
    )
    if not found[0]:
        raise ComputeError(f"{source.part} has left no structure for {part.name}.", "See how it ended.")
    return found


def _displaced(spec: Spec, source: Source, structures: Sequence[Structure]) -> tuple[Any, Any]:
    from fdcore.stability.ladder import ladder

    effort = effort_of(ReproduceParameters.of(spec))
    rungs = ladder([structures[p] for p in source.places], effort.sigmas, effort.copies, spec.seed)
    out, groups = [], []
    at_rest: set[int] = set()
    for index, rung in enumerate(rungs):
        # A structure that is not displaced is there once.
        if rung.sigma_A == 0 and rung.parent in at_rest:
            continue
        if rung.sigma_A == 0:
            at_rest.add(rung.parent)
        out.append(replace(rung.structure, index=index))
        groups.append(source.places[rung.parent])
    return tuple(out), tuple(groups)


def _climbed(asked: Any, earlier: Part, spec: Spec, structures: Any, kept: Any, folder: Path) -> tuple[Any, Any]:
    """Structures on the way of an attack, evenly over what was visited within the guards."""
    steps, atoms = read_table(folder, "steps"), read_table(folder, "atoms")
    rows = np.flatnonzero(steps["allowed"] > 0) if steps else np.zeros(0, int)
    rows = _evenly(rows, int(earlier.parameters["count"]))
    parent = structures[earlier.source.places[0]]
    out = []
    for row in rows:
        part = slice(int(steps["first_atom"][row]), int(steps["first_atom"][row] + steps["n_atoms"][row]))
        out.append(
            replace(parent, positions=atoms["position_A"][part], cell=steps["cell_A"][row], labels={}, index=int(row))
        )
    return tuple(out), tuple(int(steps["start"][row]) for row in rows)


def _frames(asked: Any, earlier: Part, spec: Spec, structures: Any, kept: Any, folder: Path) -> tuple[Any, Any]:
    """Frames of the last leg of a simulation."""
    frames, atoms = read_table(folder, "frames"), read_table(folder, "atoms")
    if not frames:
        return (), ()
    parameters = MdParameters(**earlier.parameters)
    last = 1 if parameters.equilibrate_steps else 0
    parent = structures[earlier.source.places[0]]
    out, groups = [], []
    for row in np.flatnonzero(frames["leg"] == last):
        part = slice(int(frames["first_atom"][row]), int(frames["first_atom"][row] + frames["n_atoms"][row]))
        out.append(replace(parent, positions=atoms["position_A"][part], labels={}, index=int(row)))
        groups.append(int(frames["system"][row]))
    return tuple(out), tuple(groups)


def _labelled(asked: Any, earlier: Part, spec: Spec, structures: Any, kept: Any, folder: Path) -> tuple[Any, Any]:
    """The structures that a reference has labelled, with their labels."""
    from fdcore.labels import structure_with
    from fdcore.tasks.label import read

    given, groups = inputs_of(asked, earlier, spec, structures, kept)
    known = read(folder, spec_of(spec, earlier, len(given), None), given)
    place = {id(s): g for s, g in zip(given, groups, strict=True)}
    labelled = [(structure_with(s, label), place[id(s)]) for s, label in known.labelled]
    return tuple(s for s, _ in labelled), tuple(g for _, g in labelled)


def _evenly(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of them, the first and the last among them."""
    if len(rows) <= count:
        return rows
    return rows[np.unique(np.linspace(0, len(rows) - 1, max(1, count)).round().astype(int))]


@dataclass(frozen=True)
class _PartJob(Job):
    """A part's own products are products of the whole, under longer names."""

    part: str = field(default="", kw_only=True)

    def kept(self, product: str) -> Path:
        return super().kept(f"{self.part}{OWN}{product}")


class _Whole:
    """One attempt: which part it is at, and what has become of the others."""

    def __init__(self, job: Job) -> None:
        self.job, self.first = job, job.needs_model()
        self.parts = parts(ReproduceParameters.of(job.spec), job.structures).parts
        values: Mapping[str, Any] = {} if job.state is None else job.state.values
        self.at = int(values.get("at", 0))
        self.failed: list[str] = list(values.get("failed", ()))
        self.seconds = float(values.get("seconds", 0.0))
        self._notes: list[Mapping[str, Any]] = list(values.get("notes", ()))
        self._own: Checkpoint | None = None
        if job.state is not None and values.get("own") is not None:
            self._own = Checkpoint(values["own"], job.state.arrays)
        self._loaded: dict[str, Any] = {}
        # Of the part that it is at: how much of it is done.
        self._share = float(values.get("share", 0.0))

    def run(self) -> Iterator[Record]:
        yield self._progress("beginning")
        while self.at < len(self.parts):
            part = self.parts[self.at]
            try:
                yield from self._part(part)
            except FdcoreError as error:
                self.failed.append(part.name)
                yield Note({"part": part.name, "error": error.message, "hint": error.hint})
            self.at, self._own, self._notes, self.seconds, self._share = self.at + 1, None, [], 0.0, 0.0
            yield self._progress(f"{part.name}: done")
            yield Savable(lambda: self._save(None))

    def _part(self, part: Part) -> Iterator[Record]:
        spec, structures = self.job.spec, self.job.structures
        given, groups = inputs_of(self.parts, part, spec, structures, self.job.kept)
        own = spec_of(spec, part, len(given), groups)
        kind = task(part.task)
        kind.check(own)
        model = self._model(part.model) if part.model else None
        kept = Kept.of(self._own)
        state = None if self._own is None else Checkpoint(self._own.values, kept.others)
        job = _PartJob(own, given, model, state, self._model, self.job.products, part=part.name)
        run, clock = kind.run(job), time.perf_counter()
        while True:
            try:
                record = next(run)
            except StopIteration as end:
                result = dict(end.value or {})
                break
            now = time.perf_counter()
            self.seconds, clock = self.seconds + now - clock, now
            match record:
                case Rows():
                    kept.add(record)
                case Note():
                    self._notes.append(dict(record.values))
                case Product():
                    yield Product(f"{part.name}{OWN}{record.name}", record.write)
                case Progress():
                    self._share = max(self._share, record.done / record.total if record.total else 0.0)
                    yield self._progress(f"{part.name}: {record.text}")
                case Savable():
                    yield Savable(lambda take=record.take: self._save(kept.with_state(take())))
            # What others did while this waited is not its time.
            clock = time.perf_counter()
        self.seconds += time.perf_counter() - clock
        tables, notes = kind.tables(own, given), list(self._notes)
        yield Product(part.name, lambda folder: write_record(folder, own, tables, kept, notes, result))
        yield Rows("parts", {"part": [self.at], "structures": [len(given)], "seconds": [self.seconds]})

    def _model(self, name: str) -> Any:
        """Loaded once; of the others only the last is kept."""
        if name == self.first.card.id:
            return self.first
        if name not in self._loaded:
            self._loaded = {name: self.job.load(name)}
        return self._loaded[name]

    def _progress(self, text: str) -> Progress:
        # Each end is the sum of what was there and the whole of the part, to the last bit: progress never goes back.
        ends = [0.0, *accumulate(p.weight for p in self.parts)]
        here = self.parts[self.at].weight * self._share if self.at < len(self.parts) else 0.0
        return Progress(ends[self.at] + here, ends[-1], text)

    def _save(self, own: Checkpoint | None) -> Checkpoint:
        values: dict[str, Any] = {"at": self.at, "failed": list(self.failed)}
        if own is None:
            return Checkpoint(values, {})
        values |= {
            "seconds": self.seconds,
            "share": self._share,
            "notes": list(self._notes),
            "own": dict(own.values),
        }
        return Checkpoint(values, own.arrays)

    def summary(self) -> dict[str, Any]:
        return {
            "parts": len(self.parts),
            "failed": len(self.failed),
            "device": self.first.device,
            "weights_sha256": self.first.weights_sha256,
        }
