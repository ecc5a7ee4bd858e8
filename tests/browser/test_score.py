"""A person with a browser: brings a file, reads the number, sees the picture, takes the results away."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import pytest

from fdcore import data
from tests.browser.conftest import ROOT, settled, viewer_ready, violations

pytestmark = pytest.mark.browser

CIF = data.path("examples", "Mg17Al12.cif")
LADDER = data.path("examples", "ice_ladder.extxyz")
# The promise is 15 s after the page is there; a machine that runs the rest of the tests beside it gets more.
FIRST_SCORE_S = 60


def _upload(page, *files: Path) -> None:
    page.set_input_files('[data-testid="stFileUploader"] input', [str(f) for f in files])


def _command_line(*files: Path) -> dict:
    """What `fdcore score FILE --json -` says."""
    command = [sys.executable, "-m", "fdcore.cli", "score", *map(str, files), "--json", "-"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, 1), done.stderr[-2000:]
    return json.loads(done.stdout)


def _download(page, label: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=label, exact=True).first.click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_first_example_is_scored_soon_after_the_page_is_there(server, open_page):
    page = open_page(server.url)
    button = page.locator(".st-key-try_example button")
    button.wait_for()
    started = time.monotonic()
    button.click()
    page.get_by_test_id("stMetricValue").wait_for()
    seconds = time.monotonic() - started
    print(f"first score {seconds:.1f} s after the click")
    assert seconds < FIRST_SCORE_S


def test_uploaded_cif_gives_the_number_of_the_command_line(server, open_page, tmp_path):
    page = open_page(server.url)
    page.locator(".st-key-try_example button").wait_for()
    _upload(page, CIF)
    shown = page.get_by_test_id("stMetricValue").inner_text()
    viewer_ready(page)
    [expected] = _command_line(CIF)["results"]
    assert shown == f"{expected['force_delta_eV_per_A']:#.3g} eV/Å"
    assert page.locator(".fd-viewer").get_attribute("data-atoms") == str(expected["n_atoms"])

    document = json.loads(_download(page, "JSON", tmp_path).read_text())
    [result] = document["results"]
    assert result["force_delta_eV_per_A"] == pytest.approx(expected["force_delta_eV_per_A"], rel=1e-4)
    assert result["force_delta_per_atom_eV_per_A"] == pytest.approx(
        expected["force_delta_per_atom_eV_per_A"], rel=1e-2, abs=1e-5
    )
    assert result["verdict"] == expected["verdict"]
    assert document["provenance"]["dtype"] == "float32"

    atoms = ase.io.read(_download(page, "extXYZ", tmp_path))
    assert len(atoms) == expected["n_atoms"] and atoms.arrays["forces_direct"].shape == (len(atoms), 3)
    assert atoms.info["force_delta_eV_per_A"] == pytest.approx(result["force_delta_eV_per_A"])
    with _download(page, "CSV of the atoms", tmp_path).open() as rows:
        assert len(list(csv.DictReader(rows))) == expected["n_atoms"]


def test_many_frames_are_sorted_and_a_click_opens_one(server, open_page, tmp_path):
    torn = tmp_path / "torn.cif"
    torn.write_text("data_x\nloop_\n_cell")
    page = open_page(server.url)
    page.locator(".st-key-try_example button").wait_for()
    _upload(page, LADDER, torn)
    table = page.get_by_test_id("stDataFrame").first
    table.wait_for()
    settled(page)
    document = json.loads(_download(page, "JSON", tmp_path).read_text())
    assert len(document["results"]) == 12
    assert [e["file"] for e in document["errors"]] == ["torn.cif"]
    box = table.bounding_box()
    page.mouse.click(box["x"] + 18, box["y"] + 58)
    viewer_ready(page)
    worst = max(r["force_delta_eV_per_A"] for r in document["results"])
    assert page.get_by_test_id("stMetricValue").inner_text() == f"{worst:#.3g} eV/Å"


def test_row_of_the_table_marks_the_atom(server, open_page):
    page = open_page(f"{server.url}/?example=Mg17Al12_one_atom")
    viewer_ready(page)
    settled(page)
    table = page.get_by_test_id("stDataFrame").last
    table.scroll_into_view_if_needed()
    box = table.bounding_box()
    page.mouse.click(box["x"] + 18, box["y"] + 58)
    page.wait_for_selector('.fd-viewer:not([data-selected=""])')
    marked = page.locator(".fd-viewer").get_attribute("data-selected")
    assert page.locator(".st-key-selected-atom").inner_text().startswith(("Mg", "Al"))
    assert marked in page.locator(".st-key-selected-atom").inner_text()


def test_later_scores_feel_immediate(server, open_page):
    page = open_page(f"{server.url}/?example=NaCl")
    viewer_ready(page)
    settled(page)
    started = time.monotonic()
    _upload(page, data.path("examples", "NaCl_compressed.vasp"))
    page.get_by_text("NaCl_compressed.vasp ·").wait_for()
    seconds = time.monotonic() - started
    print(f"a later score takes {seconds:.1f} s")
    assert seconds < 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize(
    "path", ["/", "/?example=Mg17Al12_one_atom", "/?example=ice_ladder", "/?example=MOF-5", "/how"]
)
def test_page_is_accessible_and_fits_its_window(server, open_page, path, width, scheme):
    page = open_page(server.url + path, width=width, scheme=scheme)
    page.locator("h1").wait_for()
    if "one_atom" in path:
        viewer_ready(page)
    elif path == "/":
        page.locator(".st-key-try_example button").wait_for()
    elif "ladder" in path:
        page.get_by_test_id("stDataFrame").first.wait_for()
    elif "MOF" in path:
        page.get_by_test_id("stAlert").first.wait_for()
    settled(page)
    assert not violations(page)


def test_static_files_are_served_by_the_app(server, open_page):
    page = open_page(server.url)
    reply = page.request.get(f"{server.url}/app/static/3Dmol-min.js")
    assert reply.ok and "javascript" in reply.headers["content-type"]
