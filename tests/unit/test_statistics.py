"""Slopes and means with intervals that respect correlation; thinning that keeps extremes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdcore.errors import UsageError
from fdcore.statistics import fitted_slope, mean_with_error, thin

REPEATS = 200


def autoregressive(rng, n: int, rho: float) -> np.ndarray:
    noise, out = rng.standard_normal(n + 300), np.zeros(n + 300)
    for k in range(1, n + 300):
        out[k] = rho * out[k - 1] + noise[k]
    return out[300:]


KINDS = {
    "white": lambda rng, n: rng.standard_normal(n),
    "correlated 0.9": lambda rng, n: autoregressive(rng, n, 0.9),
    "correlated 0.99": lambda rng, n: autoregressive(rng, n, 0.99),
    "random walk": lambda rng, n: np.cumsum(rng.standard_normal(n)),
    "random walk and noise": lambda rng, n: np.cumsum(rng.standard_normal(n)) + 5 * rng.standard_normal(n),
    "slow swing": lambda rng, n: np.sin(0.03 * np.arange(n) + rng.uniform(0, 6)) + 0.05 * rng.standard_normal(n),
    "oscillation": lambda rng, n: np.sin(0.37 * np.arange(n) + rng.uniform(0, 6)) + 0.05 * rng.standard_normal(n),
}


@pytest.mark.parametrize("n", [200, 2000])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("true", [0.0, 0.3])
def test_interval_of_a_slope_covers_the_truth(kind, n, true):
    rng = np.random.default_rng(17)
    x = 0.1 * np.arange(n)
    hits = 0
    for _ in range(REPEATS):
        found = fitted_slope(x, KINDS[kind](rng, n) + true * x)
        hits += found.low <= true <= found.high
    # 0.90: what 200 repeats of a 95 % interval stay above with certainty for practical purposes. A short walk under noise as large
    # as itself hides what it is.
    least = 0.80 if kind == "random walk and noise" and n == 200 else 0.90
    assert hits / REPEATS >= least, f"{kind}, {n} points: {hits / REPEATS:.2f}"


def test_interval_is_not_uselessly_wide_without_correlation():
    rng = np.random.default_rng(3)
    x, widths, textbook = np.linspace(0, 10, 1000), [], []
    for _ in range(100):
        y = rng.standard_normal(1000)
        widths.append(fitted_slope(x, y).half_width)
        textbook.append(1.96 * y.std() / np.sqrt(((x - x.mean()) ** 2).sum()))
    assert np.mean(widths) < 2 * np.mean(textbook)


def test_naive_interval_would_not_cover():
    """What the module is for: the textbook interval on a random walk is wrong most of the time, ours is not."""
    rng = np.random.default_rng(5)
    x, naive, ours = np.arange(1000.0), 0, 0
    for _ in range(REPEATS):
        y = np.cumsum(rng.standard_normal(1000))
        found = fitted_slope(x, y)
        residual = y - np.polyval(np.polyfit(x, y, 1), x)
        naive += abs(found.slope) < 1.96 * residual.std() / np.sqrt(((x - x.mean()) ** 2).sum())
        ours += not found.significant
    assert naive / REPEATS < 0.4 and ours / REPEATS >= 0.90


def test_slope_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.uniform(0, 5, 500)), rng.standard_normal(500)
    assert fitted_slope(x, y).slope == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-10)


def test_a_line_has_its_slope_and_no_doubt():
    found = fitted_slope(np.arange(300), 2.5 * np.arange(300) + 7)
    assert found.slope == pytest.approx(2.5) and found.half_width < 1e-9 and found.significant
    assert fitted_slope(np.arange(50), np.full(50, 3.0)).slope == 0.0


def test_too_little_says_so():
    assert fitted_slope([1.0], [2.0]) is None
    assert fitted_slope([1.0, 1.0], [2.0, 3.0]) is None
    few = fitted_slope(np.arange(7), np.arange(7.0))
    assert few.slope == pytest.approx(1.0) and few.half_width is None and few.low is None and not few.significant
    for call in (
        lambda: fitted_slope([0, 1], [0, np.nan]),
        lambda: mean_with_error([np.inf]),
        lambda: mean_with_error([]),
    ):
        with pytest.raises(UsageError):
            call()


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 300), st.integers(0, 10_000), st.floats(1e-6, 1e6), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_units_and_origins_do_not_matter(n, seed, scale, shift, stretch):
    rng = np.random.default_rng(seed)
    x, y = np.arange(n, dtype=float), np.cumsum(rng.standard_normal(n)) + rng.standard_normal(n)
    plain = fitted_slope(x, y)
    other = fitted_slope(stretch * x + shift, scale * y - scale * shift)
    assert other.slope == pytest.approx(plain.slope * scale / stretch, rel=1e-5, abs=1e-8 * scale / stretch)
    assert other.half_width == pytest.approx(plain.half_width * scale / stretch, rel=1e-5)
    assert plain.scaled(-2.0).slope == -2 * plain.slope and plain.scaled(-2.0).half_width == 2 * plain.half_width


@pytest.mark.parametrize("kind", ["white", "correlated 0.9"])
def test_error_of_a_mean_covers_the_truth(kind):
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(REPEATS):
        mean, error = mean_with_error(KINDS[kind](rng, 1000))
        hits += abs(mean) < 2 * error
    assert hits / REPEATS >= 0.90
    assert mean_with_error([1.0, 3.0]) == (2.0, None)
    assert mean_with_error(np.full(50, 4.0)) == (4.0, 0.0)
    assert mean_with_error(np.linspace(0, 1, 500))[1] is None, "a ramp has no mean to speak of"


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.integers(12, 400), st.integers(0, 1000))
def test_thinning_keeps_ends_order_and_extremes(n, most, seed):
    rng = np.random.default_rng(seed)
    columns = {"a": rng.standard_normal(n), "b": np.where(rng.uniform(size=n) < 0.5, np.nan, rng.standard_normal(n))}
    x, kept = thin(np.arange(n), columns, most)
    assert len(x) <= max(most, 0) and (np.diff(x) > 0).all()
    assert x[0] == 0 and x[-1] == n - 1
    for name, column in columns.items():
        np.testing.assert_array_equal(kept[name], column[x])
        if np.isfinite(column).any():
            assert np.nanmax(kept[name]) == np.nanmax(column) and np.nanmin(kept[name]) == np.nanmin(column)


def test_thinning_needs_room():
    with pytest.raises(UsageError):
        thin(np.arange(100), {"a": np.arange(100.0)}, 3)
    with pytest.raises(UsageError):
        thin(np.arange(100), {"a": np.arange(99.0)}, 50)
    assert len(thin(np.arange(3), {"a": np.arange(3.0)}, 3)[0]) == 3


def test_order_of_the_points_does_not_matter():
    rng = np.random.default_rng(2)
    x, y = np.arange(500.0), np.cumsum(rng.standard_normal(500))
    mixed = rng.permutation(500)
    a, b = fitted_slope(x, y), fitted_slope(x[mixed], y[mixed])
    assert (b.slope, b.half_width) == pytest.approx((a.slope, a.half_width))
    with pytest.raises(UsageError):
        fitted_slope(x, y, confidence=1.5)
