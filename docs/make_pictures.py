"""Make docs/score.png and the previews of the start page anew: `.venv/bin/python docs/make_pictures.py` (needs chromium)."""

from __future__ import annotations

import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.browser.conftest import CHROMIUM, FLAGS, PATIENCE_MS, Server, settled, viewer_ready  # noqa: E402

EXAMPLE = "Mg17Al12_one_atom"
PREVIEW_WIDTH = 1000


def main() -> None:
    """One server, one browser, both themes."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(ROOT / "app.py", Path(folder))
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": 1400, "height": 1190}, color_scheme=scheme)
                page.set_default_timeout(PATIENCE_MS)
                page.goto(f"{server.url}/?example={EXAMPLE}")
                _take(page, scheme)
        finally:
            server.stop()


def _take(page, scheme: str) -> None:
    viewer_ready(page)
    settled(page)
    page.locator('.fd-viewer select[data-option="arrows"]').select_option("difference")
    stage = page.locator(".fd-viewer .stage").bounding_box()
    # Turned until the displaced atom stands free.
    page.mouse.move(stage["x"] + 300, stage["y"] + 200)
    page.mouse.down()
    for step in range(8):
        page.mouse.move(stage["x"] + 300 + 18 * step, stage["y"] + 200 - 2 * step)
    page.mouse.up()
    page.mouse.move(5, 600)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(2500)
    if scheme == "light":
        _save(page.screenshot(), ROOT / "docs" / "score.png", None)
    top, view = page.locator(".st-key-verdict").bounding_box(), page.locator(".fd-viewer").bounding_box()
    bottom = view["y"] + view["height"]
    clip = {"x": top["x"] - 8, "y": top["y"] - 8, "width": top["width"] + 16, "height": bottom - top["y"] + 16}
    _save(page.screenshot(clip=clip), ROOT / "static" / f"preview-{scheme}.png", PREVIEW_WIDTH)


def _save(picture: bytes, path: Path, width: int | None) -> None:
    image = Image.open(BytesIO(picture)).convert("RGB")
    if width is not None:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    image.save(path, optimize=True)


if __name__ == "__main__":
    main()
