"""How far both forces of a model are from a reference, and whether U_Delta ranks that. Pure functions of what the task `truth` keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdcore import delta
from fdcore.records import Failure, Structure
from fdcore.statistics import RankCorrelation, rank_correlation
from fdcore.store.series import read_notes, read_table

Array = NDArray[np.float64]
TASK = "truth"
# Bands of U_Delta with as many structures each, from the lowest to the highest.
BANDS = ("lowest third", "middle third", "highest third")
POOLED = "all"
# Fewer structures than this in a band say nothing.
FEWEST_IN_BAND = 5


@dataclass(frozen=True)
class Compared:
    """One structure under both: U_Delta, eps_nc and eps_c in eV/Å, energies in eV (that of the reference None where it is not known), and
    the force of the reference (N, 3) in eV/Å."""

    position: int
    structure: Structure
    force_delta: float
    error_direct: float
    error_conservative: float
    energy: float
    energy_reference: float | None
    forces_reference: Array


@dataclass(frozen=True)
class Band:
    """The structures with U_Delta between two values (eV/Å): does it rank their errors?"""

    name: str
    low: float
    high: float
    direct: RankCorrelation
    conservative: RankCorrelation


def read(folder: Path | None, structures: Sequence[Structure]) -> tuple[list[Compared], list[Failure]]:
    """What an attempt's folder holds so far, and what could not be compared."""
    if folder is None:
        return [], []
    rows, atoms = read_table(folder, "structures"), read_table(folder, "atoms")
    out = []
    for k, position in enumerate(rows.get("position", ())):
        part = slice(int(rows["first_atom"][k]), int(rows["first_atom"][k] + rows["n_atoms"][k]))
        direct, conservative, reference = (
            atoms[f"forces_{name}_eV_per_A"][part] for name in ("direct", "conservative", "reference")
        )
        if len(reference) < rows["n_atoms"][k]:
            break
        energy = float(rows["energy_reference_eV"][k])
        out.append(
            Compared(
                position=int(position),
                structure=structures[int(position)],
                force_delta=delta.force_delta(direct, conservative),
                error_direct=delta.rms_difference(direct, reference),
                error_conservative=delta.rms_difference(conservative, reference),
                energy=float(rows["energy_eV"][k]),
                energy_reference=energy if np.isfinite(energy) else None,
                forces_reference=reference,
            )
        )
    failed = [
        Failure(structures[n["position"]].file, n["error"], n["hint"], structures[n["position"]].index)
        for n in read_notes(folder)
    ]
    return out, failed


def bands(compared: Sequence[Compared], seed: int = 0) -> list[Band]:
    """All structures first, then thirds by U_Delta where each has enough of them."""
    if not compared:
        return []
    u = np.array([c.force_delta for c in compared])
    order = np.argsort(u, kind="stable")
    parts: list[tuple[str, NDArray[np.int64]]] = [(POOLED, order)]
    thirds = np.array_split(order, len(BANDS))
    if min(map(len, thirds)) >= FEWEST_IN_BAND:
        parts += list(zip(BANDS, thirds, strict=True))
    out = []
    for name, rows in parts:
        direct = np.array([compared[k].error_direct for k in rows])
        conservative = np.array([compared[k].error_conservative for k in rows])
        out.append(
            Band(
                name,
                float(u[rows].min()),
                float(u[rows].max()),
                rank_correlation(u[rows], direct, seed=seed),
                rank_correlation(u[rows], conservative, seed=seed),
            )
        )
    return out


def sentence(found: Sequence[Band], reference: str) -> str:
    """What the correlation of all structures says."""
    pooled = next((b for b in found if b.name == POOLED), None)
    if pooled is None or pooled.conservative.r_s is None or pooled.direct.r_s is None:
        return "Too few structures to say whether U_Delta ranks the errors."
    c, d = pooled.conservative, pooled.direct
    return (
        f"Against {reference}, U_Delta ranks the error of F_c with r_s = {c.r_s:.2f} ({c.low:.2f} to {c.high:.2f}) and that of F_nc with "
        f"{d.r_s:.2f} ({d.low:.2f} to {d.high:.2f}), over {c.n} structures."
    )


def as_rows(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """One plain row per structure."""
    return [
        {
            "file": c.structure.file,
            "index": c.structure.index,
            "formula": c.structure.formula,
            "n_atoms": c.structure.n_atoms,
            "force_delta_eV_per_A": c.force_delta,
            "error_direct_eV_per_A": c.error_direct,
            "error_conservative_eV_per_A": c.error_conservative,
            "energy_eV": c.energy,
            "energy_reference_eV": c.energy_reference,
        }
        for c in compared
    ]


def band_rows(found: Sequence[Band]) -> list[dict[str, Any]]:
    """One plain row per band."""
    rows = []
    for band in found:
        row: dict[str, Any] = {
            "band": band.name,
            "n": band.conservative.n,
            "low_eV_per_A": band.low,
            "high_eV_per_A": band.high,
        }
        for name, r in (("error_conservative", band.conservative), ("error_direct", band.direct)):
            row[f"r_s_{name}"] = r.r_s
            row[f"r_s_{name}_ci"] = None if r.low is None else [r.low, r.high]
        rows.append(row)
    return rows


def by_content(compared: Sequence[Compared]) -> Mapping[str, Compared]:
    """By the content of the structure."""
    return {c.structure.content_id: c for c in compared}
