"""Holding a model against a reference as a task: both forces of every structure, and what the reference says of it.

structures  one row per structure that both could evaluate, with both energies; says which rows of `atoms` are its own
atoms       F_nc, F_c and the force of the reference

Notes hold the structures that one of them could not evaluate. Errors and correlations are pure functions of these (fdcore/truth.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fdcore.errors import FdcoreError, UsageError
from fdcore.spec import Spec
from fdcore.store.series import Checkpoint, Column, Tables
from fdcore.tasks.base import Job, Note, Parameters, Progress, Record, Rows, Run, Savable

if TYPE_CHECKING:
    from fdcore.records import Structure

# The reference results that came with the files.
LABELS = "labels"


@dataclass(frozen=True)
class TruthParameters(Parameters):
    """reference: "labels" (the energies and forces in the files), or a name of `fdcore.attack.references`."""

    reference: str = LABELS

    def __post_init__(self) -> None:
        if not isinstance(self.reference, str):
            raise UsageError(f"reference is {self.reference!r}; a name is needed.")
        if self.reference != LABELS:
            # Heavy only where a calculator is asked for.
            from fdcore.attack.references import reference

            reference(self.reference)


class TruthTask:
    name = "truth"
    unit = "structure"

    def check(self, spec: Spec) -> None:
        TruthParameters.of(spec)

    def tables(self, spec: Spec, structures: Sequence[Structure]) -> Tables:
        return {
            "structures": {
                "position": Column("<i8"),
                "first_atom": Column("<i8"),
                "n_atoms": Column("<i8"),
                "energy_eV": Column(),
                # NaN where labels have forces but no energy.
                "energy_reference_eV": Column(),
            },
            "atoms": {
                "forces_direct_eV_per_A": Column("<f8", (3,)),
                "forces_conservative_eV_per_A": Column("<f8", (3,)),
                "forces_reference_eV_per_A": Column("<f8", (3,)),
            },
        }

    def run(self, job: Job) -> Run:
        model, structures = job.needs_model(), job.structures
        name = TruthParameters.of(job.spec).reference
        state = {"next": 0, "atoms": 0, "failed": 0} if job.state is None else dict(job.state.values)
        total = len(structures)
        yield Progress(state["next"], total, _text(state["next"], total))
        left = structures[state["next"] :]
        answers = _labels(left) if name == LABELS else _calculated(name, left)
        # One at a time: a reference takes far longer than the model, and what it has said must be kept soon.
        for position, answer in enumerate(answers, start=state["next"]):
            [seen] = model.evaluate_each([structures[position]])
            problem = next((x for x in (answer, seen) if isinstance(x, FdcoreError)), None)
            if problem is not None:
                state["failed"] += 1
                yield Note({"position": position, "error": problem.message, "hint": problem.hint})
            else:
                yield from _rows(position, state["atoms"], seen, answer)
                state["atoms"] += structures[position].n_atoms
            state["next"] = position + 1
            yield Progress(position + 1, total, _text(position + 1, total))
            yield Savable(lambda kept=dict(state): Checkpoint(kept, {}))
        return {
            "compared": total - state["failed"],
            "failed": state["failed"],
            "device": model.device,
            "weights_sha256": model.weights_sha256,
        }


def _labels(structures: Sequence[Structure]) -> Iterator[Any]:
    from fdcore.attack.references import Truth

    for structure in structures:
        forces = structure.labels.get("forces_eV_per_A")
        if forces is None:
            yield UsageError(
                f"{structure.file} (frame {structure.index}) has no reference forces.",
                "Bring an extended xyz with forces, or name a reference.",
            )
        else:
            energy = structure.labels.get("energy_eV", float("nan"))
            yield Truth(float(energy), forces)  # pyright: ignore[reportArgumentType]


def _calculated(name: str, structures: Sequence[Structure]) -> Iterator[Any]:
    from fdcore.attack.references import reference, truths

    return truths(reference(name), structures)


def _rows(position: int, first_atom: int, seen: Any, truth: Any) -> Iterator[Record]:
    # Atoms first: a row of `structures` that can be read promises that its atoms can be, too.
    yield Rows(
        "atoms",
        {
            "forces_direct_eV_per_A": seen.forces_direct,
            "forces_conservative_eV_per_A": seen.forces_conservative,
            "forces_reference_eV_per_A": truth.forces_reference,
        },
    )
    yield Rows(
        "structures",
        {
            "position": [position],
            "first_atom": [first_atom],
            "n_atoms": [len(seen.forces_direct)],
            "energy_eV": [seen.energy],
            "energy_reference_eV": [truth.energy],
        },
    )


def _text(done: int, total: int) -> str:
    return f"compared {done:,} of {total:,} structure{'' if total == 1 else 's'}"
