"""The Validate page as a person with a browser meets it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from fdcore import data
from tests.browser.conftest import settled, violations

pytestmark = pytest.mark.browser


def test_labels_are_compared_and_the_report_taken_away(server, open_page, tmp_path):
    """The replay labels of the embedded model, on which both of its forces are nearly right."""
    page = open_page(f"{server.url}/validate")
    page.get_by_role("button", name="Use the shipped DFT labels").wait_for()
    settled(page)
    assert not violations(page)
    page.locator("input[type=file]").first.set_input_files(str(data.path("labels", "fd-orb-small-v1.extxyz")))
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("Take it away").wait_for()
    settled(page)
    assert page.get_by_text("U_Delta ranks the error of F_c with").is_visible()
    assert not violations(page)
    with page.expect_download() as taken:
        page.get_by_role("button", name="All as zip").click()
    path = Path(tmp_path / "all.zip")
    taken.value.save_as(path)
    archive = zipfile.ZipFile(path)
    document = json.loads(archive.read("validation.json"))
    assert document["models"][0]["bands"][0]["r_s_error_conservative"] > 0.5
    assert archive.read("report.html").decode().count("<svg") == 6
    # A link finds it again.
    address = page.url
    assert "run=" in address
    page.reload()
    page.get_by_text("Take it away").wait_for()
    page.set_viewport_size({"width": 400, "height": 900})
    settled(page)
    assert not violations(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_report_asks_nobody_for_anything(server, open_page, tmp_path):
    """The HTML alone, opened from the app's own host: what it would fetch, `open_page` would see."""
    from fdcore import validation, validation_report
    from fdcore.validation_report import Report
    from tests.unit.test_validation import sweep

    page = open_page(f"{server.url}/_stcore/health")
    page.set_content(validation_report.html(Report(tuple(validation.validate(sweep())), "X")))
    assert page.locator("svg").count() == 6
    assert not violations(page)
