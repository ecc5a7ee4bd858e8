"""ROC areas against counted pairs, calibration against data made by a known factor, and the coverage of what is called an interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdcore.calibration import FEWEST, Calibration, binned, calibration, miscalibration
from fdcore.errors import UsageError
from fdcore.roc import MOST_POINTS, alarm, area_under, roc
from fdcore.statistics import FEWEST_GROUPS, RankCorrelation, mean_within, rank_correlation


def counted(values, bad) -> float | None:
    """Every pair of a bad one and another, by hand."""
    pairs = [
        (v > w) + 0.5 * (v == w)
        for v, b in zip(values, bad, strict=True)
        if b
        for w, c in zip(values, bad, strict=True)
        if not c
    ]
    return sum(pairs) / len(pairs) if pairs else None


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=14))
def test_area_is_the_share_of_pairs_in_order(listed):
    values, bad = [float(v) for v, _ in listed], [b for _, b in listed]
    expected = counted(values, bad)
    found = area_under(values, bad)
    assert (found is None) == (expected is None)
    if expected is not None:
        assert found == pytest.approx(expected, abs=1e-12)
        made = roc(values, bad, samples=20)
        assert made.area == found
        # The curve rises from one corner to the other, and the trapezoids under it are the same area.
        assert (np.diff(made.false_alarms) >= 0).all() and (np.diff(made.hits) >= 0).all()
        assert (made.false_alarms[[0, -1]] == [0, 1]).all() and (made.hits[[0, -1]] == [0, 1]).all()
        assert np.trapezoid(made.hits, made.false_alarms) == pytest.approx(found, abs=1e-12)


def test_interval_of_an_area_covers_it():
    """Two normal distributions one apart: the area is Phi(1/sqrt 2); 100 samples of 80."""
    expected, inside = 0.7602499, 0
    rng = np.random.default_rng(5)
    for k in range(100):
        bad = np.arange(80) % 2 == 0
        found = roc(rng.normal(bad.astype(float), 1.0), bad, samples=300, seed=k)
        inside += found.low <= expected <= found.high
    assert 88 <= inside <= 100


def test_structures_of_one_group_do_not_narrow_the_interval():
    rng = np.random.default_rng(2)
    values, bad = rng.normal(size=12), np.arange(12) % 2 == 0
    alone = roc(values, bad, groups=range(12), seed=1)
    copies = roc(np.repeat(values, 20), np.repeat(bad, 20), groups=np.repeat(range(12), 20).tolist(), seed=1)
    assert (copies.area, copies.low, copies.high) == pytest.approx((alone.area, alone.low, alone.high))
    few = roc(values, bad, groups=np.arange(12) % (FEWEST_GROUPS - 1))
    assert few.area == alone.area and few.low is None and few.text == f"{alone.area:.2f}"


def test_one_side_only_has_no_curve_and_odd_numbers_are_refused():
    found = roc([1.0, 2.0], [True, True])
    assert found.area is None and found.text == "–" and not len(found.hits) and found.bad == 2
    assert area_under([], []) is None
    with pytest.raises(UsageError, match="finite"):
        roc([1.0, np.nan], [True, False])
    with pytest.raises(UsageError, match="2 values for 1"):
        roc([1.0, 2.0], [True])


def test_many_points_are_thinned_for_the_picture_only():
    rng = np.random.default_rng(0)
    values, bad = rng.normal(size=5000), rng.random(5000) < 0.3
    found = roc(values, bad)
    assert len(found.hits) == MOST_POINTS and found.hits[-1] == found.false_alarms[-1] == 1
    assert found.area == area_under(values, bad)


def test_alarm_counts():
    found = alarm([0.1, 0.2, 0.3, 0.4, 0.5], [False, True, False, True, True], 0.25)
    assert (found.n, found.bad, found.flagged, found.caught) == (5, 3, 3, 2)
    assert found.hits == pytest.approx(2 / 3) and found.precision == pytest.approx(2 / 3)
    assert found.false_alarms == pytest.approx(1 / 2)
    nothing = alarm([0.1], [False], 1.0)
    assert nothing.hits is None and nothing.precision is None and nothing.false_alarms == 0


# ---- calibration ---------------------------------------------------------------------------------------------------


def made(factor: float, scatter: float, n: int = 400, groups: int = 20, seed: int = 3):
    rng = np.random.default_rng(seed)
    predicted = rng.lognormal(-3, 1.0, n)
    return predicted, factor * predicted * rng.lognormal(0, scatter, n), np.arange(n) % groups


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_factor_that_made_the_data_is_found_on_one_half_and_holds_on_the_other(factor):
    predicted, observed, groups = made(factor, 0.3)
    found = calibration(predicted, observed, groups=groups, halves=groups)
    assert found.low < factor < found.high and found.factor == pytest.approx(factor, rel=0.06)
    assert found.fitted == pytest.approx(factor, rel=0.1) and found.halves == "groups"
    assert found.scatter == pytest.approx(np.exp(0.3), rel=0.1)
    # An RMS over lognormal scatter is a little larger than the geometric mean.
    assert found.after < 0.2
    assert found.before == pytest.approx(abs(factor * np.exp(0.3**2) - 1), abs=0.15)
    assert found.calibrated == (factor == 1.0)
    assert sum(b.n for b in found.bins) == 400 and sum(b.n for b in found.tested) == 200


def test_halves_share_no_group():
    """A factor of its own for every group: what is fitted on some groups says nothing of the others, and the interval of the factor is that
    of few groups, not of many structures."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(8), 50)
    predicted = rng.lognormal(-3, 0.5, 400)
    observed = predicted * np.exp(rng.normal(0, 1.0, 8))[groups]
    found = calibration(predicted, observed, groups=groups, halves=groups)
    alone = calibration(predicted, observed)
    assert found.halves == "groups" and alone.halves == "structures"
    assert np.log(found.high / found.low) > 4 * np.log(alone.high / alone.low)


def test_bins_are_those_of_the_prediction():
    bins = binned([1.0, 2, 3, 4, 10, 20, 30, 40, 50, 60], [2.0] * 5 + [4.0] * 5)
    assert [b.n for b in bins] == [5, 5] and [b.observed for b in bins] == [2.0, 4.0]
    assert bins[0].predicted == pytest.approx(np.sqrt((1 + 4 + 9 + 16 + 100) / 5))
    assert miscalibration(bins) == pytest.approx(np.mean([abs(b.observed / b.predicted - 1) for b in bins]))
    assert miscalibration(()) is None


def test_too_few_or_impossible_numbers():
    assert calibration(np.ones(FEWEST - 1), np.ones(FEWEST - 1)) == Calibration(FEWEST - 1)
    assert calibration(np.zeros(50), np.ones(50)).n == 0
    with pytest.raises(UsageError, match="not negative"):
        calibration([-1.0], [1.0])


# ---- within groups -------------------------------------------------------------------------------------------------


def test_mean_within_groups_is_free_of_what_separates_them():
    """Groups at very different sizes with nothing inside them: pooled it looks like a rank, within them it is none."""
    rng = np.random.default_rng(7)
    level = np.repeat(np.geomspace(0.01, 10, 12), 15)
    x, y = level * rng.lognormal(0, 0.1, 180), level * rng.lognormal(0, 0.1, 180)
    pooled = rank_correlation(x, y)
    parts = [rank_correlation(x[k : k + 15], y[k : k + 15]) for k in range(0, 180, 15)]
    within = mean_within(parts)
    assert pooled.r_s > 0.95 and within.groups == 12
    assert within.mean == pytest.approx(np.mean([p.r_s for p in parts]))
    assert within.low < 0 < within.high and within.text.count("to") == 1


def test_interval_of_the_mean_within_groups_covers_it():
    rng, inside = np.random.default_rng(9), 0
    true = 6 / np.pi * np.arcsin(0.6 / 2)
    for _ in range(120):
        parts = []
        for _ in range(8):
            a = rng.normal(size=40)
            b = 0.6 * a + 0.8 * rng.normal(size=40)
            parts.append(rank_correlation(a, b, samples=1))
        found = mean_within(parts)
        inside += found.low <= true <= found.high
    assert 106 <= inside <= 120


def test_groups_without_a_correlation_do_not_count():
    nothing = RankCorrelation(4, None, None, None)
    assert mean_within([nothing]).text == "–"
    found = mean_within([RankCorrelation(9, 0.5, None, None), RankCorrelation(9, 0.7, None, None), nothing])
    assert (found.groups, found.mean, found.half_width) == (2, pytest.approx(0.6), None)


def test_large_bootstraps_are_drawn_in_parts(monkeypatch):
    from fdcore import statistics

    rng = np.random.default_rng(4)
    a = rng.normal(size=300)
    b = a + rng.normal(size=300)
    whole = rank_correlation(a, b, samples=400)
    monkeypatch.setattr(statistics, "AT_ONCE", 5000)
    assert rank_correlation(a, b, samples=400) == whole
