"""From everything that was visited to a dataset: plausible, high in U_Delta, and no two alike. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdcore.attack.environments import distances
from fdcore.attack.settings import NO_FORCE_DELTA, Choice

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Selected:
    """Rows of the visited structures in the order of choice, what each differs from its nearest among those chosen before it (the first:
    infinite), and how many rows reached the rise that was asked for, and of those how many were left out for being like another."""

    rows: tuple[int, ...]
    novelty: tuple[float, ...]
    reached: int
    alike: int


def rises(force_delta: Array, parents: NDArray[np.int64], origins: Mapping[int, float]) -> Array:
    """U_Delta (M,) over that of the origin of each (by its number, eV/Å): infinite where that is rounding, NaN where it is not known."""
    first = np.array([origins.get(int(p), np.nan) for p in parents])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(first > NO_FORCE_DELTA, force_delta / first, np.inf)


def choose(
    steps: Mapping[str, NDArray[Any]], origins: Mapping[int, float], units: Mapping[int, float], choice: Choice
) -> Selected:
    """A dataset from the table `steps` of the task `attack` (fdcore/tasks/attack.py), with U_Delta (eV/Å) and the unit of distance of
    every origin."""
    force_delta, parents = steps["force_delta_eV_per_A"], steps["parent"].astype(np.int64)
    unit = np.array([max(units.get(int(p), 1.0), 1e-9) for p in parents])
    return select(
        force_delta,
        rises(force_delta, parents, origins),
        steps["allowed"] > 0,
        steps["environments"].astype(np.float64) / unit[:, None],
        choice,
        parents,
    )


def select(
    force_delta: Array,
    rise: Array,
    allowed: NDArray[np.bool_],
    described: Array,
    choice: Choice,
    parents: NDArray[np.int64] | None = None,
) -> Selected:
    """Choose among M visited structures: U_Delta (M,) eV/Å, U_Delta over that of the origin (M,; infinite where that is zero),
    whether all guards hold (M,), their environments (M, D) in the unit of a random displacement, and which origin each comes from
    (M,; None: all from one).

    Every origin in turn gives one, that with the largest rise first, until none has any left: U_Delta of different materials says
    nothing of which is worth more. Of one origin the highest U_Delta comes first; with `spread` the targets are equally spaced between
    its lowest and its highest U_Delta, and each takes the nearest structure that is like none chosen before. A structure is like
    another at `apart` or less.
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

    of = np.zeros(len(candidates), dtype=int) if parents is None else parents[candidates]
    turn = sorted(np.unique(of).tolist(), key=lambda p: (-rise[candidates[of == p]].max(), p))
    share = -(-choice.count // len(turn))
    targets = {}
    for parent in turn:
        low, high = u[of == parent].min(), u[of == parent].max()
        targets[parent] = np.linspace(high, low, share) if choice.spread else np.full(share, high)
    k = 0
    while turn:
        for parent in list(turn):
            if len(rows) == choice.count:
                turn = []
                break
            free = np.flatnonzero((nearest > choice.apart) & (of == parent))
            if not len(free):
                turn.remove(parent)
                continue
            # argmin takes the first of equals, which was visited first.
            take(int(free[np.abs(u[free] - targets[parent][k % share]).argmin()]))
        k += 1
    # In the order of U_Delta, however they were found.
    order = sorted(range(len(rows)), key=lambda k: (-force_delta[rows[k]], rows[k]))
    alike = int(((nearest <= choice.apart) & (nearest >= 0)).sum())
    return Selected(tuple(rows[k] for k in order), tuple(novelty[k] for k in order), len(candidates), alike)
