"""An ensemble's findings as files: JSON and CSV for programs, extXYZ with both kinds of spread per atom."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fdcore import ensemble
from fdcore.ensemble import Compared
from fdcore.export import atoms_extxyz, failure_row
from fdcore.records import Failure


def document(
    compared: Compared, failures: Sequence[Failure] = (), provenance: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The document of `fdcore ensemble --json`."""
    agreement = ensemble.agreement(compared)
    pairs = compared.pairwise()
    per_atom = {s.position: s.ensemble_spread_per_atom for s in compared.spreads}
    results = [
        {
            **row,
            "force_delta_per_atom_eV_per_A": s.evaluation.force_delta_per_atom.tolist(),
            "ensemble_spread_per_atom_eV_per_A": None if (u := per_atom[s.position]) is None else u.tolist(),
        }
        for row, s in zip(ensemble.as_rows(compared), compared.spreads, strict=True)
    ]
    return {
        "model": compared.model_id,
        "members": list(compared.members),
        "not_loaded": dict(compared.unloadable),
        "results": results,
        "pairwise_eV_per_A": None if pairs is None else [[_or_none(x) for x in row] for row in pairs.tolist()],
        "agreement": {
            "n": agreement.n,
            "r_s": agreement.r_s,
            "r_s_ci": None if agreement.low is None else [agreement.low, agreement.high],
        },
        "rankings": ensemble.ranking_rows(ensemble.rankings(compared)),
        "cost": {
            "seconds_force_delta": compared.seconds_both,
            "seconds_ensemble": compared.seconds_ensemble,
            "force_delta_over_ensemble": compared.relative_cost,
        },
        "errors": [failure_row(f) for f in [*failures, *compared.failures]],
        "provenance": None if provenance is None else dict(provenance),
    }


def as_json(compared: Compared, failures: Sequence[Failure] = (), provenance: Mapping[str, Any] | None = None) -> str:
    return json.dumps(document(compared, failures, provenance), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def table(compared: Compared) -> pd.DataFrame:
    """One row per structure, largest U_var first; what does not exist is missing."""
    rows = ensemble.as_rows(compared)
    for row in rows:
        row["members"] = len(row["members"])
        row["left_out"] = "; ".join(row["left_out"])
    found = pd.DataFrame(rows)
    if found.empty:
        return found
    return found.sort_values("ensemble_spread_eV_per_A", ascending=False, na_position="last", ignore_index=True)


def as_csv(compared: Compared) -> str:
    return table(compared).to_csv(index=False)


def as_extxyz(compared: Compared) -> str:
    """Structures with F_nc, F_c, u_i and the ensemble's spread of each atom (NaN where there is none)."""
    frames = []
    for s in compared.spreads:
        atoms = s.structure.to_atoms()
        atoms.info.update(
            # The extXYZ of ASE drops backslashes.
            source_file=s.structure.file.replace("\\", "/"),
            source_index=s.structure.index,
            model=compared.model_id,
            members=",".join(s.members),
            energy_eV=s.evaluation.energy,
            force_delta_eV_per_A=s.evaluation.force_delta,
        )
        spread = s.ensemble_spread
        if spread is not None:
            atoms.info["ensemble_spread_eV_per_A"] = spread
        per_atom = s.ensemble_spread_per_atom
        atoms.new_array("forces_direct", np.array(s.evaluation.forces_direct))
        atoms.new_array("forces_conservative", np.array(s.evaluation.forces_conservative))
        atoms.new_array("force_delta_per_atom", np.array(s.evaluation.force_delta_per_atom))
        nothing = np.full(len(atoms), np.nan)
        atoms.new_array("ensemble_spread_per_atom", nothing if per_atom is None else np.array(per_atom))
        frames.append(atoms)
    return atoms_extxyz(frames)


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
