"""Results as files: JSON and CSV for programs, extXYZ with per-atom arrays for the next calculation, tables for pages.

Every format reads back: the JSON is plain JSON (no NaN), the extXYZ carries cell, pbc and both forces under the names of
DESIGN, never under a bare `forces`.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import ase
import ase.io
import numpy as np
import pandas as pd

from fdcore import delta
from fdcore.records import Failure, ModelCard, Score

# What one model was run with (`provenance`), or several were.
Settings = dict[str, Any] | Sequence[dict[str, Any]]
PACKAGES = ("force-delta", "torch", "ase", "orb-models", "fairchem-core", "numpy")


def provenance(card: ModelCard, *, device: str, dtype: str, weights: str = "") -> dict[str, Any]:
    """What one must know to repeat a result: model, weights' hash, precision, device, versions."""
    return {
        "model": card.id,
        "weights_sha256": weights or card.sha256 or None,
        "reference_method": card.reference_method,
        "device": device,
        "dtype": dtype,
        "versions": {name: version(name) for name in PACKAGES},
    }


def score_row(score: Score) -> dict[str, Any]:
    """One entry of `results` in the JSON document (fixed names of DESIGN first)."""
    structure, evaluation, verdict = score.structure, score.evaluation, score.verdict
    row: dict[str, Any] = {
        "file": structure.file,
        "index": structure.index,
        "n_atoms": structure.n_atoms,
        "formula": structure.formula,
        "model": score.model_id,
        "energy_eV": evaluation.energy,
        "force_delta_eV_per_A": evaluation.force_delta,
        "force_delta_per_atom_eV_per_A": evaluation.force_delta_per_atom.tolist(),
        "verdict": verdict.level,
        "warnings": list(structure.warnings),
        "verdict_sentence": verdict.sentence,
        "reference_percentile": verdict.percentile,
        "evidence": [
            {"name": e.name, "status": e.status, "text": e.text, "atoms": list(e.atoms)} for e in verdict.evidence
        ],
        "content_sha256": structure.content_id,
    }
    if evaluation.confidence is not None:
        row["confidence_per_atom_eV_per_A"] = evaluation.confidence.tolist()
    errors = label_errors(score)
    if errors:
        row.update(errors)
    return row


def label_errors(score: Score) -> dict[str, float]:
    """eps_nc and eps_c (eV/Å) where the file brought reference forces; empty otherwise."""
    reference = score.structure.labels.get("forces_eV_per_A")
    if reference is None:
        return {}
    return {
        "error_direct_eV_per_A": delta.rms_difference(score.evaluation.forces_direct, reference),
        "error_conservative_eV_per_A": delta.rms_difference(score.evaluation.forces_conservative, reference),
    }


def failure_row(failure: Failure) -> dict[str, Any]:
    """One entry of `errors` in the JSON document; `index` only where a single frame failed."""
    row: dict[str, Any] = {"file": failure.file, "error": failure.error, "hint": failure.hint}
    if failure.index is not None:
        row["index"] = failure.index
    return row


def scores_json(
    scores: Iterable[Score], failures: Iterable[Failure], model_id: str | None, settings: Settings | None = None
) -> str:
    """The document of `fdcore score --json`. `model` is the one that scored all of it, null where structures had models of their own: every
    result names its model, and `provenance` is then a list, one entry per model."""
    document: dict[str, Any] = {
        "model": model_id,
        "results": [score_row(s) for s in scores],
        "errors": [failure_row(f) for f in failures],
    }
    if settings is not None:
        document["provenance"] = settings
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def results_table(scores: Iterable[Score], failures: Iterable[Failure] = ()) -> pd.DataFrame:
    """One row per structure, highest U_Delta first, failures last with their reason; missing numbers are missing."""
    rows: list[dict[str, Any]] = []
    for score in scores:
        per_atom = score.evaluation.force_delta_per_atom
        worst = int(np.argmax(per_atom))
        confidence = score.evaluation.confidence
        rows.append(
            {
                "file": score.structure.file,
                "index": score.structure.index,
                "formula": score.structure.formula,
                "n_atoms": score.structure.n_atoms,
                "model": score.model_id,
                "force_delta_eV_per_A": score.evaluation.force_delta,
                "worst_atom": f"{score.structure.symbols[worst]}{worst}",
                "worst_atom_eV_per_A": float(per_atom[worst]),
                "verdict": score.verdict.level,
                "reference_percentile": score.verdict.percentile,
                "confidence_eV_per_A": None if confidence is None else float(confidence.mean()),
                "energy_eV": score.evaluation.energy,
                "energy_eV_per_atom": score.evaluation.energy / score.structure.n_atoms,
                "warnings": "; ".join(score.structure.warnings),
                "error": "",
                "hint": "",
                **label_errors(score),
            }
        )
    rows += [{"verdict": "failed", **failure_row(f)} for f in failures]
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["file", "error", "hint"]
    table = pd.DataFrame(rows, columns=columns)
    if "force_delta_eV_per_A" in table:
        table = table.sort_values("force_delta_eV_per_A", ascending=False, na_position="last", kind="stable")
    return table.reset_index(drop=True)


def scores_csv(scores: Iterable[Score], failures: Iterable[Failure] = ()) -> str:
    """`results_table` as CSV."""
    return results_table(scores, failures).to_csv(index=False)


def per_atom_table(score: Score) -> pd.DataFrame:
    """One row per atom, highest u_i first: positions in Å, both forces and u_i in eV/Å."""
    structure, evaluation = score.structure, score.evaluation
    columns: dict[str, Any] = {
        "atom": np.arange(structure.n_atoms),
        "element": structure.symbols,
        "force_delta_eV_per_A": evaluation.force_delta_per_atom,
        "force_direct_norm_eV_per_A": np.linalg.norm(evaluation.forces_direct, axis=1),
        "force_conservative_norm_eV_per_A": np.linalg.norm(evaluation.forces_conservative, axis=1),
    }
    if evaluation.confidence is not None:
        columns["confidence_eV_per_A"] = evaluation.confidence
    for prefix, array in (
        ("position_{}_A", structure.positions),
        ("force_direct_{}_eV_per_A", evaluation.forces_direct),
        ("force_conservative_{}_eV_per_A", evaluation.forces_conservative),
    ):
        for k, axis in enumerate("xyz"):
            columns[prefix.format(axis)] = array[:, k]
    table = pd.DataFrame(columns)
    return table.sort_values("force_delta_eV_per_A", ascending=False, kind="stable").reset_index(drop=True)


def per_element_table(score: Score) -> pd.DataFrame:
    """One row per element, highest RMS u_i first: count, RMS and largest u_i in eV/Å, share of U_Delta^2."""
    squares = score.evaluation.force_delta_per_atom**2
    table = pd.DataFrame({"element": score.structure.symbols, "square": squares})
    grouped = table.groupby("element", sort=True)["square"].agg(["size", "mean", "max", "sum"])
    total = float(squares.sum())
    out = pd.DataFrame(
        {
            "element": grouped.index,
            "n_atoms": grouped["size"].to_numpy(),
            "force_delta_eV_per_A": np.sqrt(grouped["mean"].to_numpy()),
            "worst_atom_eV_per_A": np.sqrt(grouped["max"].to_numpy()),
            "share_of_force_delta_squared": grouped["sum"].to_numpy() / total if total > 0 else np.nan,
        }
    )
    return out.sort_values("force_delta_eV_per_A", ascending=False, kind="stable").reset_index(drop=True)


def force_components_table(score: Score) -> pd.DataFrame:
    """One row per force component (3N): atom, element, axis, F_nc and F_c in eV/Å; for the parity plot."""
    n = score.structure.n_atoms
    return pd.DataFrame(
        {
            "atom": np.repeat(np.arange(n), 3),
            "element": np.repeat(np.array(score.structure.symbols), 3),
            "axis": np.tile(list("xyz"), n),
            "force_direct_eV_per_A": score.evaluation.forces_direct.ravel(),
            "force_conservative_eV_per_A": score.evaluation.forces_conservative.ravel(),
        }
    )


def scores_extxyz(scores: Sequence[Score], settings: Settings | None = None) -> str:
    """All structures as extXYZ, per-atom arrays beside the positions, in the order given."""
    of_model = {s["model"]: s for s in ([settings] if isinstance(settings, dict) else settings or ())}
    frames = []
    for score in scores:
        atoms = score.structure.to_atoms()
        evaluation = score.evaluation
        atoms.new_array("forces_direct", evaluation.forces_direct.copy())
        atoms.new_array("forces_conservative", evaluation.forces_conservative.copy())
        atoms.new_array("force_delta_per_atom", evaluation.force_delta_per_atom.copy())
        if evaluation.confidence is not None:
            atoms.new_array("confidence", evaluation.confidence.copy())
        atoms.info.update(
            energy_eV=evaluation.energy,
            force_delta_eV_per_A=evaluation.force_delta,
            verdict=score.verdict.level,
            model=score.model_id,
            # The extXYZ of ASE drops backslashes.
            source_file=score.structure.file.replace("\\", "/"),
            source_index=score.structure.index,
        )
        if score.model_id in of_model:
            known = of_model[score.model_id]
            atoms.info.update(dtype=known["dtype"], weights_sha256=known["weights_sha256"] or "unknown")
        frames.append(atoms)
    return atoms_extxyz(frames)


def atoms_extxyz(frames: Sequence[ase.Atoms]) -> str:
    """The text that ASE writes for these frames with their arrays and info."""
    buffer = io.StringIO()
    ase.io.write(buffer, list(frames), format="extxyz")
    return buffer.getvalue()


def scores_zip(
    scores: Sequence[Score], failures: Sequence[Failure], model_id: str, settings: dict[str, Any] | None = None
) -> bytes:
    """Everything in one archive: scores.json, scores.csv, scores.extxyz, one per-atom CSV per structure."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("scores.json", scores_json(scores, failures, model_id, settings))
        archive.writestr("scores.csv", scores_csv(scores, failures))
        if scores:
            archive.writestr("scores.extxyz", scores_extxyz(scores, settings))
        for number, score in enumerate(scores):
            archive.writestr(f"atoms/{number:05d}.csv", per_atom_table(score).to_csv(index=False))
    return buffer.getvalue()


def comparison_table(runs: Sequence[tuple[str, Sequence[Score]]]) -> pd.DataFrame:
    """One row per structure (file and frame), one column of U_Delta (eV/Å) and one of the verdict per labelled run; a
    structure that a run has not scored is missing there. Highest disagreement over the runs first."""
    table: pd.DataFrame | None = None
    for label, scores in runs:
        columns = {
            "file": [s.structure.file for s in scores],
            "index": [s.structure.index for s in scores],
            "formula": [s.structure.formula for s in scores],
            f"{label}: force_delta_eV_per_A": [s.evaluation.force_delta for s in scores],
            f"{label}: verdict": [s.verdict.level for s in scores],
        }
        part = pd.DataFrame(columns)
        table = part if table is None else table.merge(part, on=["file", "index", "formula"], how="outer")
    if table is None:
        return pd.DataFrame(columns=["file", "index", "formula"])
    deltas = [c for c in table.columns if c.endswith("force_delta_eV_per_A")]
    order = table[deltas].max(axis=1).sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)
