"""The Reproduce page as a person with a browser meets it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from tests.browser.conftest import settled, violations

pytestmark = pytest.mark.browser


@pytest.mark.timeout(300)
def test_figure_2_of_a_structure_of_ones_own(server, open_page, tmp_path):
    """Attacked, labelled by CHGNet, drawn, set beside the paper's numbers, taken away; found again by its address."""
    page = open_page(f"{server.url}/reproduce?example=NaCl")
    page.get_by_text("my own structures").click()
    page.get_by_text("8 parts, about").wait_for()
    settled(page)
    assert not violations(page)
    page.get_by_role("button", name="Reproduce", exact=True).click()
    page.get_by_text("Take it away").wait_for(timeout=240_000)
    settled(page)
    assert not violations(page)
    with page.expect_download() as taken:
        page.get_by_test_id("stDownloadButton").nth(1).get_by_role("button").click()
    path = Path(tmp_path / "found.zip")
    taken.value.save_as(path)
    with zipfile.ZipFile(path) as archive:
        document = json.loads(archive.read("reproduction.json"))
        assert archive.read("fig2.png").startswith(b"\x89PNG")
    [row] = document["targets"]["fig2"]["rows"]
    assert row["system"] == "NaCl" and row["n"] == 30 and row["r_s_error_conservative"] > 0.5
    assert len(document["targets"]["fig2"]["published"]) == 3
    page.set_viewport_size({"width": 400, "height": 900})
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.reload()
    page.get_by_text("Take it away").wait_for()
