"""The Report page as a person with a browser meets it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.browser.conftest import settled, violations

pytestmark = pytest.mark.browser


def _shot(page, name: str) -> None:
    """A picture to look at, where somebody asks for it."""
    folder = os.environ.get("FD_SCREENSHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def test_a_report_is_made_read_and_taken_away(server, open_page, tmp_path):
    """The embedded model on rock salt, all parts but the slow ones short: figures, words, files."""
    page = open_page(f"{server.url}/report?example=NaCl")
    page.get_by_role("button", name="Make the report").wait_for()
    settled(page)
    _shot(page, "report-settings")
    page.get_by_text("More settings").last.click()
    length = page.get_by_label("Length (ps)")
    length.fill("0.05")
    length.press("Tab")
    settled(page)
    page.get_by_role("button", name="Make the report").click()
    page.get_by_text("Take it away").wait_for()
    settled(page)
    assert not violations(page)
    assert page.get_by_text("Jacobian asymmetry").count()
    _shot(page, "report-wide")
    with page.expect_download() as taken:
        page.get_by_role("button", name="Report (PDF)").click()
    assert Path(taken.value.path()).read_bytes().startswith(b"%PDF")
    with page.expect_download() as taken:
        page.get_by_role("button", name="JSON", exact=True).click()
    path = Path(tmp_path / "found.json")
    taken.value.save_as(path)
    [found] = json.loads(path.read_text())["results"]
    assert (
        found["jacobian_asymmetry"]["conservative"]["lambda"] < 1e-6 < found["jacobian_asymmetry"]["direct"]["lambda"]
    )
    assert max(abs(loop["work_conservative_meV"]) for loop in found["loops"]) < 1e-3
    page.set_viewport_size({"width": 400, "height": 900})
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    _shot(page, "report-narrow")
