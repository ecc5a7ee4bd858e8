"""The engine with real processes: a database and a folder per test, workers that are killed at the end whatever happened."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fdcore.config import Config
from fdcore.jobs.engine import Engine
from fdcore.spec import Spec
from fdcore.store import database
from fdcore.store.records import Run, Viewer
from fdcore.store.series import read_table
from fdcore.tasks.run import execute

ROOT = Path(__file__).parents[2]
OPERATOR = Viewer.operator()


def until(true: Callable[[], object], seconds: float = 60.0, what: str = "") -> None:
    """Wait until something holds; the test fails when it does not."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what or true}"
        time.sleep(0.02)


def drill(seed: int = 0, **parameters) -> Spec:
    return Spec("drill", None, "", 0, parameters, seed=seed)


class Worker:
    """A real supervisor process."""

    def __init__(self, config: Config, *arguments: str) -> None:
        self.config = config
        self._arguments = arguments
        self.process: subprocess.Popen[bytes] | None = None
        self.log = config.data / f"supervisor-{config.name}.txt"

    def start(self) -> Worker:
        config = self.config
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **config.environment(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fdcore.jobs.supervisor", *self._arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def children(self) -> list[int]:
        """Compute processes of this worker that are alive."""
        found = []
        for file in (self.config.data / "workers").glob(f"{self.config.name}.*.pid"):
            with contextlib.suppress(OSError, ValueError):
                pid = int(file.read_text())
                if b"fdcore.jobs.child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)
            self.process.wait()

    def kill_children(self) -> None:
        for pid in self.children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGCONT)
            self.kill()
        self.kill_children()


@pytest.fixture(scope="session", autouse=True)
def _bytecode(tmp_path_factory) -> Iterator[None]:
    """Workers start in a second, as from an installation, also where Python may not keep bytecode beside its sources."""
    with pytest.MonkeyPatch.context() as patch:
        if sys.dont_write_bytecode:
            patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
            patch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("bytecode")))
        yield


@pytest.fixture
def config(tmp_path) -> Iterator[Config]:
    """Everything is noticed sooner than in production."""
    made = Config(
        data=tmp_path / "data",
        checkpoint_seconds=0.2,
        poll_seconds=0.1,
        heartbeat_seconds=0.3,
        dead_after_seconds=5.0,
        cancel_grace_seconds=2.0,
        worker="none",
    )
    yield made
    database.dispose(made)


@pytest.fixture
def engine(config) -> Engine:
    return Engine(config)


@pytest.fixture
def workers() -> Iterator[Callable[..., Worker]]:
    """workers(config, *arguments) -> a started Worker."""
    started: list[Worker] = []

    def start(config: Config, *arguments: str) -> Worker:
        started.append(Worker(config, *arguments).start())
        return started[-1]

    yield start
    for worker in started:
        worker.end()


@pytest.fixture
def worker(config, engine, workers) -> Worker:
    """A worker that serves."""
    made = workers(config)
    until(lambda: any(w.alive for w in engine.store.workers()), what="a worker says hello")
    return made


def submit(engine: Engine, spec: Spec, owner: str = "me", lane: str = "quick", **keywords) -> str:
    return engine.submit(owner, spec, title=spec.task, lane=lane, **keywords)


def expected_positions(spec: Spec, folder: Path) -> np.ndarray:
    """What an uninterrupted drill records, made in this process."""
    calm = replace(spec, parameters={**spec.parameters, "step_seconds": 0.0, "trouble": ""})
    outcome = execute(calm, (), lambda spec: None, folder)
    assert outcome.state == "done"
    return read_table(folder, "steps")["position"]


def recorded(engine: Engine, run: Run):
    folder = engine.folder(run)
    assert folder is not None
    return read_table(folder, "steps")
