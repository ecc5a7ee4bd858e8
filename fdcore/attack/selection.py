"""From everything that was visited to a dataset: plausible, high in U_Delta, and no two alike. Pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fdcore.attack.environments import distances
from fdcore.attack.settings import Choice

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Selected:
    """Rows of the visited structures in the order of choice, what each differs from its nearest among those chosen before it (the first:
    infinite), and how many rows reached the rise that was asked for, and of those how many were left out for being like another."""

    rows: tuple[int, ...]
    novelty: tuple[float, ...]
    reached: int
    alike: int


def select(force_delta: Array, rise: Array, allowed: NDArray[np.bool_], described: Array, choice: Choice) -> Selected:
    """Choose among M visited structures: U_Delta (M,) eV/Å, U_Delta over that of the origin (M,; infinite where that is zero),
    whether all guards hold (M,), and their environments (M, D) in the unit of a random displacement.

    Highest U_Delta first; with `spread` the targets are equally spaced between the lowest and the highest U_Delta, and each takes the
    nearest structure that is like none chosen before. A structure is like another at `apart` or less.
    """
    candidates = np.flatnonzero(allowed & np.isfinite(force_delta) & (rise >= choice.rise))
    if not len(candidates):
        return Selected((), (), 0, 0)
    # Distance of every candidate to the nearest one chosen so far.
    nearest = np.full(len(candidates), np.inf)
    u = force_delta[candidates]
    rows: list[int] = []
    novelty: list[float] = []

    def take(k: int) -> None:
        rows.append(int(candidates[k]))
        novelty.append(float(nearest[k]))
        np.minimum(nearest, distances(described[candidates], described[candidates[k]]), out=nearest)
        nearest[k] = -1.0

    targets = np.linspace(u.max(), u.min(), choice.count) if choice.spread else np.full(choice.count, u.max())
    for target in targets:
        free = np.flatnonzero(nearest > choice.apart)
        if not len(free):
            break
        # argmin takes the first of equals, which was visited first.
        take(int(free[np.abs(u[free] - target).argmin()]))
    # In the order of U_Delta, however they were found.
    order = sorted(range(len(rows)), key=lambda k: (-force_delta[rows[k]], rows[k]))
    alike = int(((nearest <= choice.apart) & (nearest >= 0)).sum())
    return Selected(tuple(rows[k] for k in order), tuple(novelty[k] for k in order), len(candidates), alike)
