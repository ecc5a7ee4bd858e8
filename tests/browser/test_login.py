"""A login at a real OpenID Connect provider (a tiny one), as an operator configures it."""

from __future__ import annotations

import hashlib
import shutil

import pytest

from fdcore.store.records import Viewer
from fdcore.store.runs import Store
from tests.browser.conftest import ROOT, Server, settled
from tests.browser.login_provider import NAME, SUBJECT, Provider

pytestmark = pytest.mark.browser

CLIENT = "force-delta-test"


@pytest.fixture
def provider():
    running = Provider(CLIENT)
    yield running
    running.stop()


@pytest.fixture
def login_server(provider, tmp_path_factory):
    """The app with a secrets file, in a folder of its own so that no other test sees it."""
    folder = tmp_path_factory.mktemp("login")
    for name in ("app.py", "ui.py", "pages", "static", ".streamlit"):
        place = ROOT / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, folder / name)
    running = Server(folder / "app.py", folder, cwd=folder, start=False)
    (folder / ".streamlit" / "secrets.toml").write_text(
        f"""[auth]
redirect_uri = "{running.url}/oauth2callback"
cookie_secret = "{"0123456789abcdef" * 4}"
client_id = "{CLIENT}"
client_secret = "not so secret"
server_metadata_url = "{provider.address}/.well-known/openid-configuration"
"""
    )
    running.start()
    yield running
    running.stop()


def test_login_takes_the_browsers_runs_over_and_logout_gives_the_browser_back(login_server, provider, open_page):
    page = open_page(login_server.url, also=provider.host)
    page.locator(".st-key-try_example button").click()
    page.get_by_test_id("stMetricValue").wait_for()
    store = Store(login_server.config)
    [run] = store.list_runs(Viewer.operator())
    assert run.owner.startswith("browser:") and run.title in page.content()
    [cookie] = [c["value"] for c in page.context.cookies() if c["name"] == "fd_owner"]
    assert run.owner == "browser:" + hashlib.sha256(cookie.encode()).hexdigest(), "the store never holds the cookie"

    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name=NAME).wait_for()
    account = "oidc:" + hashlib.sha256(f"{provider.address}\0{SUBJECT}".encode()).hexdigest()
    page.get_by_text("1 run of this browser now belong").wait_for()
    assert [r.id for r in store.list_runs(Viewer(account))] == [run.id]
    assert store.list_runs(Viewer(run.owner)) == ()

    elsewhere = open_page(f"{login_server.url}/runs", also=provider.host)
    elsewhere.get_by_text("Nothing has run yet").wait_for()
    elsewhere.get_by_role("button", name="Log in").click()
    elsewhere.get_by_role("button", name=NAME).wait_for()
    elsewhere.goto(f"{login_server.url}/runs")
    elsewhere.get_by_test_id("stDataFrame").wait_for()

    settled(page)
    page.get_by_role("button", name=NAME).click()
    page.get_by_role("button", name="Log out").click()
    page.get_by_role("button", name="Log in").wait_for()
    page.goto(f"{login_server.url}/runs")
    page.get_by_text("Nothing has run yet").wait_for()
