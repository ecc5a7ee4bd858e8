"""What keeps an adversarial structure plausible, and how close two atoms are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii
from ase.neighborlist import primitive_neighbor_list

from fdcore.attack.settings import Attack
from fdcore.records import Evaluation, Structure

# Distances are looked for up to this share of the sum of the two largest covalent radii.
REACH = 1.1


@dataclass(frozen=True)
class Closest:
    """The pair that is closest for its elements: distance (Å), its share of the sum of covalent radii, the two atoms.
    Infinite, without atoms, where no two atoms are near."""

    distance_A: float
    share: float
    atoms: tuple[int, int] | None


def closest_pair(structure: Structure) -> Closest:
    """The pair with the smallest distance as a share of the sum of its covalent radii, periodic images included."""
    radii = covalent_radii[structure.numbers]
    i, j, distance = primitive_neighbor_list(
        "ijd",
        structure.pbc,
        structure.cell,
        structure.positions,
        REACH * 2 * float(radii.max()),
        self_interaction=False,
    )
    if not len(distance):
        return Closest(np.inf, np.inf, None)
    share = distance / (radii[i] + radii[j])
    k = int(share.argmin())
    return Closest(float(distance[k]), float(share[k]), (int(i[k]), int(j[k])))


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
