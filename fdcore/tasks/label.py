"""Labelling structures by a reference, as a task: energy and forces of each.

structures  one row per structure that has a label; says which rows of `atoms` are its own, when it was made and how long it took
atoms       the force of the reference

Notes hold what the reference decided for a structure, and the structures that it failed on, with the reason: a failure is never a number.
`read` makes a LabelledSet of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fdcore.errors import ComputeError, FdcoreError, UsageError
from fdcore.spec import Spec
from fdcore.store.series import Column, Tables, read_notes, read_table
from fdcore.tasks.base import Job, Note, Parameters, Record, Rows, Run
from fdcore.tasks.one_by_one import one_by_one

if TYPE_CHECKING:
    from fdcore.labels import LabelledSet
    from fdcore.records import Structure


@dataclass(frozen=True)
class LabelParameters(Parameters):
    """reference: a name of `fdcore.reference`; settings: of that reference, where they differ from its defaults."""

    reference: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.reference, str) or not self.reference:
            raise UsageError(f"reference is {self.reference!r}; a name is needed.", "Name chgnet, gfn1, gfn2 or gpaw.")
        if not isinstance(self.settings, Mapping):
            raise UsageError(f"settings are {self.settings!r}; names and values are needed.")
        # Heavy only where a calculator is asked for.
        from fdcore.reference import reference

        reference(self.reference, self.settings)


class LabelTask:
    name = "label"
    unit = "structure"

    def check(self, spec: Spec) -> None:
        LabelParameters.of(spec)

    def tables(self, spec: Spec, structures: Sequence[Structure]) -> Tables:
        return {
            "structures": {
                "position": Column("<i8"),
                "first_atom": Column("<i8"),
                "n_atoms": Column("<i8"),
                "energy_reference_eV": Column(),
                # Seconds since 1970, and seconds that it took.
                "made_at": Column(),
                "seconds": Column(),
            },
            "atoms": {"forces_reference_eV_per_A": Column("<f8", (3,))},
        }

    def run(self, job: Job) -> Run:
        from fdcore.reference import reference, truths

        parameters: LabelParameters = LabelParameters.of(job.spec)
        asked = reference(parameters.reference, parameters.settings)
        clock = [time.perf_counter()]

        def recorded(position: int, first_atom: int, answer: Any) -> Sequence[Record] | FdcoreError:
            clock.append(time.perf_counter())
            if isinstance(answer, FdcoreError):
                return answer
            if len(answer.forces_reference) != job.structures[position].n_atoms:
                return ComputeError(
                    f"{asked.title} gave forces for another number of atoms.", "Leave it without a label."
                )
            return list(_rows(position, first_atom, answer, clock[-1] - clock[-2]))

        failed = yield from one_by_one(job, lambda left: truths(asked, left), recorded, "labelled")
        return {
            "labelled": len(job.structures) - failed,
            "failed": failed,
            "reference": asked.id,
            "version": asked.version,
            "settings": asked.settings_used,
        }


def _rows(position: int, first_atom: int, answer: Any, seconds: float) -> Iterator[Record]:
    if answer.details:
        yield Note({"position": position, "details": dict(answer.details)})
    # Atoms first: a row of `structures` that can be read promises that its atoms can be, too.
    yield Rows("atoms", {"forces_reference_eV_per_A": answer.forces_reference})
    yield Rows(
        "structures",
        {
            "position": [position],
            "first_atom": [first_atom],
            "n_atoms": [len(answer.forces_reference)],
            "energy_reference_eV": [answer.energy],
            "made_at": [time.time()],
            "seconds": [seconds],
        },
    )


def read(folder: Path | None, spec: Spec, structures: Sequence[Structure]) -> LabelledSet:
    """The structures of a run with what an attempt's folder holds so far: a label, the reason why there is none, or None where the run has
    not come to them."""
    from fdcore.labels import Label, Labelled, LabelledSet, Provenance
    from fdcore.reference import REFERENCES

    empty = LabelledSet(tuple(Labelled(s) for s in structures))
    if folder is None:
        return empty
    name, settings = spec.parameters["reference"], spec.parameters.get("settings", {})
    known = REFERENCES.get(name)
    settings = {**(known.settings_used if known else {}), **settings}
    rows, atoms = read_table(folder, "structures"), read_table(folder, "atoms")
    notes = list(read_notes(folder))
    details = {n["position"]: n["details"] for n in notes if "details" in n}
    found: dict[int, Label | FdcoreError] = {
        n["position"]: ComputeError(n["error"], n["hint"]) for n in notes if "error" in n
    }
    for k, position in enumerate(map(int, rows.get("position", ()))):
        part = slice(int(rows["first_atom"][k]), int(rows["first_atom"][k] + rows["n_atoms"][k]))
        forces = atoms["forces_reference_eV_per_A"][part]
        if len(forces) < rows["n_atoms"][k]:
            break
        made = datetime.fromtimestamp(float(rows["made_at"][k]), UTC).isoformat(timespec="seconds")
        told = Provenance(name, spec.versions.get(name, ""), settings, details.get(position, {}), made)
        found[position] = Label(float(np.float64(rows["energy_reference_eV"][k])), forces, told)
    return empty.with_labels(found)
