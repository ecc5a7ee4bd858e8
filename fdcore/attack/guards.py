"""What keeps an adversarial structure plausible, and how close two atoms are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ase.data import covalent_radii
from ase.neighborlist import primitive_neighbor_list
from numpy.typing import NDArray

from fdcore.attack.settings import Attack
from fdcore.records import Evaluation, Structure

# Distances are looked for up to this share of the sum of the two largest covalent radii.
REACH = 1.1
# Parting one pair may close another; and rounding must not leave a pair a hair below the bound.
ROUNDS, OVERSHOOT = 6, 1.001
# Up to so many atoms all pairs are looked at: faster than a neighbour list.
SMALL = 300


@dataclass(frozen=True)
class Closest:
    """The pair that is closest for its elements: distance (Å), its share of the sum of covalent radii, the two atoms.
    Infinite, without atoms, where no two atoms are near."""

    distance_A: float
    share: float
    atoms: tuple[int, int] | None


def closest_pair(structure: Structure) -> Closest:
    """The pair with the smallest distance as a share of the sum of its covalent radii, periodic images included."""
    i, j, distance, share, _ = _pairs(structure, structure.positions)
    if not len(distance):
        return Closest(np.inf, np.inf, None)
    k = int(share.argmin())
    return Closest(float(distance[k]), float(share[k]), (int(i[k]), int(j[k])))


def held_apart(structure: Structure, share: float) -> Structure:
    """The structure with every pair that is closer than `share` of the sum of its covalent radii moved apart to it, along the line
    between its atoms (a projection onto the bound, pair by pair, a few times over). What is left, `broken` refuses."""
    positions = structure.positions
    for _ in range(ROUNDS):
        i, j, distance, shares, vectors = _pairs(structure, positions)
        # Every pair is listed in both directions; a pair with its own image (i == j) only a larger cell can part.
        near = np.flatnonzero((shares < share) & (i != j) & (distance > 0))
        if not len(near):
            break
        missing = (distance * (share / shares - 1) * OVERSHOOT)[near] / distance[near]
        positions = positions.copy()
        # From i to j: half of it for each, and each listing moves its first atom.
        np.add.at(positions, i[near], -0.5 * missing[:, None] * vectors[near])
    return structure if positions is structure.positions else replace(structure, positions=positions)


def _pairs(structure: Structure, positions: NDArray[np.float64]) -> tuple[Any, ...]:
    radii = covalent_radii[structure.numbers]
    reach = REACH * 2 * float(radii.max())
    heights = 1 / np.linalg.norm(np.linalg.inv(structure.cell), axis=0) if structure.periodic else np.array([np.inf])
    if len(positions) <= SMALL and 2 * reach < heights.min():
        # A vector shorter than half of every height of the cell is that to the nearest image.
        apart = positions[None] - positions[:, None]
        if structure.periodic:
            apart -= np.round(apart @ np.linalg.inv(structure.cell)) @ structure.cell
        lengths = np.linalg.norm(apart, axis=-1)
        np.fill_diagonal(lengths, np.inf)
        i, j = np.nonzero(lengths < reach)
        return i, j, lengths[i, j], lengths[i, j] / (radii[i] + radii[j]), apart[i, j]
    i, j, distance, vectors = primitive_neighbor_list(
        "ijdD", structure.pbc, structure.cell, positions, reach, self_interaction=False
    )
    return i, j, distance, distance / (radii[i] + radii[j]), vectors


def largest_force(evaluation: Evaluation) -> float:
    """The largest F_nc or F_c of an atom, eV/Å."""
    return max(
        float(np.linalg.norm(f, axis=1).max()) for f in (evaluation.forces_direct, evaluation.forces_conservative)
    )


def broken(settings: Attack, close: Closest, fmax: float, above_eV_per_atom: float) -> tuple[str, str] | None:
    """The first guard that a structure breaks, as (name, words); None where it breaks none."""
    if close.share < settings.closest:
        return "closest", (
            f"two atoms would come within {close.distance_A:.2f} Å, {close.share:.2f} of the sum of their covalent radii "
            f"(at least {settings.closest:g})"
        )
    if above_eV_per_atom > settings.window_eV_per_atom:
        return "window", (
            f"the energy would rise to {above_eV_per_atom:.3g} eV/atom above the start (at most {settings.window_eV_per_atom:g})"
        )
    if fmax > settings.max_force_eV_per_A:
        return (
            "force",
            f"an atom would feel {fmax:.3g} eV/Å (at most {settings.max_force_eV_per_A:g})",
        )
    return None
