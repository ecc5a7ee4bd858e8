"""The Force Delta: what two forces of one model say about each other. Pure functions of arrays, eV/Å throughout.

Equation numbers: "When forces disagree" (the paper this project implements).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fdcore.errors import UsageError


def _force_pair(forces_a: ArrayLike, forces_b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a = np.asarray(forces_a, dtype=np.float64)
    b = np.asarray(forces_b, dtype=np.float64)
    if a.ndim != 2 or a.shape[1:] != (3,) or a.shape != b.shape or len(a) == 0:
        raise UsageError(
            f"Two force arrays of the same shape (N, 3) are needed, N >= 1; got {a.shape} and {b.shape}.",
            "Pass the direct and the conservative force of the same structure.",
        )
    return a, b


def rms_difference(forces_a: ArrayLike, forces_b: ArrayLike) -> float:
    """Root mean square over all 3N components of the difference of two forces, each (N, 3) in eV/Å.

    With a reference as the second force this is the paper's eps_nc (direct) or eps_c (conservative).
    """
    a, b = _force_pair(forces_a, forces_b)
    return float(np.sqrt(np.mean((a - b) ** 2)))


def force_delta(forces_direct: ArrayLike, forces_conservative: ArrayLike) -> float:
    """U_Delta = sqrt(1/(3N) sum_i |F_nc,i - F_c,i|^2) in eV/Å (eq. 2). NaN in, NaN out."""
    return rms_difference(forces_direct, forces_conservative)


def force_delta_per_atom(forces_direct: ArrayLike, forces_conservative: ArrayLike) -> NDArray[np.float64]:
    """u_i = sqrt(|F_nc,i - F_c,i|^2 / 3), (N,) in eV/Å; its RMS over atoms is U_Delta."""
    a, b = _force_pair(forces_direct, forces_conservative)
    return np.sqrt(np.mean((a - b) ** 2, axis=1))


def net_force(forces: ArrayLike) -> NDArray[np.float64]:
    """Sum of a force (N, 3) over atoms, (3,) in eV/Å: zero for every force that is a gradient."""
    return np.asarray(forces, dtype=np.float64).sum(axis=0)


def net_torque(forces: ArrayLike, positions: ArrayLike) -> NDArray[np.float64]:
    """Sum of (r_i - mean r) x F_i, (3,) in eV: zero for the gradient force of a molecule (meaningless with periodicity)."""
    f = np.asarray(forces, dtype=np.float64)
    r = np.asarray(positions, dtype=np.float64)
    return np.cross(r - r.mean(axis=0), f).sum(axis=0)
