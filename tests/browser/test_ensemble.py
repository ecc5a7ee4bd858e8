"""The Ensemble and Models pages as a person with a browser meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.browser.conftest import settled, viewer_ready, violations

pytestmark = pytest.mark.browser


def test_an_ensemble_is_asked_and_its_answer_taken_away(server, open_page, tmp_path):
    """The embedded deep ensemble on the ladder of ice: a number for every frame, which reads back."""
    page = open_page(f"{server.url}/ensemble?example=ice_ladder")
    page.get_by_role("button", name="Ask 4 models").click()
    page.get_by_text("Take it away").wait_for()
    viewer_ready(page)
    settled(page)
    assert not violations(page)
    with page.expect_download() as taken:
        page.get_by_test_id("stDownloadButton").first.get_by_role("button").click()
    path = Path(tmp_path / "found.json")
    taken.value.save_as(path)
    document = json.loads(path.read_text())
    assert len(document["members"]) == 4 and len(document["results"]) == 12
    assert all(r["ensemble_spread_eV_per_A"] > 0 for r in document["results"])
    # Twelve frames of growing displacement: both estimates grow with them.
    assert document["agreement"]["r_s"] > 0.7
    page.set_viewport_size({"width": 400, "height": 900})
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_models_page_checks_a_model(server, open_page):
    page = open_page(f"{server.url}/models")
    page.get_by_role("button", name="Check its gradients").click()
    page.get_by_text("Its gradients agree with differences").wait_for()
    settled(page)
    assert not violations(page)
