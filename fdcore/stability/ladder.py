"""Copies of structures displaced at random, band by band: on what U_Delta and the errors of every model are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fdcore.records import Structure


@dataclass(frozen=True)
class Rung:
    """One copy: displaced by sigma_A per component, `parent` the structure it is made of."""

    structure: Structure
    sigma_A: float
    parent: int


def ladder(structures: Sequence[Structure], sigmas_A: Sequence[float], per_sigma: int, seed: int) -> list[Rung]:
    """`per_sigma` copies of every structure for every sigma. A copy depends on the seed, its structure's place and its own alone."""
    out = []
    for parent, structure in enumerate(structures):
        for band, sigma in enumerate(sigmas_A):
            for k in range(per_sigma):
                noise = np.random.default_rng([seed, parent, band, k]).normal(size=structure.positions.shape)
                moved = replace(structure, positions=structure.positions + sigma * noise, labels={})
                out.append(Rung(moved, float(sigma), parent))
    return out
