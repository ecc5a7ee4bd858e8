"""U_Delta of a model that shows no gradients: any energy and any force, by central differences of the energy along random directions.

With d = F_nc - F_c in n = 3N dimensions and K random orthonormal directions q_k (the first columns of a Haar-distributed rotation),
q_k . d = q_k . F_nc + dE/dq_k, and (n/K) sum_k (q_k . d)^2 is an unbiased estimate of |d|^2 = n U_Delta^2. Its share of |d|^2 is
n/K times a Beta(K/2, (n - K)/2) variable whatever d is, so that standard error and interval are exact, not estimated from a
handful of probes; with K = n directions nothing is left to chance, and F_c itself is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from fdcore import delta
from fdcore.errors import UsageError
from fdcore.records import FloatArray

# Root mean square displacement of a component (Å). Rounding of an energy in single precision (1e-5 eV) then changes U_Delta by about
# 1e-4 eV/Å, curvature of a stiff bond by less.
STEP_A = 5e-3
# Probes that are repeated at half the step, to see what the step itself does.
CHECKED = 3
# Beyond this share of U_Delta the error of the step is told.
STEP_MATTERS = 0.1
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Probed:
    """U_Delta (eV/Å) from `probes` of `dimensions` directions: its standard error, its 95 % interval, and what halving the step
    changes (RMS, eV/Å). forces_conservative and u_i (N,) only where every direction was probed."""

    energy: float
    forces_direct: FloatArray
    force_delta: float
    standard_error: float
    low: float
    high: float
    step_error: float
    probes: int
    dimensions: int
    forces_conservative: FloatArray | None

    @property
    def force_delta_per_atom(self) -> FloatArray | None:
        if self.forces_conservative is None:
            return None
        return delta.force_delta_per_atom(self.forces_direct, self.forces_conservative)

    @property
    def step_matters(self) -> bool:
        return self.step_error > STEP_MATTERS * self.force_delta


def probes_needed(n_atoms: int, precision: float) -> int:
    """Directions for a relative standard error of U_Delta of `precision`: about 1 / (2 precision^2) for a large structure, all 3N for
    a small one."""
    if not 0 < precision < 1:
        raise UsageError(f"A precision of {precision!r} is not between 0 and 1.", "Use 0.1 for ten per cent.")
    n = 3 * n_atoms
    return min(n, max(1, math.ceil(2 * n / (2 + 4 * precision**2 * (n + 2)))))


def probe(
    energy: Callable[[FloatArray], float],
    positions: FloatArray,
    forces_direct: FloatArray,
    *,
    probes: int,
    seed: int = 0,
    step_A: float = STEP_A,
) -> Iterator[int | Probed]:
    """Yields how many probes are done, and at last the Probed. `energy` of positions (N, 3) in eV, called 2 probes + 7 times at most.

    Raises UsageError for numbers of probes or steps that make no sense.
    """
    n = positions.size
    if not 1 <= probes <= n:
        raise UsageError(f"{probes} probes of {n} directions cannot be taken.", f"Use 1 to {n}.")
    if not 0 < step_A <= 0.1:
        raise UsageError(f"A step of {step_A!r} Å cannot be used.", "Use 0.005.")
    directions = _directions(n, probes, seed)
    length = step_A * math.sqrt(n)
    slopes, apart = np.zeros(probes), []
    for k in range(probes):
        way = directions[:, k].reshape(positions.shape)
        slopes[k] = _slope(energy, positions, way, length)
        if k < CHECKED:
            # Richardson: of the error at h, three quarters are gone at h/2.
            apart.append(4 / 3 * (slopes[k] - _slope(energy, positions, way, length / 2)))
        yield k + 1
    along = directions.T @ forces_direct.ravel() + slopes
    squares = float((along**2).sum())
    found = math.sqrt(squares / probes)
    spread = math.sqrt(2 * (n - probes) / (probes * (n + 2)))
    low, high = _interval(squares, probes, n)
    gradient = (directions @ slopes).reshape(positions.shape) if probes == n else None
    yield Probed(
        energy=energy(positions),
        forces_direct=forces_direct,
        force_delta=found,
        standard_error=0.5 * spread * found,
        low=low,
        high=high,
        step_error=float(np.sqrt(np.mean(np.square(apart)))),
        probes=probes,
        dimensions=n,
        forces_conservative=None if gradient is None else -gradient,
    )


def _slope(energy: Callable[[FloatArray], float], positions: FloatArray, way: FloatArray, length: float) -> float:
    return (energy(positions + length * way) - energy(positions - length * way)) / (2 * length)


def _directions(n: int, count: int, seed: int) -> FloatArray:
    """The first `count` columns (n, count) of a random rotation; the same seed and more of them begins with the same ones."""
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = generator.standard_normal((count, n)).T
    found, upper = np.linalg.qr(drawn)
    # Signs that the algorithm chooses would not be random.
    return found * np.sign(np.diag(upper))


def _interval(squares: float, probes: int, n: int) -> tuple[float, float]:
    """U_Delta between which the share of |d|^2 that the probes saw is no surprise."""
    if probes == n:
        exact = math.sqrt(squares / n)
        return exact, exact
    tail = 0.5 * (1 - CONFIDENCE)
    few, many = beta.ppf([tail, 1 - tail], probes / 2, (n - probes) / 2)
    return math.sqrt(squares / many / n), math.sqrt(squares / few / n) if few > 0 else math.inf
