"""How well a number tells which of n things are bad: the ROC curve and its area with an interval, and what one threshold of it does.

Pure functions of arrays. Hits are the share of the bad ones that are pointed at, false alarms that of the others (Fawcett 2006).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fdcore.errors import UsageError
from fdcore.statistics import FEWEST_GROUPS, NO_WIDTH, bracketed, numbered, percentiles

Array = NDArray[np.float64]
# A bootstrap draws as often as this many numbers allow, between these bounds: atoms are many, and their curve hardly moves.
NUMBERS_DRAWN = 4_000_000
SAMPLES = (200, 2000)
# Points of a curve that is drawn.
MOST_POINTS = 300


@dataclass(frozen=True)
class Roc:
    """The curve from (0, 0) to (1, 1) and the area under it: the chance that a bad one of n has a larger value than another, 0.5 for a
    value that says nothing. All None and empty where there are no bad ones or nothing else; the interval alone where the n belong to
    too few `groups` to say anything about it, or every bad one has a larger value than every other: all samples are then so, too."""

    n: int
    bad: int
    area: float | None
    low: float | None
    high: float | None
    false_alarms: Array
    hits: Array
    groups: int
    confidence: float = 0.95

    @property
    def text(self) -> str:
        """ "0.93 (0.88 to 0.96)", or what of it exists."""
        if self.area is None:
            return "–"
        return bracketed(self.area, self.low, self.high, abs(self.area - 0.5) > 0.5 - NO_WIDTH)


@dataclass(frozen=True)
class Alarm:
    """What one threshold does: of n things `bad` are, `flagged` exceed it, and `caught` are both."""

    threshold: float
    n: int
    bad: int
    flagged: int
    caught: int

    @property
    def hits(self) -> float | None:
        """Share of the bad ones that are flagged: recall."""
        return self.caught / self.bad if self.bad else None

    @property
    def false_alarms(self) -> float | None:
        """Share of the others that are flagged."""
        others = self.n - self.bad
        return (self.flagged - self.caught) / others if others else None

    @property
    def precision(self) -> float | None:
        """Share of the flagged ones that are bad."""
        return self.caught / self.flagged if self.flagged else None


def area_under(value: ArrayLike, bad: ArrayLike) -> float | None:
    """The share of pairs of a bad one and another in which the bad one has the larger value, equal ones counting half; None without
    such pairs. value (n,), bad (n,) true or false."""
    values, wrong = _checked(value, bad)
    if not wrong.any() or wrong.all():
        return None
    return float(_areas(values, wrong, np.ones((1, len(values))))[0])


def roc(
    value: ArrayLike,
    bad: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    samples: int | None = None,
    seed: int = 0,
) -> Roc:
    """The curve of `value` (n,) for `bad` (n,), its area, and the area's percentile bootstrap interval.

    groups (n): what belongs together and is drawn as a whole, as in `fdcore.statistics.rank_correlation`; there is no interval from
    fewer than FEWEST_GROUPS of them. samples: None for as many as NUMBERS_DRAWN allow. Raises UsageError for numbers that are not finite.
    """
    values, wrong = _checked(value, bad)
    n = len(values)
    of = np.arange(n) if groups is None else numbered(groups)
    if len(of) != n:
        raise UsageError(f"{len(of)} groups for {n} values.")
    count = int(of.max()) + 1 if n else 0
    empty = np.zeros(0)
    if not wrong.any() or wrong.all():
        return Roc(n, int(wrong.sum()), None, None, None, empty, empty, count, confidence)
    false_alarms, hits = _curve(values, wrong)
    middle = float(_areas(values, wrong, np.ones((1, n)))[0])
    low = high = None
    if groups is None or count >= FEWEST_GROUPS:
        wanted = int(np.clip(NUMBERS_DRAWN // n, *SAMPLES)) if samples is None else samples
        found = _drawn(values, wrong, of, count, wanted, seed)
        low, high = percentiles(found, confidence)
    return Roc(n, int(wrong.sum()), middle, low, high, false_alarms, hits, count, confidence)


def alarm(value: ArrayLike, bad: ArrayLike, threshold: float) -> Alarm:
    """What happens when everything above `threshold` is called bad."""
    values, wrong = _checked(value, bad)
    above = values > threshold
    return Alarm(float(threshold), len(values), int(wrong.sum()), int(above.sum()), int((above & wrong).sum()))


def _checked(value: ArrayLike, bad: ArrayLike) -> tuple[Array, NDArray[np.bool_]]:
    values, wrong = np.asarray(value, dtype=np.float64).ravel(), np.asarray(bad, dtype=bool).ravel()
    if len(values) != len(wrong):
        raise UsageError(f"{len(values)} values for {len(wrong)} answers.")
    if not np.isfinite(values).all():
        raise UsageError("A ROC curve needs finite numbers only.")
    return values, wrong


def _curve(values: Array, wrong: NDArray[np.bool_]) -> tuple[Array, Array]:
    """From the largest value down, one point for each that occurs."""
    order = np.argsort(-values, kind="stable")
    last = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    hits = np.concatenate([[0.0], np.cumsum(wrong[order])[last] / wrong.sum()])
    false_alarms = np.concatenate([[0.0], np.cumsum(~wrong[order])[last] / (~wrong).sum()])
    if len(hits) > MOST_POINTS:
        keep = np.unique(np.linspace(0, len(hits) - 1, MOST_POINTS).round().astype(int))
        hits, false_alarms = hits[keep], false_alarms[keep]
    return false_alarms, hits


def _areas(values: Array, wrong: NDArray[np.bool_], times: Array) -> Array:
    """The area of each of several samples that hold the values so many `times` (samples, n); NaN where one side is empty."""
    order = np.argsort(values, kind="stable")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(values[order])) + 1])
    times = times[:, order]
    bad = np.add.reduceat(times * wrong[order], starts, axis=1)
    good = np.add.reduceat(times * ~wrong[order], starts, axis=1)
    below = np.cumsum(good, axis=1) - good
    with np.errstate(invalid="ignore", divide="ignore"):
        return (bad * (below + 0.5 * good)).sum(axis=1) / (bad.sum(axis=1) * good.sum(axis=1))


def _drawn(
    values: Array, wrong: NDArray[np.bool_], of: NDArray[np.int64], count: int, samples: int, seed: int
) -> Array:
    """Areas of bootstrap samples of whole groups, those of one side only left out."""
    generator = np.random.Generator(np.random.PCG64(seed))
    at_once = max(1, NUMBERS_DRAWN // 2 // max(len(values), count))
    found = []
    for begin in range(0, samples, at_once):
        drawn = generator.integers(0, count, (min(at_once, samples - begin), count))
        times = np.stack([np.bincount(row, minlength=count) for row in drawn])[:, of].astype(np.float64)
        found.append(_areas(values, wrong, times))
    areas = np.concatenate(found)
    return areas[np.isfinite(areas)]
