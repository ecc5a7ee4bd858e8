"""The Screen page as a person with a browser meets it."""

from __future__ import annotations

import json
import re

import pyarrow.parquet as pq
import pytest

from fdcore import data
from tests.browser.conftest import settled, viewer_ready, violations

# Not the "Extended xyz" of the field for files.
ENDED = re.compile(r"^Ended ")

pytestmark = pytest.mark.browser

BROKEN = "data_x\n_cell_length_a 3\nloop_\n_atom_site_label\n"


def files(tmp_path) -> list[str]:
    (tmp_path / "broken.cif").write_text(BROKEN)
    return [str(data.path("examples", name)) for name in ("ice_ladder.extxyz", "NaCl.cif")] + [
        str(tmp_path / "broken.cif")
    ]


def test_from_files_to_a_ranking_a_structure_and_another_page(server, open_page, tmp_path):
    page = open_page(f"{server.url}/screen")
    page.get_by_text("Bring files first").wait_for()
    page.set_input_files("input[type=file]", files(tmp_path))
    page.get_by_text("3 files,").wait_for()
    settled(page)
    assert not violations(page)
    page.get_by_role("button", name="Screen them").click()
    page.get_by_text(ENDED).wait_for()
    settled(page)
    assert not violations(page)
    # The histogram, the reasons, the table.
    page.get_by_text("How much the forces disagree").first.wait_for()
    page.get_by_text("Why 1 failed").click()
    page.get_by_role("button", name="Show them in the table").click()
    page.get_by_text("1 structure, the largest").wait_for()
    page.get_by_role("button", name="Show all").click()
    page.get_by_text("14 structures, the largest").wait_for()
    settled(page)
    # Taken away, it reads back.
    with page.expect_download() as taken:
        page.get_by_test_id("stDownloadButton").nth(0).get_by_role("button").click()
    taken.value.save_as(tmp_path / "found.parquet")
    table = pq.read_table(tmp_path / "found.parquet").to_pandas()
    assert table["verdict"].eq("failed").sum() == 1 and table["force_delta_eV_per_A"].notna().sum() == 13
    ladder = table[table["file"] == "ice_ladder.extxyz"].sort_values("index")["force_delta_eV_per_A"]
    assert ladder.iloc[-1] > ladder.iloc[0]
    with page.expect_download() as taken:
        page.get_by_test_id("stDownloadButton").nth(2).get_by_role("button").click()
    taken.value.save_as(tmp_path / "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["complete"] and summary["structures"] == 14
    # One of them, in 3D.
    grid = page.get_by_test_id("stDataFrame").last
    grid.scroll_into_view_if_needed()
    box = grid.bounding_box()
    page.mouse.click(box["x"] + 15, box["y"] + 55)
    viewer_ready(page)
    settled(page)
    assert not violations(page)
    page.set_viewport_size({"width": 400, "height": 900})
    settled(page)
    page.wait_for_timeout(500)
    # Streamlit's own menu of grouped pages, which a narrow window has beside it, puts a group into a list without an item.
    assert not violations(page, '[data-testid="stMain"]')
    page.set_viewport_size({"width": 1400, "height": 900})
    # Found again by its address, and onwards with a structure.
    page.reload()
    page.get_by_text(ENDED).wait_for()
    settled(page)
    grid.scroll_into_view_if_needed()
    box = grid.bounding_box()
    page.mouse.click(box["x"] + 15, box["y"] + 55)
    viewer_ready(page)
    page.get_by_test_id("stMain").get_by_role("button", name="Ensemble").click()
    page.get_by_text("Do other models agree?").wait_for()
    page.get_by_text("From the run").wait_for()
    settled(page)
    assert "ice_ladder" in page.get_by_text("From the run").inner_text()
