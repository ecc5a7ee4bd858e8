"""The 3D view in a real browser."""

from __future__ import annotations

import time

import pytest

from tests.browser.conftest import viewer_ready

pytestmark = pytest.mark.browser

# Software rendering on a busy machine; a graphics card draws far more.
READY_S = 40
FRAMES_PER_S = 1.0


def _drag(page, steps: int) -> tuple[int, float]:
    """Frames drawn while turning the view by hand, and the seconds it took."""
    view = page.locator(".fd-viewer")
    box = page.locator(".fd-viewer .stage").bounding_box()
    before, started = int(view.get_attribute("data-frames")), time.monotonic()
    page.mouse.move(box["x"] + 100, box["y"] + 200)
    page.mouse.down()
    for step in range(steps):
        page.mouse.move(box["x"] + 100 + 5 * step, box["y"] + 200 + 2 * step)
    page.mouse.up()
    return int(view.get_attribute("data-frames")) - before, time.monotonic() - started


def _painted(page) -> int:
    """How many different colours the picture has: an empty one has very few."""
    from io import BytesIO

    from PIL import Image

    picture = Image.open(BytesIO(page.locator(".fd-viewer .stage").screenshot())).convert("RGB")
    return len(picture.getcolors(maxcolors=1 << 24))


def test_ten_thousand_atoms_are_drawn_and_turn(viewer_server, open_page):
    started = time.monotonic()
    page = open_page(f"{viewer_server.url}/?repeat=11")
    viewer_ready(page)
    assert time.monotonic() - started < READY_S
    assert page.locator(".fd-viewer").get_attribute("data-atoms") == str(8 * 11**3)
    frames, seconds = _drag(page, 12)
    assert frames >= 10
    assert frames / seconds > FRAMES_PER_S, f"{frames} frames in {seconds:.1f} s"
    assert _painted(page) > 200


def test_clicked_atom_reaches_the_page(viewer_server, open_page):
    page = open_page(viewer_server.url)
    viewer_ready(page)
    box = page.locator(".fd-viewer .stage").bounding_box()
    text = page.get_by_text("selected", exact=False)
    for dx, dy in ((0, 0), (30, 0), (-30, 20), (60, -40), (-60, 40), (0, 60), (0, -60), (90, 0), (-90, 0)):
        page.mouse.click(box["x"] + box["width"] / 2 + dx, box["y"] + box["height"] / 2 + dy)
        page.wait_for_timeout(700)
        if "None" not in text.inner_text():
            break
    atom = text.inner_text().removeprefix("selected ")
    assert atom.isdigit()
    page.wait_for_selector(f'.fd-viewer[data-selected="{atom}"]')


def test_toggles_change_the_picture_without_the_server(viewer_server, open_page):
    page = open_page(viewer_server.url)
    viewer_ready(page)
    stage = page.locator(".fd-viewer .stage")
    seen = [stage.screenshot()]
    for option, value in (("colour", "element"), ("arrows", "difference"), ("cells", "2")):
        page.locator(f'.fd-viewer select[data-option="{option}"]').select_option(value)
        page.wait_for_timeout(500)
        seen.append(stage.screenshot())
    page.locator('.fd-viewer input[data-option="bonds"]').uncheck()
    page.wait_for_timeout(500)
    seen.append(stage.screenshot())
    assert len(set(seen)) == len(seen)
    assert page.locator(".fd-viewer").get_attribute("data-atoms") == "64"
    assert "eV/Å" in page.locator(".fd-viewer .note").inner_text()


def test_legend_starts_at_zero_and_has_a_unit(viewer_server, open_page):
    page = open_page(viewer_server.url)
    viewer_ready(page)
    legend = page.locator(".fd-viewer .legend").inner_text()
    assert "Disagreement u_i" in legend and legend.split()[2] == "0" and legend.endswith("eV/Å")


def test_keyboard_turns_the_view(viewer_server, open_page):
    page = open_page(viewer_server.url)
    viewer_ready(page)
    stage = page.locator(".fd-viewer .stage")
    before = stage.screenshot()
    stage.focus()
    for key in ("ArrowLeft", "ArrowUp", "+"):
        page.keyboard.press(key)
    page.wait_for_timeout(300)
    assert stage.screenshot() != before
