"""A real browser against a real server. Skipped, with the reason, where there is no chromium or no playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fdcore.config import Config
from fdcore.jobs.supervisor import is_running
from fdcore.store import database
from fdcore.store.runs import Store

ROOT = Path(__file__).parents[2]
CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
# Software rendering everywhere, and nothing that a browser does of its own accord.
FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
]
PATIENCE_MS = int(os.environ.get("FD_PATIENCE_MS", "90000"))


def pytest_collection_modifyitems(items):
    try:
        import playwright  # noqa: F401
    except ImportError:
        reason = "no playwright in this environment: `make install-dev` brings it"
    else:
        reason = (
            "no chromium on this machine: `make browser` installs it (Debian, needs root)" if CHROMIUM is None else ""
        )
    if reason:
        for item in items:
            if ROOT / "tests" / "browser" in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


class Server:
    """A Streamlit server of one script on a free port; `url` has no trailing slash."""

    def __init__(self, script: Path, folder: Path, *, cwd: Path = ROOT, start: bool = True) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = Config(data=folder / "data")
        self._script, self._cwd = script, cwd
        self._log_file = folder / "log.txt"
        if start:
            self.start()

    def start(self) -> None:
        script, log = self._script, self._log_file
        command = [sys.executable, "-m", "streamlit", "run", str(script), "--server.headless", "true"]
        command += ["--server.port", str(self.port), "--server.address", "127.0.0.1"]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, **self.config.environment(), "PYTHONPATH": path}
        self._log = log.open("a")
        self._process = subprocess.Popen(
            command, cwd=self._cwd, env=environment, stdout=self._log, stderr=subprocess.STDOUT, text=True
        )
        self._wait(log)

    def _wait(self, log: Path) -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended: {log.read_text()[-2000:]}")
            try:
                with urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise RuntimeError(f"the server did not answer: {log.read_text()[-2000:]}")

    def kill(self) -> None:
        """The server alone, as a crash does; its worker stays."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def stop(self) -> None:
        """The server, its worker and the compute processes of that."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()
        if not (self.config.data / "fdcore.sqlite").exists():
            return
        for worker in Store(self.config).workers():
            if worker.alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGTERM)
        until = time.monotonic() + 15
        while is_running(self.config) and time.monotonic() < until:
            time.sleep(0.1)
        database.dispose(self.config)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The app itself."""
    running = Server(ROOT / "app.py", tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def viewer_server(tmp_path_factory):
    """The 3D view alone, over structures of any size. Streamlit serves the static folder beside the script it runs."""
    folder = tmp_path_factory.mktemp("viewer")
    shutil.copytree(ROOT / "static", folder / "static")
    script = Path(shutil.copy(Path(__file__).parent / "viewer_app.py", folder))
    running = Server(script, folder)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """open_page(url, width=1400, scheme="light") -> page. When the test ends, every request and every websocket of every
    page must have gone to the page's own host, and no script may have failed."""
    contexts, wrong = [], []

    def opened(url: str, *, width: int = 1400, height: int = 900, scheme: str = "light", context=None, also: str = ""):
        """`context`: a browser that was here before. `also`: another host that this page may speak to."""
        own = urlsplit(url).netloc
        if context is None:
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)

        def check(kind: str, address: str) -> None:
            parts = urlsplit(address)
            if parts.scheme not in ("data", "blob", "about") and parts.netloc not in (own, also):
                wrong.append(f"{kind} to another host: {address}")

        page.on("request", lambda request: check("request", request.url))
        page.on("websocket", lambda socket: check("websocket", socket.url))
        page.on("pageerror", lambda error: wrong.append(f"script error: {error}"))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong, wrong


def viewer_ready(page, timeout: float = PATIENCE_MS) -> None:
    page.wait_for_selector('.fd-viewer[data-ready="true"]', timeout=timeout)


def settled(page) -> None:
    """The script run is over and what it drew is there."""
    page.wait_for_function(
        """() => { const app = document.querySelector('[data-testid="stApp"]');
                   return app && app.getAttribute('data-test-script-state') === 'notRunning'; }"""
    )
    page.wait_for_timeout(400)


def _in_streamlits_menu(page, target: list[str]) -> bool:
    found = "selector => !!document.querySelector(selector)?.closest('[data-testid=\"stSidebarNav\"]')"
    return bool(page.evaluate(found, target[0]))


def _serious(page, within: str) -> list[str]:
    found = page.evaluate("part => axe.run(part, {resultTypes: ['violations']})", within)["violations"]
    return [
        f"{v['id']}: {v['help']}: {v['nodes'][0]['html'][:200]}"
        for v in found
        if v["impact"] in ("serious", "critical")
        and not (v["id"] in ("list", "listitem") and all(_in_streamlits_menu(page, n["target"]) for n in v["nodes"]))
    ]


def violations(page, within: str = "html") -> list[str]:
    """What axe finds serious within this part, and whether the page is wider than its window. Not what Streamlit itself does wrong: the menu
    of grouped pages in its sidebar has wrappers between a list and its items."""
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    page.add_script_tag(content=(Path(__file__).parent / "axe" / "axe.min.js").read_text())
    serious = _serious(page, within)
    for _ in range(3):
        if not serious:
            break
        # What is being drawn anew is pale for a moment. A fault that stays is one.
        page.wait_for_timeout(1500)
        serious = _serious(page, within)
    return serious + ([f"the page is {overflow} pixels wider than its window"] if overflow > 0 else [])
