"""How far a force is from being the slope of an energy: pure functions of arrays.

Definitions are those of Bigi, Langer, Ceriotti 2025 (arXiv 2412.11569) and of ml-peg, so that figures compare: J = dF/dR in eV/Å^2, row
(i, alpha), column (j, beta); A = (J - J^T)/2; lambda = |A| / |J| in the Frobenius norm (their eq. 7), of the whole matrix, of the entries of an atom, or of a
pair of atoms. Work is the integral of F . dr along a closed path, in eV.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fdcore.errors import UsageError

Array = NDArray[np.float64]


# ---- the asymmetry of the Jacobian ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asymmetry:
    """lambda from `probes` of `dimensions` directions (all of them: nothing is left to chance, and standard_error is 0), with the norms
    |J| and |A| in eV/Å^2 that it is the ratio of."""

    value: float
    standard_error: float
    norm: float
    antisymmetric_norm: float
    probes: int
    dimensions: int

    @property
    def exact(self) -> bool:
        return self.probes >= self.dimensions


def antisymmetric(jacobian: ArrayLike) -> Array:
    """A = (J - J^T)/2 (n, n)."""
    j = np.asarray(jacobian, dtype=np.float64)
    if j.ndim != 2 or j.shape[0] != j.shape[1] or not len(j):
        raise UsageError(f"A square Jacobian is needed, not one of shape {j.shape}.")
    return 0.5 * (j - j.T)


def of_jacobian(jacobian: ArrayLike) -> Asymmetry:
    """lambda of a whole Jacobian (n, n). UsageError for one that is zero: a force that does not change has no lambda."""
    odd = float(np.linalg.norm(antisymmetric(jacobian)))
    whole = float(np.linalg.norm(np.asarray(jacobian, dtype=np.float64)))
    n = len(np.asarray(jacobian))
    return Asymmetry(_ratio(odd, whole), 0.0, whole, odd, n, n)


def of_products(forward: ArrayLike, backward: ArrayLike) -> Asymmetry:
    """lambda from J q_k (`forward`, (K, n)) and J^T q_k (`backward`) along K random orthonormal directions.

    (n/K) sum |J q_k - J^T q_k|^2 / 4 and (n/2K) sum (|J q_k|^2 + |J^T q_k|^2) are unbiased estimates of |A|^2 and |J|^2. The error of the
    root of their ratio is that of leaving each direction out in turn (jackknife), times sqrt(1 - K/n): directions are drawn without
    going back, and all n of them leave none out.
    """
    a, b = np.asarray(forward, dtype=np.float64), np.asarray(backward, dtype=np.float64)
    return of_squares(((a - b) ** 2).sum(1) / 4, 0.5 * ((a**2).sum(1) + (b**2).sum(1)), a.shape[1])


def of_squares(odd: ArrayLike, whole: ArrayLike, dimensions: int) -> Asymmetry:
    """As `of_products`, from |A q_k|^2 (K,) and the squares whose mean is |J|^2 / n."""
    x, y = np.asarray(odd, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    count = len(x)
    if not count or len(y) != count or count > dimensions:
        raise UsageError(f"{count} and {len(y)} probes of {dimensions} dimensions cannot be used.")
    scale = math.sqrt(dimensions)
    norms = scale * math.sqrt(x.mean()), scale * math.sqrt(y.mean())
    left_out = np.sqrt(np.divide(x.sum() - x, np.maximum(y.sum() - y, 1e-300)))
    return Asymmetry(_ratio(*norms), _jackknife(left_out, count, dimensions), norms[1], norms[0], count, dimensions)


def of_pairs(crossed: ArrayLike, whole: ArrayLike, dimensions: int) -> Asymmetry:
    """lambda where only J q_k can be had (differences of a force that shows no derivatives), from `crossed` (K, K), q_l . J q_k in row l and
    column k, and |J q_k|^2 (K,).

    q_l . J q_k - q_k . J q_l is twice an entry of A in the random basis, so n (n - 1) / K (K - 1) times the sum of squares over the pairs
    is unbiased for |A|^2. It takes more directions than `of_products` for the same error.
    """
    c, y = np.asarray(crossed, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    count = len(y)
    if count < 3 or c.shape != (count, count) or count > dimensions:
        raise UsageError(f"{count} probes of {dimensions} dimensions cannot be used in pairs.", "Take three at least.")
    entries = (0.5 * (c - c.T)) ** 2
    pairs = dimensions * (dimensions - 1) / (count * (count - 1))
    odd, mean = math.sqrt(pairs * entries.sum()), math.sqrt(dimensions * y.mean())
    # Without direction k: its row and its column go.
    fewer = dimensions * (dimensions - 1) / ((count - 1) * (count - 2))
    squares = fewer * np.maximum(entries.sum() - 2 * entries.sum(0), 0)
    left_out = np.sqrt(squares / np.maximum(dimensions * (y.sum() - y) / (count - 1), 1e-300))
    return Asymmetry(_ratio(odd, mean), _jackknife(left_out, count, dimensions), mean, odd, count, dimensions)


def _ratio(odd: float, whole: float) -> float:
    if not whole:
        raise UsageError("The force does not change when atoms move, so there is no asymmetry to measure.")
    return odd / whole


def _jackknife(left_out: Array, count: int, dimensions: int) -> float:
    if count == dimensions:
        return 0.0
    if count < 2:
        return math.inf
    spread = float(((left_out - left_out.mean()) ** 2).sum()) * (count - 1) / count
    return math.sqrt(spread * (1 - count / dimensions))


def by_atom(jacobian: ArrayLike) -> tuple[Array, Array]:
    """(lambda_i, share_i), each (N,): lambda of the entries of each atom (its rows and columns), and what of |A|^2 stands in its rows; the
    shares sum to one."""
    odd, whole = _block_squares(antisymmetric(jacobian)), _block_squares(jacobian)
    rows, total = odd.sum(1), float(odd.sum())
    entries = 0.5 * (whole.sum(1) + whole.sum(0))
    own = np.sqrt(np.divide(rows, entries, out=np.zeros_like(rows), where=entries > 0))
    return own, np.asarray(rows / total if total > 0 else np.zeros_like(rows))


@dataclass(frozen=True)
class Pairs:
    """Blocks of J by pair of atoms i <= j: |J_ij| (the root mean square of both directions) and |A_ij| in eV/Å^2, each (P,)."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    norm: Array
    antisymmetric_norm: Array


def by_pair(jacobian: ArrayLike) -> Pairs:
    """The 3 x 3 blocks of every pair of atoms, and those of every atom with itself; their lambda_ij is the ratio of the two norms."""
    odd, whole = _block_squares(antisymmetric(jacobian)), _block_squares(jacobian)
    i, j = np.triu_indices(len(whole))
    return Pairs(i, j, np.sqrt(0.5 * (whole[i, j] + whole[j, i])), np.sqrt(odd[i, j]))


def _block_squares(matrix: ArrayLike) -> Array:
    m = np.asarray(matrix, dtype=np.float64)
    n = len(m) // 3
    return (m.reshape(n, 3, n, 3) ** 2).sum((1, 3))


def directions(dimensions: int, count: int, seed: Sequence[int]) -> Array:
    """`count` random orthonormal directions (count, n): the first rows of a random rotation. More of them begin with the same ones."""
    drawn = np.random.default_rng(list(seed)).standard_normal((count, dimensions)).T
    found, upper = np.linalg.qr(drawn)
    # Signs that the algorithm chooses would not be random.
    return (found * np.sign(np.diag(upper))).T


# ---- closed paths --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Path:
    """Points of a closed path at equal steps of its phase: positions (T, N, 3) in Å and their derivatives by the phase (T, N, 3) in Å."""

    positions: Array
    velocities: Array

    @property
    def length_A(self) -> float:
        """In the space of all 3N coordinates."""
        return 2 * math.pi * float(np.sqrt((self.velocities**2).sum((1, 2))).mean())


def phases(count: int) -> Array:
    return np.linspace(0.0, 2 * math.pi, count, endpoint=False)


def circle(positions: ArrayLike, plane: ArrayLike, radius_A: float, count: int) -> Path:
    """The circle r(t) = r_0 + rho (cos t e_1 + sin t e_2) around the structure, `plane` (2, 3N) orthonormal, rho = radius_A sqrt(N): the root
    mean square displacement of an atom is radius_A everywhere on it."""
    r = np.asarray(positions, dtype=np.float64)
    first, second = np.asarray(plane, dtype=np.float64).reshape(2, *r.shape)
    rho, t = radius_A * math.sqrt(len(r)), phases(count)[:, None, None]
    return Path(r + rho * (np.cos(t) * first + np.sin(t) * second), rho * (np.cos(t) * second - np.sin(t) * first))


def small_loop_work(jacobian: ArrayLike, plane: ArrayLike, radius_A: float) -> float:
    """What the work on such a circle comes to for a small radius (Stokes): 2 pi rho^2 e_2 . A e_1, in eV."""
    first, second = np.asarray(plane, dtype=np.float64)
    rho2 = radius_A**2 * (len(first) // 3)
    return 2 * math.pi * rho2 * float(second @ antisymmetric(jacobian) @ first)


def turning_molecule(
    positions: ArrayLike,
    members: Sequence[int],
    arms: ArrayLike,
    axis: ArrayLike,
    angle_deg: float,
    stretch: float,
    count: int,
) -> Path:
    """One molecule turns and stretches while all other atoms stay, in the manner of Bigi et al. (their appendix E).

    Its atoms `members` (m,), at `arms` (m, 3) in Å from its centre, go to the centre + (1 + stretch cos t) R(angle sin t) arms, R turning
    about `axis`.
    """
    r, u = np.asarray(positions, dtype=np.float64), np.asarray(arms, dtype=np.float64)
    k = np.asarray(axis, dtype=np.float64) / np.linalg.norm(axis)
    cross = np.array([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])
    t, most = phases(count), math.radians(angle_deg)
    turned, velocities = np.repeat(r[None], count, 0), np.zeros((count, *r.shape))
    for n, phase in enumerate(t):
        angle, scale = most * math.sin(phase), 1 + stretch * math.cos(phase)
        turn = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
        placed = u @ turn.T
        turned[n, members] += scale * placed - u
        velocities[n, members] = -stretch * math.sin(phase) * placed + scale * most * math.cos(phase) * placed @ cross.T
    return Path(turned, velocities)


@dataclass(frozen=True)
class Work:
    """The integral around a closed path, in eV, and how much it differs from that over every other point."""

    value: float
    error: float
    points: int


def work(rates: ArrayLike) -> Work:
    """From F . dr/dt at equal steps of t (T,), T even. The trapezoidal rule over a whole period converges faster than any power of the
    step where the force is smooth."""
    values = np.asarray(rates, dtype=np.float64)
    if len(values) < 4 or len(values) % 2:
        raise UsageError(f"An even number of points of a closed path is needed, not {len(values)}.")
    whole, half = 2 * math.pi * values.mean(), 2 * math.pi * values[::2].mean()
    return Work(float(whole), float(abs(whole - half)), len(values))


# ---- along lines, and under symmetry -------------------------------------------------------------------------------


def unexplained(energies: ArrayLike, slopes: ArrayLike, step_A: float) -> Array:
    """E(k+1) - E(k) less the integral of the slope dE/ds over the step, (T - 1,) in eV: zero to the fourth power of a step where the energy is
    smooth, and its jump where it is not.

    The slope is integrated by formulas of fourth order (two points on either side of a step, at the ends four on one side), by the trapezoid
    where there are fewer than four points.
    """
    e, f = np.asarray(energies, dtype=np.float64), np.asarray(slopes, dtype=np.float64)
    if len(e) != len(f) or len(e) < 2:
        raise UsageError(f"Energies and slopes at the same points are needed, not {len(e)} and {len(f)}.")
    area = 0.5 * (f[1:] + f[:-1])
    if len(e) > 3:
        area[1:-1] = (13 * (f[1:-2] + f[2:-1]) - f[:-3] - f[3:]) / 24
        area[0] = (9 * f[0] + 19 * f[1] - 5 * f[2] + f[3]) / 24
        area[-1] = (9 * f[-1] + 19 * f[-2] - 5 * f[-3] + f[-4]) / 24
    return np.diff(e) - step_A * area


def rotation(seed: Sequence[int]) -> Array:
    """A random rotation (3, 3), evenly distributed."""
    found = directions(3, 3, seed)
    return found if np.linalg.det(found) > 0 else -found


def rms(values: ArrayLike) -> float:
    """Root mean square of all components."""
    return float(np.sqrt(np.mean(np.square(np.asarray(values, dtype=np.float64)))))
