"""A run as one zip file that explains itself: what was asked, how it was made, what was found, and from what."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import ase.io

from fdcore import adversarial_files, export, motion_files, truth
from fdcore.adversarial import Adversarial
from fdcore.motion import Motion
from fdcore.records import Failure, Score, Structure
from fdcore.store.records import Attempt, Run
from fdcore.store.series import NOTES, SERIES, closed_series

README = """A run of Force Delta (fdcore).

run.json       what was asked (spec, content-hashed), when, by which attempts, with which result
inputs.extxyz  the structures it worked on, in order
scores.*       scoring runs: the verdicts and numbers of `fdcore score`, as JSON, CSV and extended xyz
motion.json    dynamics, relaxation, advisor: the document of `fdcore md --json` and its like
series.csv     dynamics: every recorded step; relaxation.csv: every iteration
dataset/*      attacks: the dataset in every format, with a README of its own
truth.*        comparisons with a reference: errors of both forces, and how well U_Delta ranks them
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
    result: tuple[Sequence[Score], Sequence[Failure], dict[str, Any] | None] | None,
    motion: Motion | None = None,
    attack: Adversarial | None = None,
    compared: Sequence[truth.Compared] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write the zip to a stream. Owners and share keys stay out: the file is made to be passed on."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README.txt", README)
        archive.writestr("run.json", json.dumps(document(run, attempts, refusals), indent=1, ensure_ascii=False) + "\n")
        if structures:
            archive.writestr("inputs.extxyz", _extxyz(structures))
        if result is not None:
            scores, failures, settings = result
            model = run.spec.model.id if run.spec.model else ""
            archive.writestr("scores.json", export.scores_json(scores, failures, model, settings))
            archive.writestr("scores.csv", export.scores_csv(scores, failures))
            if scores:
                archive.writestr("scores.extxyz", export.scores_extxyz(scores, settings))
        if motion is not None and folder is not None:
            for name, content in motion_files.archived(motion, folder, refusals, provenance).items():
                archive.writestr(name, content)
        if attack is not None:
            for name, content in adversarial_files.archived(attack, provenance).items():
                archive.writestr(f"dataset/{name}", content)
        if compared:
            rows = {"bands": truth.band_rows(truth.bands(compared)), "structures": truth.as_rows(compared)}
            archive.writestr("truth.json", json.dumps(rows, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
        if folder is not None:
            with closed_series(folder) as series:
                if series is not None:
                    archive.write(series, SERIES)
            if (folder / NOTES).is_file():
                archive.write(folder / NOTES, NOTES)


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
