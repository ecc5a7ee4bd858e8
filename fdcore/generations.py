"""What a recorded loop says so far: what each generation found, how each training went, and whether the drift fell. Pure functions of
what the task `generations` keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fdcore import drifts, finetuning
from fdcore.drifts import Measured
from fdcore.finetuning import Trained
from fdcore.labels import Label, Provenance, structure_with
from fdcore.records import Structure
from fdcore.spec import Spec
from fdcore.store.series import read_notes, read_result, read_table
from fdcore.tasks.stability import StabilityParameters
from fdcore.tasks.stages import GenerationsParameters, Stage

TASK = "generations"
STABILITY_TABLES = ("series", "errors", "relaxations", "ladder")


@dataclass(frozen=True)
class Training:
    """One training of the loop; `title` in words, `trained` as of any fine-tuning, the product's folder None before it is finished."""

    stage: Stage
    title: str
    trained: Trained
    folder: Path | None


@dataclass(frozen=True)
class Generation:
    """What an attack found: structures with their labels (none where the reference failed) and U_Delta (eV/Å) of each under the model that
    was attacked."""

    number: int
    structures: tuple[Structure, ...]
    force_delta: tuple[float, ...]


@dataclass(frozen=True)
class Loop:
    """A recorded loop, whole or so far."""

    parameters: GenerationsParameters
    base: str
    generations: tuple[Generation, ...]
    trainings: tuple[Training, ...]
    measured: Measured
    notes: tuple[Mapping[str, Any], ...]
    result: Mapping[str, Any] | None


def read(folder: Path | None, spec: Spec, structures: Sequence[Structure]) -> Loop:
    """What an attempt's folder holds so far."""
    parameters: GenerationsParameters = GenerationsParameters.of(spec)
    assert spec.model is not None
    starts = tuple(structures[: len(structures) - parameters.n_replay])
    notes = () if folder is None else tuple(read_notes(folder))
    result = None if folder is None else read_result(folder)
    skipped = any("skipped" in n for n in notes)
    stages = [s for s in parameters.stages() if s.kind == "finetune"]
    if skipped and result is not None:
        stages = [s for s in stages if s.product in result["products"]]
    trainings = tuple(_training(k, s, folder, result) for k, s in enumerate(stages))
    names = (spec.model.id, *(t.title for t in trainings))
    tables = {} if folder is None else {name: read_table(folder, name) for name in STABILITY_TABLES}
    told = Provenance(parameters.reference, spec.versions.get(parameters.reference, ""))
    measured = drifts.measured(tables, notes, result, names, starts, _stability(parameters))
    return Loop(parameters, spec.model.id, _generations(folder, starts, told), trainings, measured, notes, result)


def _stability(parameters: GenerationsParameters) -> StabilityParameters:
    known = {name: getattr(parameters, name) for name in StabilityParameters.__dataclass_fields__ if name != "models"}
    return StabilityParameters(**known)


def _training(number: int, stage: Stage, folder: Path | None, result: Mapping[str, Any] | None) -> Training:
    title = f"generation {stage.generation}, {'F_nc only' if stage.train == 'direct' else 'both forces'}"
    if folder is None:
        return Training(stage, title, Trained({}, {}, (), None, None), None)
    parts = []
    for name in ("steps", "checks"):
        table = read_table(folder, name)
        rows = table["stage"] == number if table else None
        parts.append({k: v[rows] for k, v in table.items() if k != "stage"} if table else {})
    place = folder / stage.product
    return Training(stage, title, Trained(parts[0], parts[1], (), result, folder), place if place.is_dir() else None)


def _generations(folder: Path | None, starts: Sequence[Structure], told: Provenance) -> tuple[Generation, ...]:
    rows, atoms = ({}, {}) if folder is None else (read_table(folder, "structures"), read_table(folder, "atoms"))
    if not rows or not atoms:
        return ()
    out = []
    for number in np.unique(rows["generation"]):
        found, heights = [], []
        for k in np.flatnonzero(rows["generation"] == number):
            part = slice(int(rows["first_atom"][k]), int(rows["first_atom"][k] + rows["n_atoms"][k]))
            if part.stop > len(atoms["position_A"]):
                break
            energy, parent = float(rows["energy_reference_eV"][k]), starts[int(rows["parent"][k])]
            structure = replace(
                parent, positions=atoms["position_A"][part], cell=rows["cell_A"][k], labels={}, index=len(found)
            )
            if np.isfinite(energy):
                structure = structure_with(structure, Label(energy, atoms["forces_reference_eV_per_A"][part], told))
            found.append(structure)
            heights.append(float(rows["force_delta_eV_per_A"][k]))
        out.append(Generation(int(number), tuple(found), tuple(heights)))
    return tuple(out)


def sentences(loop: Loop) -> list[str]:
    """What it says, in plain words: how it went, and what it came to."""
    return [*story(loop), *drifts.sentences(loop.measured)]


def story(loop: Loop) -> list[str]:
    """How it went, in the order in which it happened."""
    out = []
    for generation in loop.generations:
        labelled = sum("energy_eV" in s.labels for s in generation.structures)
        low, high = min(generation.force_delta), max(generation.force_delta)
        out.append(
            f"Generation {generation.number}: {len(generation.structures)} structures with U_Delta from {low:.3g} to {high:.3g} eV/Å, "
            f"{labelled} labelled by {loop.parameters.reference}."
        )
    for training in loop.trainings:
        said = finetuning.sentence(training.trained)
        if said:
            more = (
                finetuning.warning(training.trained),
                finetuning.forgetting(training.trained, loop.trainings[0].trained),
            )
            out.append(" ".join(filter(None, (f"{training.title[0].upper()}{training.title[1:]}: {said}", *more))))
    out += [f"{n['skipped']} was skipped: {n['text']}." for n in loop.notes if "skipped" in n]
    return out


def error_rows(loop: Loop) -> list[dict[str, Any]]:
    """One plain row per training, part and quantity: before and after."""
    return [{"training": t.title, **row} for t in loop.trainings for row in finetuning.error_rows(t.trained)]
