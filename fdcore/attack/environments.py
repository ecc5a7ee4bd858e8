"""What tells two structures apart: their local environments (SOAP; Bartók, Kondor, Csányi 2013; dscribe's implementation).

A structure is described by mean and standard deviation of the SOAP vectors of its atoms, element by element: the order of atoms, a
turn, a shift and an equivalent site change nothing, and a single displaced atom among many alike still shows in the deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdcore.records import Structure

Array = NDArray[np.float64]

# Å; radial and angular functions; width of the atoms in Å. Coarse: attacks displace by tenths of an ångström.
CUTOFF_A, RADIAL, ANGULAR, WIDTH_A = 4.5, 4, 3, 0.4
# The displacement (Å per component) whose effect is the unit of a distance between structures of the same origin, and how it is measured.
UNIT_A, UNIT_SAMPLES, UNIT_SEED = 0.1, 4, 0


def width(numbers: NDArray[np.int64]) -> int:
    """How many numbers describe a structure with these atomic numbers."""
    species = _species(numbers)
    return 2 * len(species) * int(_soap(species).get_number_of_features())


def describe(structure: Structure, numbers: NDArray[np.int64]) -> Array:
    """The vector of a structure; `numbers` are the atomic numbers of all structures that it will be compared with."""
    species = _species(numbers)
    atoms = structure.to_atoms()
    soap = np.asarray(_soap(species, structure.periodic).create(atoms), dtype=np.float64)
    parts = []
    for z in species:
        own = soap[structure.numbers == z]
        if len(own):
            parts += [own.mean(axis=0), own.std(axis=0)]
        else:
            parts += [np.zeros(soap.shape[1])] * 2
    return np.concatenate(parts)


def unit_distance(structure: Structure, numbers: NDArray[np.int64]) -> float:
    """How far apart two random displacements of a structure by UNIT_A lie on average: what distances are measured in."""
    from dataclasses import replace

    generator = np.random.Generator(np.random.PCG64(UNIT_SEED))
    described = [
        describe(
            replace(structure, positions=structure.positions + generator.normal(0, UNIT_A, structure.positions.shape)),
            numbers,
        )
        for _ in range(UNIT_SAMPLES)
    ]
    pairs = [np.linalg.norm(a - b) for k, a in enumerate(described) for b in described[:k]]
    return float(np.mean(pairs))


def distances(vectors: Sequence[NDArray[Any]] | NDArray[Any], to: NDArray[Any]) -> Array:
    """From each of `vectors` to one."""
    return np.linalg.norm(np.asarray(vectors, dtype=np.float64) - np.asarray(to, dtype=np.float64), axis=1)


def _species(numbers: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(z) for z in np.unique(numbers))


@lru_cache(maxsize=16)
def _soap(species: tuple[int, ...], periodic: bool = True) -> Any:
    # Brings a large package; nothing else of an attack needs it.
    from dscribe.descriptors import SOAP

    return SOAP(
        species=list(species),
        r_cut=CUTOFF_A,
        n_max=RADIAL,
        l_max=ANGULAR,
        sigma=WIDTH_A,
        periodic=periodic,
        compression={"mode": "mu1nu1"},
        sparse=False,
        dtype="float64",
    )
