"""The bar of pages: every page can be reached in windows of every width."""

from __future__ import annotations

import pytest

from tests.browser.conftest import settled

pytestmark = pytest.mark.browser

PAGES = {
    "": ("Score", "Dynamics", "Adversarial", "Ensemble", "Screen", "Runs"),
    "Model": ("Report", "Validate", "Fine-tune", "Models"),
    "Method": ("Reproduce", "How it works"),
}


def inside(page, locator) -> bool:
    box = locator.bounding_box()
    return box is not None and box["x"] >= 0 and box["x"] + box["width"] <= page.viewport_size["width"]


# 768 is the narrowest window in which Streamlit has a bar; at 1000, eleven pages side by side lost the last of them.
@pytest.mark.parametrize("width", [1400, 1000, 768])
def test_every_page_is_in_the_bar(server, open_page, width):
    page = open_page(f"{server.url}/how", width=width)
    page.get_by_role("heading", name="How it works").wait_for()
    settled(page)
    bar = page.get_by_test_id("stHeader")
    for group, titles in PAGES.items():
        links = bar.get_by_test_id("stTopNavLink")
        if group:
            header = bar.get_by_test_id("stTopNavSection").filter(has_text=group)
            assert inside(page, header), f"{group} at {width}"
            header.click()
            links = page.get_by_test_id("stTopNavDropdownLink")
        for title in titles:
            link = links.filter(has_text=title).first
            link.wait_for()
            assert inside(page, link), f"{title} at {width}"
        if group:
            page.keyboard.press("Escape")
    bar.get_by_test_id("stTopNavSection").filter(has_text="Model").click()
    page.get_by_test_id("stTopNavDropdownLink").filter(has_text="Report").click()
    page.get_by_role("heading", name="Is this model conservative here?").wait_for()


def test_every_page_is_in_the_menu_of_a_narrow_window(server, open_page):
    page = open_page(f"{server.url}/how", width=400)
    page.get_by_role("heading", name="How it works").wait_for()
    settled(page)
    page.get_by_test_id("stExpandSidebarButton").click()
    menu = page.get_by_test_id("stSidebarNav")
    for title in (t for titles in PAGES.values() for t in titles):
        link = menu.get_by_role("link", name=title).first
        link.wait_for()
        link.scroll_into_view_if_needed()
        assert inside(page, link), title
