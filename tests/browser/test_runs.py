"""Runs as a person with a browser meets them: owners, links, a server that is killed, the Runs page."""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
import zipfile
from pathlib import Path

import playwright.sync_api as playwright
import pytest
from ase.build import bulk

from fdcore import data, services
from fdcore.jobs.engine import Engine
from fdcore.records import Structure
from fdcore.services import runs as services_runs
from fdcore.spec import ModelChoice, Spec
from fdcore.store import structures as stored
from fdcore.store.records import Viewer
from fdcore.store.runs import Store
from tests.browser.conftest import ROOT, Server, settled, violations

pytestmark = pytest.mark.browser

OPERATOR = Viewer.operator()
LADDER = data.path("examples", "ice_ladder.extxyz")


def _upload(page, *files) -> None:
    page.set_input_files('[data-testid="stFileUploader"] input', [str(f) for f in files])


def _scored(page, title: str) -> None:
    page.get_by_text(title).first.wait_for()


def _select_row(page, row: int) -> None:
    """The check box at the start of a row of the table of ended runs, which is drawn on a canvas: a click that comes before
    the canvas listens is lost, and only then is there another one."""
    for patience in (10_000, 20_000, 40_000):
        box = page.get_by_test_id("stDataFrame").first.bounding_box()
        page.mouse.click(box["x"] + 17, box["y"] + 34 + 33 * row + 16)
        try:
            page.locator(".st-key-run-detail").wait_for(timeout=patience)
            break
        except playwright.TimeoutError:
            continue
    settled(page)


def test_cookie_makes_the_owner_and_scripts_cannot_read_it(server, open_page):
    page = open_page(server.url)
    page.locator(".st-key-try_example button").wait_for()
    [cookie] = [c for c in page.context.cookies() if c["name"] == "fd_owner"]
    assert cookie["httpOnly"] and cookie["sameSite"] == "Lax" and len(cookie["value"]) == 43
    assert "fd_owner" not in page.evaluate("document.cookie")
    page.reload()
    page.locator(".st-key-try_example button").wait_for()
    assert [c["value"] for c in page.context.cookies() if c["name"] == "fd_owner"] == [cookie["value"]]


def test_upload_is_kept_linked_listed_and_invisible_to_others(server, open_page, tmp_path):
    page = open_page(server.url)
    page.locator(".st-key-try_example button").wait_for()
    mine = tmp_path / "mine-alone.extxyz"
    mine.write_bytes(Path(str(LADDER)).read_bytes())
    _upload(page, mine)
    _scored(page, "12 structures")
    settled(page)
    assert "?run=" in page.url
    link = page.url

    again = open_page(link, context=page.context)
    _scored(again, "12 structures")
    other = open_page(link)
    other.get_by_text("belongs to somebody else").wait_for()
    assert other.get_by_text("12 structures").count() == 0

    runs = open_page(f"{server.url}/runs", context=page.context)
    runs.get_by_test_id("stDataFrame").wait_for()
    settled(runs)
    _select_row(runs, 0)
    runs.get_by_text("Score of 12 structures with fd-orb-small-v1").wait_for()
    with runs.expect_download() as waiting:
        runs.get_by_role("button", name="Download", exact=True).click()
    archive = zipfile.ZipFile(io.BytesIO(Path(waiting.value.path()).read_bytes()))
    assert len(json.loads(archive.read("scores.json"))["results"]) == 12
    runs.get_by_role("button", name="Share by link").click()
    runs.get_by_text("whoever has this link").wait_for()
    shared = runs.locator("code", has_text="key=").inner_text().strip()
    guest = open_page(shared)
    _scored(guest, "12 structures")

    runs.get_by_role("button", name="Delete", exact=True).click()
    runs.get_by_role("button", name="Delete for good").click()
    runs.get_by_text("mine-alone.extxyz").first.wait_for(state="detached")
    late = open_page(shared)
    late.get_by_text("There is no such run").wait_for()


def test_opening_a_run_from_the_history_shows_its_result(server, open_page):
    page = open_page(server.url)
    page.locator(".st-key-try_example button").click()
    shown = page.get_by_test_id("stMetricValue").inner_text()
    runs = open_page(f"{server.url}/runs", context=page.context)
    runs.get_by_test_id("stDataFrame").wait_for()
    settled(runs)
    _select_row(runs, 0)
    runs.locator(".st-key-run-actions").get_by_role("button", name="Open").click()
    assert runs.get_by_test_id("stMetricValue").inner_text() == shown
    assert "run=" in runs.url


def _owner(context) -> str:
    """Who the browser is to the server."""
    [cookie] = [c["value"] for c in context.cookies() if c["name"] == "fd_owner"]
    return f"browser:{hashlib.sha256(cookie.encode()).hexdigest()}"


COUNT_RUNS = """() => {
    const app = document.querySelector('[data-testid="stApp"]');
    window.begun = 0;
    new MutationObserver(() => { window.begun += app.getAttribute('data-test-script-state') === 'running'; })
        .observe(app, {attributes: true, attributeFilter: ['data-test-script-state']});
}"""


def test_empty_runs_page_notices_what_another_tab_started(server, open_page):
    runs = open_page(f"{server.url}/runs")
    runs.get_by_text("Nothing has run yet").wait_for()
    settled(runs)
    runs.evaluate(COUNT_RUNS)
    runs.wait_for_timeout(7500)
    assert runs.evaluate("window.begun") <= 4, "it looks every 3 s, and does not draw itself over and over"
    other = open_page(server.url, context=runs.context)
    other.locator(".st-key-try_example button").click()
    other.get_by_test_id("stMetricValue").wait_for()
    runs.get_by_test_id("stDataFrame").wait_for(timeout=10_000)
    assert runs.get_by_text("Nothing has run yet").count() == 0


def test_what_is_selected_below_many_active_runs_is_brought_into_view(server, open_page):
    page = open_page(server.url)
    page.locator(".st-key-try_example button").click()
    page.get_by_test_id("stMetricValue").wait_for()
    engine = Engine(server.config)
    spec = Spec("drill", None, "", 0, {"steps": 5000, "step_seconds": 0.2})
    active = [engine.submit(_owner(page.context), spec, title=f"drill {k}", lane="long") for k in range(4)]
    try:
        runs = open_page(f"{server.url}/runs", context=page.context, height=900)
        runs.get_by_text("1 running, 3 waiting").wait_for()
        settled(runs)
        runs.get_by_test_id("stDataFrame").scroll_into_view_if_needed()
        _select_row(runs, 0)
        actions = runs.locator(".st-key-run-actions")
        actions.wait_for()
        runs.wait_for_function(
            """() => { const box = document.querySelector('.st-key-run-actions').getBoundingClientRect();
                       return box.top >= 0 && box.bottom <= window.innerHeight; }""",
            timeout=10_000,
        )
    finally:
        for run_id in active:
            engine.cancel(OPERATOR, run_id)


@pytest.fixture
def own_server(tmp_path_factory):
    """A server that may be killed."""
    running = Server(ROOT / "app.py", tmp_path_factory.mktemp("killed"))
    yield running
    running.stop()


def test_page_recovers_by_itself_when_the_server_was_killed(own_server, open_page):
    page = open_page(own_server.url)
    page.locator(".st-key-try_example button").wait_for()
    _upload(page, LADDER)
    _scored(page, "12 structures")
    settled(page)
    store = Store(own_server.config)
    [done] = store.list_runs(OPERATOR)
    # A second run of the same owner that is still in work while the server is gone.
    spec = Spec("drill", None, "", 0, {"steps": 900, "step_seconds": 0.2})
    engine = Engine(own_server.config)
    long = engine.submit(done.owner, spec, title="a long drill", lane="long")
    while store.run(OPERATOR, long).done < 5:
        time.sleep(0.05)
    # And a simulation, watched on its page.
    structures = [Structure.from_atoms(bulk("NaCl", "rocksalt", a=5.65, cubic=True), file="salt.xyz")]
    choice = ModelChoice(services.default_model_id(), device="cpu")
    moves = services_runs.spec_of("md", structures, choice, {"steps": 200_000, "timestep_fs": 1.0})
    salt = engine.submit(
        done.owner, moves, title="salt", lane="quick", also=lambda c, run: stored.add(c, run, structures)
    )
    runs = open_page(f"{own_server.url}/runs", context=page.context)
    runs.get_by_text("2 running, 0 waiting").wait_for()
    moving = open_page(f"{own_server.url}/dynamics?run={salt}", context=page.context)
    moving.get_by_text(re.compile(r"of 200 ps")).first.wait_for()

    own_server.kill()
    before = store.run(OPERATOR, long).done
    moved = store.run(OPERATOR, salt).done
    time.sleep(2)
    assert store.run(OPERATOR, long).done > before, "work goes on without a server"
    own_server.start()
    # Nobody touches the pages: they come back by themselves, with what was on them.
    page.wait_for_function("() => !document.querySelector('[data-testid=\"stConnectionStatus\"]')")
    runs.get_by_text("of 900").first.wait_for()
    runs.get_by_text("a long drill").first.wait_for()
    runs.wait_for_function(
        f"() => {{ const t = document.body.innerText.match(/Step ([0-9]+) of 900/); return t && Number(t[1]) > {before}; }}"
    )
    moving.wait_for_function(
        f"() => {{ const t = document.body.innerText.match(/: ([0-9.]+) of 200 ps/); return t && Number(t[1]) > {moved / 1000}; }}"
    )
    moving.locator(".st-key-stop button").click()
    assert engine.wait(OPERATOR, salt, 20).state == "cancelled" and len(store.attempts(salt)) == 1
    moving.locator(".st-key-progress").wait_for(state="detached")
    settled(page)
    page.get_by_label("Filter").fill("ice")
    page.get_by_label("Filter").press("Enter")
    settled(page)
    assert page.get_by_text("12 structures").count() >= 1, "the session was rebuilt from the address"
    runs.get_by_role("button", name="Stop").first.click()
    runs.get_by_text("Ended").first.wait_for()
    assert engine.wait(OPERATOR, long, 20).state == "cancelled"
    assert len(store.attempts(long)) == 1


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (400, "dark")])
def test_runs_page_is_accessible(server, open_page, width, scheme):
    page = open_page(server.url, width=width, scheme=scheme)
    page.locator(".st-key-try_example button").click()
    page.get_by_test_id("stMetricValue").wait_for()
    runs = open_page(f"{server.url}/runs", context=page.context)
    runs.get_by_test_id("stDataFrame").wait_for()
    settled(runs)
    _select_row(runs, 0)
    runs.get_by_text("Score of 1 structure").wait_for()
    assert not violations(runs)
