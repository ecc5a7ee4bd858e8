"""Dynamics as a person with a browser meets it: a chart that moves, a cancel that works, a trajectory that plays and can be taken away."""

from __future__ import annotations

import io
from pathlib import Path

import ase.io
import pytest
from ase.build import bulk
from playwright.sync_api import expect

from tests.browser.conftest import PATIENCE_MS, settled, viewer_ready, violations

pytestmark = pytest.mark.browser


@pytest.fixture
def salt(tmp_path) -> Path:
    atoms = bulk("NaCl", "rocksalt", a=5.65, cubic=True)
    atoms.rattle(0.05, seed=1)
    ase.io.write(tmp_path / "moving.extxyz", atoms, format="extxyz")
    return tmp_path / "moving.extxyz"


def _bring(page, file: Path) -> None:
    page.locator(".st-key-try_example button").wait_for()
    page.set_input_files('[data-testid="stFileUploader"] input', str(file))
    page.locator(".st-key-motion-start button").wait_for()
    settled(page)


def _start(page) -> None:
    page.locator(".st-key-motion-start button").click()


def _done(page) -> None:
    page.get_by_role("button", name="extXYZ").wait_for()
    viewer_ready(page)
    settled(page)


def test_chart_moves_and_cancel_keeps_what_was_computed(server, open_page, salt):
    page = open_page(f"{server.url}/dynamics")
    _bring(page, salt)
    page.get_by_text("Long NVT", exact=True).click()
    page.get_by_text("50,000 steps").wait_for()
    _start(page)
    page.get_by_role("button", name="Cancel", exact=True).wait_for()
    chart = page.get_by_test_id("stVegaLiteChart").first
    chart.wait_for()
    simulated = page.get_by_test_id("stMetricValue").last
    seen = set()
    for _ in range(40):
        seen.add((simulated.inner_text(), chart.screenshot()))
        if len({text for text, _ in seen}) > 2 and len({picture for _, picture in seen}) > 2:
            break
        page.wait_for_timeout(700)
    assert len({text for text, _ in seen}) > 2, "the time moves on"
    assert len({picture for _, picture in seen}) > 2, "and so does the chart"

    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_text("Everything up to here is kept").wait_for()
    page.get_by_role("button", name="Continue").wait_for()
    kept = simulated.inner_text()
    assert float(kept.split()[0]) > 0
    link = page.url
    assert "run=" in link
    again = open_page(link, context=page.context)
    again.get_by_text("Everything up to here is kept").wait_for()
    settled(again)
    # Drawn one after the other: until the last of them is there, another is the last.
    expect(again.get_by_test_id("stMetricValue").last).to_have_text(kept, timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def finished(server, browser, tmp_path_factory):
    """The link to a finished quick look, with the browser that owns it."""
    folder = tmp_path_factory.mktemp("moving")
    atoms = bulk("NaCl", "rocksalt", a=5.65, cubic=True)
    atoms.rattle(0.05, seed=1)
    ase.io.write(folder / "moving.extxyz", atoms, format="extxyz")
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{server.url}/dynamics")
    _bring(page, folder / "moving.extxyz")
    _start(page)
    _done(page)
    yield page.url, context.storage_state()
    context.close()


def test_trajectory_plays_and_reads_back(finished, open_page, browser):
    link, state = finished
    context = browser.new_context(viewport={"width": 1400, "height": 900}, storage_state=state)
    page = open_page(link, context=context)
    _done(page)
    view = page.locator(".fd-viewer")
    page.get_by_role("button", name="Play").click()
    for _ in range(100):
        if int(view.get_attribute("data-frame")) > 3:
            break
        page.wait_for_timeout(200)
    page.get_by_role("button", name="Pause").click()
    assert int(view.get_attribute("data-frame")) > 3
    # The frame where it stands is told to the page, which is drawn again: a click in between would meet a button that goes.
    settled(page)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="extXYZ").click()
    frames = ase.io.read(io.StringIO(Path(waiting.value.path()).read_text()), ":", format="extxyz")
    assert len(frames) > 10 and frames[-1].info["leg"] == "production"
    assert {"forces_direct", "forces_conservative", "force_delta_per_atom"} <= set(frames[-1].arrays)
    assert frames[-1].info["time_ps"] == pytest.approx(2.0) and frames[-1].get_temperature() > 10
    context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (400, "dark")])
def test_page_is_accessible(finished, open_page, browser, width, scheme):
    link, state = finished
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, storage_state=state)
    page = open_page(link, context=context)
    _done(page)
    assert not violations(page)
    page.get_by_role("button", name="Change settings").click()
    page.locator(".st-key-motion-start button").wait_for()
    settled(page)
    assert not violations(page)
    context.close()
