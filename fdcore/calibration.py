"""Whether a predicted error is as large as the true one: by bins, and after one factor that was fitted elsewhere. Pure functions of arrays.

Predicted and true are RMS errors of structures in eV/Å; a structure counts as one. Where either is below VANISHING, as at a perfect crystal
whose forces are zero by symmetry, their ratio is rounding, and the structure is left out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fdcore.errors import UsageError
from fdcore.statistics import FEWEST_GROUPS, numbered

Array = NDArray[np.float64]
# Structures in a bin, at least, and bins, at most: an RMS of fewer says little.
IN_BIN, MOST_BINS = 5, 8
# Fewer structures than this, half to fit and half to test on, say nothing.
FEWEST = 20
SAMPLES = 2000
# eV/Å: less than any label is good to.
VANISHING = 1e-4
# Off by less than this on average, and by a factor that may be 1: called calibrated.
TOLERATED = 0.25


@dataclass(frozen=True)
class Bin:
    """n structures whose prediction is alike: RMS of the prediction and of the true error, eV/Å."""

    n: int
    predicted: float
    observed: float


@dataclass(frozen=True)
class Calibration:
    """How the true error compares with the predicted one.

    factor : geometric mean of true over predicted, with its bootstrap interval (None: too few groups). scatter : the factor by which single
    structures lie above or below that (exp of the standard deviation of the logarithm).
    bins : of all structures. fitted : the factor from one half of the groups; tested : bins of the other half; before, after : mean
    |observed - predicted| / predicted over those, without and with the factor (the expected normalised calibration error, Levi et al. 2022).
    halves : what the halves are made of. All None and empty where there are fewer than FEWEST structures.
    """

    n: int
    factor: float | None = None
    low: float | None = None
    high: float | None = None
    scatter: float | None = None
    bins: tuple[Bin, ...] = ()
    fitted: float | None = None
    tested: tuple[Bin, ...] = ()
    before: float | None = None
    after: float | None = None
    halves: str = ""

    @property
    def calibrated(self) -> bool | None:
        """Whether the prediction may be read as an error in eV/Å; None where nobody knows."""
        if self.factor is None or self.before is None:
            return None
        one_inside = self.low is None or self.high is None or self.low <= 1 <= self.high
        return one_inside and 1 / (1 + TOLERATED) < self.factor < 1 + TOLERATED and self.before < TOLERATED


def calibration(
    predicted: ArrayLike,
    observed: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    halves: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Calibration:
    """Compare `predicted` (n,) with `observed` (n,), both RMS errors in eV/Å.

    groups (n): what the bootstrap draws as a whole; there is no interval from fewer than FEWEST_GROUPS. halves (n): what stays together in
    one half, where there are four or more of them. None: every structure stands for itself. Raises UsageError for negative numbers or such
    that are not finite.
    """
    p, o = np.asarray(predicted, dtype=np.float64).ravel(), np.asarray(observed, dtype=np.float64).ravel()
    if len(p) != len(o):
        raise UsageError(f"{len(p)} predictions for {len(o)} errors.")
    if not (np.isfinite(p).all() and np.isfinite(o).all() and (p >= 0).all() and (o >= 0).all()):
        raise UsageError("Predicted and true errors are finite and not negative.")
    of, together = (np.arange(len(p)) if g is None else numbered(g) for g in (groups, halves))
    if not len(of) == len(together) == len(p):
        raise UsageError(f"{len(of)} and {len(together)} groups for {len(p)} predictions.")
    known = (p > VANISHING) & (o > VANISHING)
    p, o, of, together = p[known], o[known], numbered(of[known].tolist()), numbered(together[known].tolist())
    n = len(p)
    if n < FEWEST:
        return Calibration(n)
    ratio = np.log(o / p)
    count = int(of.max()) + 1
    generator = np.random.Generator(np.random.PCG64(seed))
    low = high = None
    if groups is None or count >= FEWEST_GROUPS:
        low, high = _interval(ratio, of, count, confidence, generator)
    fitting, parts = _half(together, generator)
    fitted = float(np.exp(ratio[fitting].mean()))
    tested = binned(p[~fitting], o[~fitting])
    return Calibration(
        n=n,
        factor=float(np.exp(ratio.mean())),
        low=low,
        high=high,
        scatter=float(np.exp(ratio.std(ddof=1))),
        bins=binned(p, o),
        fitted=fitted,
        tested=tested,
        before=miscalibration(tested),
        after=miscalibration(tested, fitted),
        halves=parts,
    )


def binned(predicted: ArrayLike, observed: ArrayLike) -> tuple[Bin, ...]:
    """Bins of as many structures each, by what was predicted; at least IN_BIN in each, or one bin."""
    p, o = np.asarray(predicted, dtype=np.float64), np.asarray(observed, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    parts = np.array_split(order, int(np.clip(len(p) // IN_BIN, 1, MOST_BINS)))
    return tuple(Bin(len(k), _rms(p[k]), _rms(o[k])) for k in parts if len(k))


def miscalibration(bins: Sequence[Bin], factor: float = 1.0) -> float | None:
    """Mean |observed - predicted| / predicted over the bins, the prediction being multiplied by `factor`; None without bins."""
    return float(np.mean([abs(b.observed / (factor * b.predicted) - 1) for b in bins])) if bins else None


def _rms(values: Array) -> float:
    return float(np.sqrt((values**2).mean()))


def _interval(
    ratio: Array, of: NDArray[np.int64], count: int, confidence: float, generator: np.random.Generator
) -> tuple[float, float]:
    """Percentiles of the factor over samples of whole groups."""
    sums, sizes = np.bincount(of, ratio, count), np.bincount(of, minlength=count)
    drawn = generator.integers(0, count, (SAMPLES, count))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    tail = 0.5 * (1 - confidence)
    low, high = np.exp(np.quantile(means, [tail, 1 - tail]))
    return float(low), float(high)


def _half(of: NDArray[np.int64], generator: np.random.Generator) -> tuple[NDArray[np.bool_], str]:
    """Which structures are fitted on: those of half of the groups, drawn at random so that both halves are about as large; half of the
    structures where there are few groups, or where one of them is nearly all there is."""
    sizes = np.bincount(of)
    count = len(sizes)
    if 4 <= count < len(of) and sizes.max() <= 0.6 * len(of):
        order = generator.permutation(count)
        # The largest groups first, each to the half that has fewer structures.
        taken, one, other = set(), 0, 0
        for k in order[np.argsort(-sizes[order], kind="stable")]:
            if one <= other:
                taken.add(int(k))
                one += int(sizes[k])
            else:
                other += int(sizes[k])
        return np.isin(of, list(taken)), "groups"
    chosen = np.zeros(len(of), dtype=bool)
    chosen[generator.permutation(len(of))[: len(of) // 2]] = True
    return chosen, "structures"
