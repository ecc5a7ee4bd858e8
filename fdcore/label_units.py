"""Whether forces that are read as eV/Å may be numbers of another unit: told from their size, and from the model's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from ase import units as _ase
from numpy.typing import NDArray

# Half of all atoms with more than this (eV/Å) are in no structure that anybody labels on purpose.
ABSURD = 100.0
# Forces of one direction (cosine over all components) whose sizes have this ratio, to within 5 %.
ALIKE = 0.8
WITHIN = 0.05
# Below this (eV/Å, root mean square) a ratio to the model's forces says nothing.
SMALLEST = 0.01
HARTREE_PER_BOHR = _ase.Hartree / _ase.Bohr
# What one eV/Å is in each, and how the mistake reads.
UNITS: Mapping[str, float] = {
    "kcal/mol/Å": _ase.mol / _ase.kcal,
    "kJ/mol/Å": _ase.mol / _ase.kJ,
    "Hartree/Bohr": 1.0 / HARTREE_PER_BOHR,
    "Rydberg/Bohr": 2.0 / HARTREE_PER_BOHR,
    "eV/Å that were converted from Hartree/Bohr once too often": HARTREE_PER_BOHR,
}


@dataclass(frozen=True)
class UnitDoubt:
    """Why the unit is doubted. median : of |F| of the labels, in what is read as eV/Å. ratio : of their size to that of F_c, and the `unit`
    that has this ratio; None and empty where the size alone is absurd."""

    median: float
    ratio: float | None = None
    unit: str = ""


def unit_doubt(
    forces_reference: NDArray[np.float64], forces_conservative: NDArray[np.float64] | None
) -> UnitDoubt | None:
    """Of all atoms together, (n, 3) each; forces_conservative: the model's, None where they are not known. None: no doubt."""
    if not len(forces_reference):
        return None
    median = float(np.median(np.linalg.norm(forces_reference, axis=1)))
    if forces_conservative is not None:
        size, own = (float(np.sqrt((f**2).mean())) for f in (forces_reference, forces_conservative))
        if size > 0 and own > SMALLEST:
            alike = float((forces_reference * forces_conservative).mean()) / (size * own)
            ratio = size / own
            for unit, per in UNITS.items():
                if alike > ALIKE and abs(ratio / per - 1) < WITHIN:
                    return UnitDoubt(median, ratio, unit)
    return UnitDoubt(median) if median > ABSURD else None
