"""One row of a screening's table: what is kept of a structure, the same whichever chunk it was in.

Columns and units are those of `fdcore score --csv`, without per-atom numbers; a number that there is not is missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from ase.data import chemical_symbols

from fdcore import delta
from fdcore.distribution import ReferenceDistribution
from fdcore.records import Evaluation, Failure, ModelCard, Structure
from fdcore.verdict import CHARGE_AND_SPIN, TIE_A, judge

SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("index", pa.int64()),
        ("id", pa.string()),
        ("formula", pa.string()),
        # Symbols in alphabetical order, as in "Al-Mg".
        ("elements", pa.string()),
        ("n_atoms", pa.int32()),
        ("periodic", pa.bool_()),
        ("force_delta_eV_per_A", pa.float64()),
        ("worst_atom", pa.int32()),
        ("worst_element", pa.string()),
        ("worst_atom_eV_per_A", pa.float64()),
        ("verdict", pa.string()),
        ("reference_percentile", pa.float64()),
        ("confidence_eV_per_A", pa.float64()),
        ("energy_eV", pa.float64()),
        ("energy_eV_per_atom", pa.float64()),
        ("largest_force_direct_eV_per_A", pa.float64()),
        ("error_direct_eV_per_A", pa.float64()),
        ("error_conservative_eV_per_A", pa.float64()),
        # The gap at the cut of the neighbour list of models that have one, and whether it is a tie.
        ("graph_tie_A", pa.float64()),
        ("tie", pa.bool_()),
        # |U alone - U in its batch|, of the sample that was scored a second time.
        ("alone_difference_eV_per_A", pa.float64()),
        ("warnings", pa.string()),
        ("error", pa.string()),
        ("hint", pa.string()),
        ("content_sha256", pa.string()),
    ]
)
# What names a structure in a database, in the order in which they are preferred.
ID_TAGS = ("id", "material_id", "mp_id", "immutable_id", "name")

Row = dict[str, Any]
_FORMULA = re.compile(r", which \S+ contains\.$")


def scored(
    structure: Structure, evaluation: Evaluation, card: ModelCard, reference: ReferenceDistribution | None
) -> Row:
    """The row of a structure that was evaluated."""
    per_atom = evaluation.force_delta_per_atom
    worst = int(np.argmax(per_atom))
    verdict = judge(structure, evaluation, card, reference)
    row = _of(structure)
    row.update(
        force_delta_eV_per_A=evaluation.force_delta,
        worst_atom=worst,
        worst_element=structure.symbols[worst],
        worst_atom_eV_per_A=float(per_atom[worst]),
        verdict=verdict.level,
        reference_percentile=verdict.percentile,
        confidence_eV_per_A=None if evaluation.confidence is None else float(evaluation.confidence.mean()),
        energy_eV=evaluation.energy,
        energy_eV_per_atom=evaluation.energy / structure.n_atoms,
        largest_force_direct_eV_per_A=float(np.linalg.norm(evaluation.forces_direct, axis=1).max()),
        graph_tie_A=evaluation.graph_tie_A,
        tie=evaluation.graph_tie_A is not None and evaluation.graph_tie_A < TIE_A,
    )
    unread = [e.text for e in verdict.evidence if e.name == CHARGE_AND_SPIN]
    if unread:
        row["warnings"] = "; ".join((*structure.warnings, *unread))
    labelled = structure.labels.get("forces_eV_per_A")
    if labelled is not None:
        row.update(
            error_direct_eV_per_A=delta.rms_difference(evaluation.forces_direct, labelled),
            error_conservative_eV_per_A=delta.rms_difference(evaluation.forces_conservative, labelled),
        )
    return row


def refused(structure: Structure, error: str, hint: str) -> Row:
    """The row of a structure that the model could not evaluate."""
    return _of(structure) | {"verdict": "failed", "error": error, "hint": hint}


def unread(failure: Failure) -> Row:
    """The row of what could not be read."""
    return {
        "file": failure.file,
        "index": failure.index,
        "verdict": "failed",
        "error": failure.error,
        "hint": failure.hint,
    }


def _of(structure: Structure) -> Row:
    return {
        "file": structure.file,
        "index": structure.index,
        "id": next((str(structure.tags[key]) for key in ID_TAGS if key in structure.tags), None),
        "formula": structure.formula,
        "elements": "-".join(sorted({chemical_symbols[z] for z in np.unique(structure.numbers)})),
        "n_atoms": structure.n_atoms,
        "periodic": structure.periodic,
        "warnings": "; ".join(structure.warnings) or None,
        "content_sha256": structure.content_id,
    }


def table(rows: list[Row]) -> pa.Table:
    """Rows as a table of the one schema; what a row lacks is missing."""
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def digest(rows: list[Row]) -> Mapping[str, Any]:
    """What is shown of many chunks without reading them again: counts by verdict, by bin of U_Delta and by reason, ties, the sample that was
    checked, and the highest U_Delta with where it stands."""
    verdicts: dict[str, int] = {}
    bins: dict[str, int] = {}
    reasons: dict[str, int] = {}
    largest = 0.0
    checked = ties = 0
    for row in rows:
        verdicts[row["verdict"]] = verdicts.get(row["verdict"], 0) + 1
        if row["verdict"] == "failed":
            # Which structure it is says its row.
            reason = _FORMULA.sub(".", row["error"])
            reasons[reason] = reasons.get(reason, 0) + 1
            continue
        place = str(bin_of(row["force_delta_eV_per_A"]))
        bins[place] = bins.get(place, 0) + 1
        ties += bool(row["tie"])
        if row.get("alone_difference_eV_per_A") is not None:
            checked += 1
            largest = max(largest, row["alone_difference_eV_per_A"])
    good = [r for r in rows if r["verdict"] != "failed"]
    worst = sorted(good, key=lambda r: -r["force_delta_eV_per_A"])[:WORST_KEPT]
    failed = [r for r in rows if r["verdict"] == "failed"][:FAILED_KEPT]
    return {
        "verdicts": verdicts,
        "bins": bins,
        "reasons": dict(sorted(reasons.items(), key=lambda item: -item[1])[:REASONS_KEPT]),
        "checked": checked,
        "largest_difference": largest,
        "ties": ties,
        "worst": [{k: r[k] for k in SHOWN} for r in worst],
        "failed": [{k: r.get(k) for k in SHOWN_FAILED} for r in failed],
    }


WORST_KEPT, FAILED_KEPT, REASONS_KEPT = 20, 5, 20
SHOWN = ("file", "index", "formula", "n_atoms", "elements", "force_delta_eV_per_A", "worst_element", "worst_atom", "verdict")  # fmt: skip
SHOWN_FAILED = ("file", "index", "error", "hint")
# Bins of U_Delta: so many to a decade, on a logarithmic axis; what is below the first or above the last belongs to it.
PER_DECADE = 10
LOWEST, HIGHEST = -5, 3


def bin_of(force_delta: float) -> int:
    """The number of the bin of a U_Delta (eV/Å); 0 begins at 1 eV/Å."""
    if force_delta <= 0:
        return LOWEST * PER_DECADE
    return int(np.clip(np.floor(np.log10(force_delta) * PER_DECADE), LOWEST * PER_DECADE, HIGHEST * PER_DECADE - 1))


def bin_edges(place: int) -> tuple[float, float]:
    """Where a bin begins and ends (eV/Å)."""
    return 10 ** (place / PER_DECADE), 10 ** ((place + 1) / PER_DECADE)
