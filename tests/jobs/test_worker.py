"""The worker as a process: what it costs, when it goes, who may be two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fdcore.jobs.engine import Engine
from fdcore.jobs.supervisor import app_is_open, page_is_open
from tests.jobs.conftest import OPERATOR, ROOT, drill, submit, until

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc, which this system has not")


def memory_MB(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@linux
def test_idle_worker_costs_little_and_gives_its_models_back(config, workers):
    usual = replace(config, idle_seconds=1.0, poll_seconds=0.3, heartbeat_seconds=2.0)
    engine = Engine(usual)
    worker = workers(usual)
    engine.wait(OPERATOR, submit(engine, drill(steps=2)))
    assert worker.children()
    until(lambda: not worker.children(), 15, "the compute process ends when it has nothing to do")
    time.sleep(2)
    began, before = time.monotonic(), cpu_seconds(worker.pid)
    time.sleep(15)
    share = (cpu_seconds(worker.pid) - before) / (time.monotonic() - began)
    assert memory_MB(worker.pid) < 150
    assert share < 0.05, f"{share:.1%} of a core"
    # And it still serves.
    assert engine.wait(OPERATOR, submit(engine, drill(steps=2)), 30).state == "done"


@linux
def test_models_stay_unloaded_while_an_app_is_open_and_nobody_uses_it(config, workers):
    idle = replace(config, idle_seconds=1.5)
    Engine(idle)
    page_is_open(idle)
    worker = workers(idle, "--linger")
    until(worker.children, what="a model is loaded for who comes first")
    until(lambda: not worker.children(), 30, "nobody used it")
    came_back = []
    end = time.monotonic() + 4
    while time.monotonic() < end:
        # The app does so every 30 s.
        app_is_open(idle)
        time.sleep(0.2)
        came_back += worker.children()
    assert came_back == []
    assert memory_MB(worker.pid) < 150
    page_is_open(idle)
    until(worker.children, 10, "somebody has opened a page")


def test_supervisor_loads_no_science():
    code = "import sys, json, fdcore.jobs.supervisor, dbos; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"numpy", "torch", "ase", "h5py", "pandas", "streamlit"}


def test_second_worker_of_a_name_goes_at_once(config, worker, workers):
    second = workers(config)
    assert second.process.wait(30) == 3
    assert "running already" in second.log.read_text()
    assert worker.process.poll() is None


def test_lingering_worker_goes_when_nobody_looks_and_nothing_is_left(config, engine, tmp_path):
    script = tmp_path / "short.py"
    script.write_text(
        "import sys; from fdcore.jobs import supervisor\n"
        "supervisor.APP_SILENT_SECONDS = 3.0\n"
        "sys.exit(supervisor.main(['--linger']))\n"
    )
    run_id = submit(engine, drill(steps=80, step_seconds=0.1))
    environment = {**os.environ, **config.environment(), "PYTHONPATH": str(ROOT), "FDCORE_QUICK_SLOTS": "1"}
    process = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.DEVNULL)
    try:
        run = engine.wait(OPERATOR, run_id)
        assert run.state == "done", "a run outlives whoever looked"
        assert run.ended_at - run.started_at > 6, "longer than the silence after which it goes"
        assert process.wait(30) == 0
    finally:
        process.kill()


def test_interrupted_worker_ends_in_order(config, engine, worker):
    submit(engine, drill(steps=500))
    until(lambda: engine.store.list_runs(OPERATOR)[0].done > 1)
    began = time.monotonic()
    worker.kill(signal.SIGINT)
    assert time.monotonic() - began < 8
    assert worker.process.returncode == 0
    assert [w.alive for w in engine.store.workers()] == [False]
