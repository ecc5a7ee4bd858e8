"""Scoring as a task: every structure evaluated once, both forces kept; verdicts are pure functions of what is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fdcore.errors import FdcoreError
from fdcore.records import Evaluation, Failure, Structure
from fdcore.spec import Spec
from fdcore.store.series import Checkpoint, Column, Tables, read_notes, read_table
from fdcore.tasks.base import Job, Note, Parameters, Progress, Record, Rows, Run, Savable

if TYPE_CHECKING:
    from fdcore.models.base import Model

NAN = float("nan")


@dataclass(frozen=True)
class ScoreParameters(Parameters):
    """Scoring has no parameters of its own: charge and spin belong to the structures."""


class ScoreTask:
    name = "score"
    unit = "structure"

    def check(self, spec: Spec) -> None:
        ScoreParameters.of(spec)

    def tables(self, spec: Spec, structures: Sequence[Structure]) -> Tables:
        """`structures` has one row per evaluated structure and says which rows of `atoms` are its own."""
        return {
            "structures": {
                "position": Column("<i8"),
                "first_atom": Column("<i8"),
                "n_atoms": Column("<i8"),
                "energy_eV": Column(),
                # NaN stands for "the model has no neighbour cap" and "no confidence head".
                "graph_tie_A": Column(),
            },
            "atoms": {
                "forces_direct_eV_per_A": Column("<f8", (3,)),
                "forces_conservative_eV_per_A": Column("<f8", (3,)),
                "confidence_eV_per_A": Column(),
            },
        }

    def run(self, job: Job) -> Run:
        model, structures = job.needs_model(), job.structures
        state = {"next": 0, "atoms": 0, "failed": 0} if job.state is None else dict(job.state.values)
        total = len(structures)
        yield Progress(state["next"], total, _text(state["next"], total))
        for position, result in _evaluated(model, structures, state["next"]):
            if isinstance(result, FdcoreError):
                state["failed"] += 1
                yield Note({"position": position, "error": result.message, "hint": result.hint})
            else:
                yield from _rows(position, state["atoms"], result)
                state["atoms"] += len(result.forces_direct)
            state["next"] = position + 1
            yield Progress(position + 1, total, _text(position + 1, total))
            yield Savable(lambda kept=dict(state): Checkpoint(kept, {}))
        return {
            "scored": total - state["failed"],
            "failed": state["failed"],
            "device": model.device,
            "weights_sha256": model.weights_sha256,
        }


def _evaluated(
    model: Model, structures: Sequence[Structure], first: int
) -> Iterator[tuple[int, Evaluation | FdcoreError]]:
    return enumerate(model.evaluate_each(structures[first:]), start=first)


def _rows(position: int, first_atom: int, evaluation: Evaluation) -> Iterator[Record]:
    n = len(evaluation.forces_direct)
    confidence = evaluation.confidence
    # Atoms first: a row of `structures` that can be read promises that its atoms can be, too.
    yield Rows(
        "atoms",
        {
            "forces_direct_eV_per_A": evaluation.forces_direct,
            "forces_conservative_eV_per_A": evaluation.forces_conservative,
            "confidence_eV_per_A": np.full(n, NAN) if confidence is None else confidence,
        },
    )
    yield Rows(
        "structures",
        {
            "position": [position],
            "first_atom": [first_atom],
            "n_atoms": [n],
            "energy_eV": [evaluation.energy],
            "graph_tie_A": [NAN if evaluation.graph_tie_A is None else evaluation.graph_tie_A],
        },
    )


def _text(done: int, total: int) -> str:
    return f"scored {done:,} of {total:,} structure{'' if total == 1 else 's'}"


# ---- reading what was recorded -------------------------------------------------------------------------------------


def evaluations(
    rows: Mapping[str, NDArray[Any]], atoms: Mapping[str, NDArray[Any]]
) -> Iterator[tuple[int, Evaluation]]:
    """(position among the inputs, Evaluation) from the two tables, in the order of recording."""
    if not rows or not atoms:
        return
    here = len(atoms["confidence_eV_per_A"])
    for k, position in enumerate(rows["position"]):
        first, n = int(rows["first_atom"][k]), int(rows["n_atoms"][k])
        if first + n > here:
            return
        part = slice(first, first + n)
        confidence, tie = atoms["confidence_eV_per_A"][part], float(rows["graph_tie_A"][k])
        yield (
            int(position),
            Evaluation(
                energy=float(rows["energy_eV"][k]),
                forces_direct=atoms["forces_direct_eV_per_A"][part],
                forces_conservative=atoms["forces_conservative_eV_per_A"][part],
                confidence=None if np.isnan(confidence).all() else confidence,
                graph_tie_A=None if np.isnan(tie) else tie,
            ),
        )


def failures(notes: Iterator[Mapping[str, Any]], structures: Sequence[Structure]) -> Iterator[Failure]:
    """Structures that the model could not evaluate, with the reason."""
    for note in notes:
        structure = structures[note["position"]]
        yield Failure(file=structure.file, error=note["error"], hint=note["hint"], index=structure.index)


def read(folder: Path, structures: Sequence[Structure]) -> tuple[list[tuple[Structure, Evaluation]], list[Failure]]:
    """What an attempt's folder holds so far: evaluated structures in order, and failures."""
    rows = read_table(folder, "structures")
    pairs = [(structures[k], e) for k, e in evaluations(rows, read_table(folder, "atoms"))]
    return pairs, list(failures(read_notes(folder), structures))
