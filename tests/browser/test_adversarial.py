"""A person with a browser: ten structures on which the model contradicts itself, taken away and opened with ASE."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest

from fdcore.attack.guards import closest_pair
from fdcore.records import Structure
from tests.browser.conftest import settled, viewer_ready, violations

pytestmark = pytest.mark.browser


def _download(page, label: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.locator(".st-key-attack-downloads").get_by_role("button", name=label, exact=True).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_ten_structures_are_made_and_open_in_ase(server, open_page, tmp_path):
    page = open_page(f"{server.url}/adversarial?example=NaCl")
    start = page.locator(".st-key-attack-start button")
    start.wait_for()
    assert "Make 10 structures" in start.inner_text()
    start.click()
    page.locator(".st-key-attack-downloads").wait_for()
    viewer_ready(page)
    settled(page)
    assert page.get_by_test_id("stMetricValue").first.inner_text() == "10 of 10"

    frames = ase.io.read(_download(page, "extXYZ", tmp_path), ":")
    assert len(frames) == 10
    rows = list(ase.db.connect(_download(page, "ASE database", tmp_path)).select())
    crystals = ase.io.read(_download(page, "CIF", tmp_path), ":")
    assert len(rows) == len(crystals) == 10
    document = json.loads(_download(page, "JSON", tmp_path).read_text())
    [origin] = document["origins"]
    displaced = max(s["force_delta_eV_per_A"][0] for s in document["starts"])
    for atoms, row, crystal, result in zip(frames, rows, crystals, document["results"], strict=True):
        assert atoms.info["id"] == row.name == result["id"]
        np.testing.assert_allclose(row.positions, atoms.positions, atol=1e-6)
        assert crystal.get_chemical_formula() == atoms.get_chemical_formula() == "Cl4Na4"
        assert atoms.info["force_delta_eV_per_A"] >= 5 * origin["force_delta_eV_per_A"]
        # Any displacement of a perfect crystal does that: the climb does more than a random one, which is step 0.
        assert atoms.info["force_delta_eV_per_A"] >= 3 * displaced
        assert atoms.info["above_origin_eV_per_atom"] < 0.5
        assert closest_pair(Structure.from_atoms(atoms)).share >= 0.7
    with zipfile.ZipFile(_download(page, "All as zip", tmp_path)) as archive:
        inputs = [n for n in archive.namelist() if n.endswith("/POSCAR")]
        assert len(inputs) == 10
        poscar = ase.io.read(io.StringIO(archive.read(inputs[0]).decode()), format="vasp")
        assert len(poscar) == 8
        assert "What they are not" in archive.read("README.txt").decode()
        [parent] = ase.io.read(io.StringIO(archive.read("parents.extxyz").decode()), ":", format="extxyz")
    # What was promised can be computed from the files alone.
    for atoms in frames:
        info = atoms.info
        assert Structure.from_atoms(atoms).content_id == info["content_sha256"]
        assert info["parent_sha256"] == Structure.from_atoms(parent).content_id
        assert info["force_delta_eV_per_A"] >= 5 * parent.info["force_delta_eV_per_A"]
        assert (info["model_energy_eV"] - parent.info["model_energy_eV"]) / len(atoms) < 0.5

    # A row of the table shows how that structure came about.
    table = page.get_by_test_id("stDataFrame").first
    table.scroll_into_view_if_needed()
    before = page.locator(".fd-viewer").get_attribute("data-frame")
    box = table.bounding_box()
    # The third: below the header, rows are as high as their pictures.
    page.mouse.click(box["x"] + 18, box["y"] + 35 + 72 * 2.5)
    page.wait_for_selector(f'.fd-viewer:not([data-frame="{before}"])')
    assert not violations(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("query", ["", "?example=LGPS"])
def test_page_is_accessible_and_fits_its_window(server, open_page, query, width, scheme):
    page = open_page(f"{server.url}/adversarial{query}", width=width, scheme=scheme)
    page.locator(".st-key-attack-start button" if query else ".st-key-try_example button").wait_for()
    settled(page)
    assert not violations(page)
