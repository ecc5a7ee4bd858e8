"""Slopes and means of correlated series with honest intervals, and thinning for plots. Pure functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from scipy.stats import t as student

from fdcore.errors import UsageError

# Averages over so many equal parts, fine and coarse: fine ones wipe out fast oscillations, coarse ones also see through noise and slow
# swings on top of a wandering energy. With each, by how much minus twice the logarithm of the likelihood may exceed its smallest value.
BLOCKS = 64
SCALES = ((BLOCKS, 2.0), (16, 0.5))
FEWEST = 8
# Numbers of a bootstrap that are held at once.
AT_ONCE = 4_000_000
# Two points are always on a line.
FEWEST_PAIRS = 3
# A bootstrap of fewer independent groups says nothing of how they differ.
FEWEST_GROUPS = 5
# Samples that differ by less than this differ by rounding; what is said of things whose every sample is the same.
NO_WIDTH = 1e-9
IN_ORDER = "all in order"
# Correlations of neighbouring parts that are considered, close together near 1 where a little changes much.
_RHO = np.concatenate([np.linspace(-0.6, 0.6, 13), 1 - np.geomspace(0.35, 1e-4, 28)])


@dataclass(frozen=True)
class Slope:
    """A fitted slope with the half width of its confidence interval, None where too few points say anything about it."""

    slope: float
    half_width: float | None
    confidence: float = 0.95

    @property
    def low(self) -> float | None:
        return None if self.half_width is None else self.slope - self.half_width

    @property
    def high(self) -> float | None:
        return None if self.half_width is None else self.slope + self.half_width

    @property
    def significant(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.half_width is not None and abs(self.slope) > self.half_width

    def scaled(self, factor: float) -> Slope:
        """The same in another unit."""
        half = None if self.half_width is None else abs(factor) * self.half_width
        return Slope(self.slope * factor, half, self.confidence)


def fitted_slope(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> Slope | None:
    """The least squares slope of y against x, in units of y per x, with an interval that respects correlation.

    Neighbouring points of a simulation are not independent, and the energy error of a non-conservative force is an integral of
    a fluctuating power: its residual may wander. The series is averaged over at most 64 parts; their residuals are taken as an
    autoregressive process of first order, which reaches from white noise (rho = 0) to a random walk (rho = 1). The interval is the
    widest one among all rho that the restricted likelihood does not rule out (Patterson & Thompson 1971; it counts the fitted
    parameters, so that short series do not look less correlated than they are), with 64 parts and with 16. Its coverage is tested by
    simulation for white noise, correlated noise, oscillation, random walks, and mixtures of these, with and without a trend.

    None without two different x. Raises UsageError for numbers that are not finite, and for a confidence that is no share.
    """
    at, values = _pair(x, y)
    if not 0 < confidence < 1:
        raise UsageError(f"A confidence of {confidence!r} is not between 0 and 1.", "Use 0.95.")
    if len(at) < 2 or np.ptp(at) == 0:
        return None
    slope = _least_squares(at, values)
    if len(at) < FEWEST:
        return Slope(slope, None, confidence)
    order = np.argsort(at, kind="stable")
    at, values = at[order], values[order]
    half = 0.0
    for count, credible in SCALES:
        if count < BLOCKS and len(values) < 2 * count:
            continue
        parts, centred = _blocks(values, count), _blocks(at, count)
        centred = (centred - centred.mean()) / np.ptp(at)
        n = len(parts)
        if not centred.any():
            return Slope(slope, None, confidence)
        weights = centred / (centred @ centred) / np.ptp(at)
        variance = _variance(np.stack([np.ones(n), centred], 1), weights, parts, credible, averaged=n < len(values))
        half = max(half, float(student.ppf(0.5 + confidence / 2, n - 2)) * math.sqrt(variance))
    return Slope(slope, half, confidence)


def mean_with_error(y: ArrayLike) -> tuple[float, float | None]:
    """The mean and its standard error under the same model of correlation; None with fewer than 8 points, or where the
    whole series is correlated with itself.

    Raises UsageError for numbers that are not finite, or none at all.
    """
    values, _ = _pair(y, y)
    if not len(values):
        raise UsageError("No numbers to average.")
    mean = float(values.mean())
    if len(values) < FEWEST:
        return mean, None
    parts = _blocks(values)
    n = len(parts)
    variance = _variance(np.ones((n, 1)), np.full(n, 1 / n), parts, SCALES[0][1], averaged=n < len(values))
    # A mean of fewer than two independent numbers has an error that the series itself cannot tell.
    known = 2 * variance <= float(parts.var(ddof=1)) or not variance
    return mean, math.sqrt(variance) if known else None


def thin(x: ArrayLike, columns: Mapping[str, ArrayLike], most: int) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """At most `most` rows of a long series for a plot, in order, with the first and the last: the rows that hold the smallest and
    the largest value of every column in every stretch of it, so that no spike is lost. NaN is never preferred to a number.

    Raises UsageError when `most` is too small to hold two rows per column.
    """
    at = np.asarray(x)
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    if any(len(column) != len(at) for column in arrays.values()):
        raise UsageError("Columns of the same length as x are needed.")
    if len(at) <= most:
        return at, arrays
    if most < 2 * max(1, len(arrays)) + 2:
        raise UsageError(f"{most} rows cannot show {len(arrays)} columns.")
    stretches = max(1, (most - 2) // (2 * max(1, len(arrays))))
    edges = np.linspace(0, len(at), stretches + 1).astype(int)
    chosen = [np.array([0, len(at) - 1])]
    for column in arrays.values():
        for extreme, fill in ((np.argmin, np.inf), (np.argmax, -np.inf)):
            known = np.where(np.isnan(column), fill, column)
            chosen.append(np.array([a + extreme(known[a:b]) for a, b in pairwise(edges)]))
    rows = np.unique(np.concatenate(chosen))
    return at[rows], {name: column[rows] for name, column in arrays.items()}


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    at, values = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
    if len(at) != len(values):
        raise UsageError(f"Two series of the same length are needed, not {len(at)} and {len(values)}.")
    if not (np.isfinite(at).all() and np.isfinite(values).all()):
        raise UsageError("A slope or a mean needs finite numbers only.")
    return at, values


def _least_squares(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    centred = x - x.mean()
    return float(centred @ (y - y.mean()) / (centred @ centred))


def _blocks(values: NDArray[np.float64], count: int = BLOCKS) -> NDArray[np.float64]:
    if len(values) <= count:
        return values
    edges = np.linspace(0, len(values), count + 1).astype(int)
    return np.add.reduceat(values, edges[:-1]) / np.diff(edges)


def _variance(
    design: NDArray[np.float64],
    weights: NDArray[np.float64],
    y: NDArray[np.float64],
    credible: float,
    *,
    averaged: bool,
) -> float:
    """Variance of `weights` @ y, (n,), where y is `design` (n, p) times something plus an autoregressive residual: the largest over
    every rho whose restricted likelihood is near enough to the best one."""
    n, p = design.shape
    # Scaled, so that units do not matter to the arithmetic.
    size = max(float(np.abs(y - y.mean()).max()), 1e-300)
    target = (y - y.mean()) / size
    first = np.sqrt(1 - _RHO**2)[:, None]
    # Prais-Winsten: differences that are independent if rho is right, (R, n) and (R, n, p).
    white = np.concatenate([first * target[0], target[1:] - _RHO[:, None] * target[:-1]], 1)
    rows = np.concatenate([first[:, :, None] * design[0], design[1:] - _RHO[:, None, None] * design[:-1]], 1)
    normal = np.einsum("rni,rnj->rij", rows, rows)
    right = np.einsum("rni,rn->ri", rows, white)
    solved = np.linalg.solve(normal, right[..., None])[..., 0]
    residual = np.maximum((white**2).sum(1) - (right * solved).sum(1), 1e-30)
    minus_twice = (n - p) * np.log(residual) + np.log(np.linalg.det(normal)) - np.log(1 - _RHO**2)
    innovation = residual / (n - p)
    if averaged:
        # The averages of a random walk are no random walk: their steps have two thirds of its variance.
        innovation = innovation * (1 + 0.5 * np.clip(_RHO, 0, 1) ** 4)
    # A constant in the covariances cancels where weights sum to zero, and only without it is the limit of a random walk finite.
    constant = 1.0 if abs(weights.sum()) < 1e-9 else 0.0
    spread = np.einsum("i,rij,j->r", weights, (_powers(n) - constant) / (1 - _RHO**2)[:, None, None], weights)
    near = minus_twice <= minus_twice.min() + credible
    return float((innovation * spread)[near].max()) * size**2


@lru_cache(maxsize=64)
def _powers(n: int) -> NDArray[np.float64]:
    """rho to the distance of two points, (R, n, n)."""
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    return _RHO[:, None, None] ** apart


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's r_s of n pairs with its bootstrap interval; all None where it does not exist (fewer than 3 pairs, or one side is
    constant), the interval alone where the pairs belong to too few `groups` to say anything about it, or are all in order: every sample of
    them is so, too, which says nothing of what others would be."""

    n: int
    r_s: float | None
    low: float | None
    high: float | None
    confidence: float = 0.95
    groups: int = 0

    @property
    def in_order(self) -> bool:
        """Whether one grows, or falls, with the other without an exception."""
        return self.r_s is not None and abs(self.r_s) > 1 - NO_WIDTH

    @property
    def text(self) -> str:
        """ "0.93 (0.88 to 0.96)", or what of it exists."""
        return "–" if self.r_s is None else bracketed(self.r_s, self.low, self.high, self.in_order)


def bracketed(value: float, low: float | None, high: float | None, in_order: bool) -> str:
    """ "0.93 (0.88 to 0.96)"; without an interval the reason where it is that all are in order."""
    if low is not None:
        return f"{value:.2f} ({low:.2f} to {high:.2f})"
    return f"{value:.2f} ({IN_ORDER})" if in_order else f"{value:.2f}"


def rank_correlation(
    x: ArrayLike,
    y: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> RankCorrelation:
    """Spearman's rank correlation, ties sharing their mean rank, with a percentile bootstrap interval (Efron 1979).

    groups (n): what belongs together, e.g. the structures of one climb, which are alike. Whole groups are drawn, each as often as chance
    has it (the cluster bootstrap; Field & Welsh 2007), so that more structures of the same climb do not make the interval narrower.
    There is no interval from fewer than FEWEST_GROUPS of them. None: every pair is one of its own.
    Raises UsageError for numbers that are not finite or arrays of different lengths.
    """
    a, b = _pair(x, y)
    n = len(a)
    of = np.arange(n) if groups is None else numbered(groups)
    if len(of) != n:
        raise UsageError(f"{len(of)} groups for {n} pairs.")
    if n < FEWEST_PAIRS or np.ptp(a) == 0 or np.ptp(b) == 0:
        return RankCorrelation(n, None, None, None, confidence, len(np.unique(of)))
    [middle] = _correlation(rankdata(a)[None], rankdata(b)[None])
    count = int(of.max()) + 1
    if groups is not None and count < FEWEST_GROUPS:
        return RankCorrelation(n, float(middle), None, None, confidence, count)
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = generator.integers(0, count, (samples, count))
    parts = np.array_split(drawn, -(-samples * n // AT_ONCE))
    found = np.concatenate([_resampled(a, b, of, rows, count) for rows in parts])
    # A sample of one pair over and over has no correlation.
    found = found[np.isfinite(found)]
    return RankCorrelation(n, float(middle), *percentiles(found, confidence), confidence, count)


def percentiles(found: NDArray[np.float64], confidence: float) -> tuple[float | None, float | None]:
    """The ends of the percentile interval of bootstrap samples; None where they are all the same: that has no width, and is no certainty."""
    if not len(found) or np.ptp(found) < NO_WIDTH:
        return None, None
    tail = 0.5 * (1 - confidence)
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)


def _resampled(
    a: NDArray[np.float64], b: NDArray[np.float64], of: NDArray[np.int64], drawn: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """The correlation in each of several samples: the groups that were `drawn` (samples, count)."""
    times = np.stack([np.bincount(row, minlength=count) for row in drawn])[:, of].astype(np.float64)
    return _correlation(_ranks(a, times), _ranks(b, times), times)


@dataclass(frozen=True)
class Within:
    """The mean of the r_s of several groups, each taken by itself, with the half width of its interval (Student's t over the groups, which
    differ also by chance; None for fewer than FEWEST_GROUPS, and where all are the same). `groups`: those that have one."""

    groups: int
    mean: float | None
    half_width: float | None
    confidence: float = 0.95

    @property
    def low(self) -> float | None:
        return None if self.mean is None or self.half_width is None else max(-1.0, self.mean - self.half_width)

    @property
    def high(self) -> float | None:
        return None if self.mean is None or self.half_width is None else min(1.0, self.mean + self.half_width)

    @property
    def text(self) -> str:
        """ "0.71 (0.60 to 0.82)", or what of it exists."""
        if self.mean is None:
            return "–"
        return bracketed(self.mean, self.low, self.high, abs(self.mean) > 1 - NO_WIDTH)


def mean_within(found: Sequence[RankCorrelation], confidence: float = 0.95) -> Within:
    """The mean of the correlations of groups that have one: free of how much the groups differ from each other, which inflates that of all
    structures together."""
    values = np.array([r.r_s for r in found if r.r_s is not None], dtype=np.float64)
    n = len(values)
    if not n:
        return Within(0, None, None, confidence)
    half = None
    if n >= FEWEST_GROUPS and np.ptp(values) > NO_WIDTH:
        half = float(student.ppf(0.5 + confidence / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return Within(n, float(values.mean()), half, confidence)


def numbered(groups: Sequence[Hashable]) -> NDArray[np.int64]:
    """0, 1, ... in the order in which each first occurs."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(g, len(known)) for g in groups], dtype=np.int64)


def _ranks(values: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks of n values in each of several samples that hold them so many `times` (samples, n), ties sharing their mean rank."""
    _, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    together = np.add.reduceat(times[:, order], starts, axis=1)
    return (np.cumsum(together, axis=1) - 0.5 * together + 0.5)[:, place]


def _correlation(
    a: NDArray[np.float64], b: NDArray[np.float64], times: NDArray[np.float64] | float = 1.0
) -> NDArray[np.float64]:
    """Pearson's r of each row of a with that of b, every pair counted so many times; NaN where one is constant."""
    times = np.broadcast_to(times, a.shape)
    total = times.sum(axis=1, keepdims=True)
    a, b = (x - (times * x).sum(axis=1, keepdims=True) / total for x in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (times * a * b).sum(axis=1) / np.sqrt((times * a * a).sum(axis=1) * (times * b * b).sum(axis=1))
