"""A run as one zip file that explains itself: what was asked, how it was made, what was found, and from what."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import ase.io

from fdcore import (
    adversarial,
    adversarial_files,
    drift_report,
    drifts,
    export,
    finetuning,
    finetuning_files,
    generations,
    label_files,
    motion,
    motion_files,
    report,
    report_files,
    reproduction,
    reproduction_report,
    validation,
    validation_report,
)
from fdcore.drifts import Measured
from fdcore.records import Failure, Score, Structure
from fdcore.screening.results import PARTS, TABLE_CSV, TABLE_PARQUET, all_there
from fdcore.screening.summary import SUMMARY
from fdcore.store.records import Attempt, Run
from fdcore.store.runs import TASK_OF_SCREENS
from fdcore.store.series import NOTES, SERIES, closed_series
from fdcore.tasks import label

README = """A run of Force Delta (fdcore).

run.json       what was asked (spec, content-hashed), when, by which attempts, with which result
inputs.extxyz  the structures it worked on, in order
scores.*       scoring runs: the verdicts and numbers of `fdcore score`, as JSON, CSV and extended xyz
motion.json    dynamics, relaxation, advisor: the document of `fdcore md --json` and its like
series.csv     dynamics: every recorded step; relaxation.csv: every iteration
dataset/*      attacks: the dataset in every format, with a README of its own
model*/*       fine-tunings, loops: every model that was made, as model.safetensors and card.json; losses.csv, errors.csv: how it went
stability/*    stability, loops: the report as HTML, its figures as SVG and PNG, its numbers as JSON and CSV
report/*       reports: whether the model is conservative there, as one HTML page, with its figures and its numbers
labels.json, labelled.*  labelling: the document of `fdcore label --json`, and what has a label as extended xyz and ASE database
validation/*   validations, comparisons with a reference: the report as HTML, its figures as SVG and PNG, its numbers as JSON and CSV
screening/*     screenings: the table as Parquet and CSV with its summary; of one that is not complete, the parts that are done
reproduction/* reproductions: figures and tables beside the paper's numbers, as one HTML page, SVG, PNG, CSV and JSON
trajectory.extxyz  kept frames with velocities, both forces and u_i
series.h5      everything that was recorded, as HDF5: one group per table, one dataset per column; of a run that was killed
               or still goes on, all rows that are complete
notes.jsonl    what was recorded in words, one JSON object per line

Energies in eV, lengths in Å, each force in eV/Å, times in run.json in UTC.
"""


def write(
    stream: BinaryIO,
    *,
    run: Run,
    attempts: Sequence[Attempt],
    structures: Sequence[Structure],
    refusals: Sequence[Failure],
    folder: Path | None,
    files: Mapping[str, str | bytes | Path],
) -> None:
    """Write the zip to a stream: what was asked, `files` that say what was found (`found`), and the record itself. Owners and share keys stay
    out: the file is made to be passed on."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README.txt", README)
        archive.writestr("run.json", json.dumps(document(run, attempts, refusals), indent=1, ensure_ascii=False) + "\n")
        if structures:
            archive.writestr("inputs.extxyz", _extxyz(structures))
        for name, content in files.items():
            if isinstance(content, Path):
                archive.write(content, name)
            else:
                archive.writestr(name, content)
        if folder is not None:
            with closed_series(folder) as series:
                if series is not None:
                    archive.write(series, SERIES)
            if (folder / NOTES).is_file():
                archive.write(folder / NOTES, NOTES)


@dataclass(frozen=True)
class Recorded:
    """What `found` is told of a run: its folder (None: nothing was recorded), structures, what could not be read, and how its numbers can be
    repeated; `scores` of a scoring run, with what could not be scored; `made`: folders of models; `screen`: the folder of a screening."""

    run: Run
    folder: Path | None
    structures: Sequence[Structure]
    refusals: Sequence[Failure]
    provenance: Mapping[str, Any] | None
    scores: tuple[Sequence[Score], Sequence[Failure]] = ((), ())
    made: Sequence[Path] = ()
    screen: Path | None = None


# A path stands for the file that is there.
Files = dict[str, str | bytes | Path]


def found(recorded: Recorded) -> Files:
    """What a run has found, as files by name; nothing for a task that leaves only numbers."""
    return KINDS[recorded.run.task](recorded) if recorded.run.task in KINDS else {}


def _scored(r: Recorded) -> Files:
    scores, failures = r.scores
    model = r.run.spec.model.id if r.run.spec.model else ""
    settings = None if r.provenance is None else dict(r.provenance)
    out: Files = {
        "scores.json": export.scores_json(scores, failures, model, settings),
        "scores.csv": export.scores_csv(scores, failures),
    }
    return {**out, "scores.extxyz": export.scores_extxyz(scores, settings)} if scores else out


def _moved(r: Recorded) -> Files:
    if r.folder is None:
        return {}
    moved = motion.read(r.folder, r.run.spec, r.structures, r.run.summary)
    return {**motion_files.archived(moved, r.folder, r.refusals, r.provenance)}


def _attacked(r: Recorded) -> Files:
    attack = adversarial.read(r.folder, r.run.spec, r.structures, r.run.summary)
    return {f"dataset/{n}": c for n, c in adversarial_files.archived(attack, r.provenance).items()}


def _validated(r: Recorded) -> Files:
    compared = validation.read(r.folder, r.run.spec, r.structures)[0]
    if not compared:
        return {}
    reference = str(r.run.spec.parameters.get("reference", "labels"))
    whole = validation_report.Report(
        tuple(validation.validate(compared)), reference, (), tuple(r.refusals), r.provenance
    )
    return {f"validation/{n}": c for n, c in validation_report.files(whole).items()}


def _labelled(r: Recorded) -> Files:
    known = label.read(r.folder, r.run.spec, r.structures)
    out: Files = {"labels.json": label_files.document_json(known, r.refusals)}
    if known.labelled:
        out |= {"labelled.extxyz": label_files.as_extxyz(known), "labelled.db": label_files.as_database(known)}
    return out


def _models(r: Recorded) -> Files:
    return {f"{place.name}/{n}": c for place in r.made for n, c in finetuning_files.model_files(place).items()}


def _finetuned(r: Recorded) -> Files:
    trained = finetuning.read(r.folder)
    losses: Files = {
        "losses.csv": finetuning_files.losses_csv(trained),
        "errors.csv": finetuning_files.errors_csv(trained),
    }
    return {**_models(r), **losses}


def _stable(r: Recorded, measured: Measured, notes: Sequence[str] = ()) -> Files:
    if not any(m.runs or m.bands for m in measured.models):
        return {}
    return {f"stability/{n}": c for n, c in drift_report.files(measured, r.provenance or {}, notes).items()}


def _looped(r: Recorded) -> Files:
    loop = generations.read(r.folder, r.run.spec, r.structures)
    return {**_models(r), **_stable(r, loop.measured, generations.story(loop))}


def _reported(r: Recorded) -> Files:
    whole = report.read(r.folder, r.run.spec, r.structures)
    if not whole.examined:
        return {}
    return {f"report/{n}": c for n, c in report_files.files(whole, r.refusals, r.provenance).items()}


def _reproduced(r: Recorded) -> Files:
    whole = reproduction.read(r.folder, r.run.spec, r.structures)
    return {f"reproduction/{n}": c for n, c in reproduction_report.files(whole, r.provenance or {}).items()}


def _screened(r: Recorded) -> Files:
    if r.screen is None:
        return {}
    names = [SUMMARY, *((TABLE_PARQUET, TABLE_CSV) if all_there(r.screen) else ())]
    found: Files = {f"screening/{n}": r.screen / n for n in names if (r.screen / n).is_file()}
    if not all_there(r.screen):
        parts = sorted((r.screen / PARTS).glob("*/*.parquet"))
        found |= {f"screening/{PARTS}/{p.name}": p for p in parts}
    return found


KINDS: Mapping[str, Callable[[Recorded], Files]] = {
    "score": _scored,
    **dict.fromkeys(motion.TASKS, _moved),
    adversarial.TASK: _attacked,
    validation.TASK: _validated,
    label.LabelTask.name: _labelled,
    finetuning.TASK: _finetuned,
    drifts.TASK: lambda r: _stable(r, drifts.read(r.folder, r.run.spec, r.structures)),
    generations.TASK: _looped,
    report.TASK: _reported,
    reproduction.TASK: _reproduced,
    TASK_OF_SCREENS: _screened,
}


def document(run: Run, attempts: Sequence[Attempt], refusals: Sequence[Failure] = ()) -> dict[str, Any]:
    """A run as plain JSON, as `fdcore runs show --json` prints it."""
    return {
        "id": run.id,
        "task": run.task,
        "title": run.title,
        "state": run.state,
        "spec": json.loads(run.spec.to_json()),
        "spec_sha256": run.spec_sha256,
        "lane": run.lane,
        "created": _when(run.created_at),
        "started": _when(run.started_at),
        "ended": _when(run.ended_at),
        "done": run.done,
        "total": run.total,
        "text": run.text,
        "seconds_left": run.seconds_left,
        "error": run.error,
        "hint": run.hint,
        "summary": None if run.summary is None else dict(run.summary),
        "bytes": run.bytes,
        "parent": run.parent,
        "attempts": [_attempt(a) for a in attempts],
        "refused_inputs": [export.failure_row(f) for f in refusals],
    }


def _attempt(attempt: Attempt) -> Mapping[str, Any]:
    row = asdict(attempt)
    row["started"], row["ended"] = _when(row.pop("started_at")), _when(row.pop("ended_at"))
    return row


def _when(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _extxyz(structures: Sequence[Structure]) -> str:
    frames = []
    for structure in structures:
        atoms = structure.to_atoms()
        atoms.info.update(source_file=structure.file.replace("\\", "/"), source_index=structure.index)
        if "forces_eV_per_A" in structure.labels:
            atoms.new_array("reference_forces", structure.labels["forces_eV_per_A"].copy())  # pyright: ignore
        if "energy_eV" in structure.labels:
            atoms.info["reference_energy"] = structure.labels["energy_eV"]
        frames.append(atoms)
    buffer = io.StringIO()
    ase.io.write(buffer, frames, format="extxyz")
    return buffer.getvalue()
