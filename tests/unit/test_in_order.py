"""Rank correlations and areas of what is in order without an exception: every bootstrap sample is so, too, which is no certainty."""

from __future__ import annotations

import numpy as np
import pytest

from fdcore import reproduction_report, validation_words
from fdcore.roc import roc
from fdcore.statistics import mean_within, rank_correlation
from fdcore.validation import POOLED, Band


@pytest.mark.parametrize("n", [3, 5, 8, 12])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_perfect_order_has_no_interval(n, grouped):
    """Every sample of it is in order as well: that is no certainty."""
    x = np.arange(float(n))
    groups = list(range(n)) if grouped else None
    for y, r_s in ((x**3, 1.0), (-x, -1.0)):
        found = rank_correlation(x, y, groups=groups)
        assert found.r_s == pytest.approx(r_s) and found.in_order
        assert found.low is None and found.high is None
        assert found.text == f"{r_s:.2f} (all in order)"


def test_one_exception_has_an_interval():
    x = np.arange(8.0)
    y = x.copy()
    y[[3, 4]] = y[[4, 3]]
    found = rank_correlation(x, y)
    assert not found.in_order and found.low < found.r_s < found.high == 1.0
    assert found.text == f"{found.r_s:.2f} ({found.low:.2f} to 1.00)"


def test_groups_that_are_all_in_order_have_no_interval_of_their_mean():
    x = np.arange(6.0)
    assert mean_within([rank_correlation(x, x)] * 6).text == "1.00 (all in order)"
    mixed = mean_within([*[rank_correlation(x, x)] * 5, rank_correlation(x, [1, 0, 3, 2, 5, 4])])
    assert mixed.low is not None and mixed.low < mixed.mean < mixed.high


def test_an_area_without_an_exception_has_no_interval():
    value = np.arange(10.0)
    found = roc(value, value > 5)
    assert found.area == 1.0 and found.low is None and found.text == "1.00 (all in order)"
    assert roc(value, value < 5).text == "0.00 (all in order)"
    other = roc(value, np.arange(10) % 3 == 0)
    assert other.low is not None and other.low < other.area < other.high


def test_words_say_why_there_is_no_interval():
    x = np.arange(7.0)
    ordered, other = (
        rank_correlation(x, x, groups=x.tolist()),
        rank_correlation(x, [1, 0, 3, 2, 5, 4, 6], groups=x.tolist()),
    )
    few = rank_correlation(x, [1, 0, 3, 2, 5, 4, 6], groups=[0, 1, 2, 3, 3, 3, 3])
    for pair in ((ordered, other), (other, ordered)):
        text = validation_words.interval_text([Band(POOLED, 0.0, 1.0, *pair)])
        assert text.startswith("In brackets") and "What is all in order has none" in text
    assert "all in order" not in validation_words.interval_text([Band(POOLED, 0.0, 1.0, other, other)])
    assert validation_words.interval_text([Band(POOLED, 0.0, 1.0, few, few)]).startswith("No intervals")
    row = {
        "r_s_error_direct": 1.0,
        "r_s_error_direct_ci": None,
        "r_s_x": 0.4,
        "r_s_x_ci": None,
        "r_s_y": 1.0,
        "r_s_y_ci": [0.1, 1.0],
    }
    assert [reproduction_report.shown(row, c) for c in row] == [
        "1.00",
        "all in order",
        "0.400",
        "–",
        "1.00",
        "0.100 to 1.00",
    ]
