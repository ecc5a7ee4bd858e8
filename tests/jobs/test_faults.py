"""Faults of everything around a run: a full disk, a broken folder, housekeeping that fails, a worker that froze."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa

from fdcore.errors import StoreError
from fdcore.jobs import queue, supervisor
from fdcore.jobs.engine import Engine
from fdcore.jobs.supervisor import AlreadyRunning, Supervisor, is_running
from fdcore.jobs.work import Work
from fdcore.store import schema, series
from fdcore.store.files import attempt_folder, latest_folder
from fdcore.store.series import Checkpoint, Column, Recorder, read_result, read_table
from fdcore.tasks.run import Limits, execute
from tests.jobs.conftest import OPERATOR, ROOT, drill, recorded, submit, until

TABLE = {"a": {"n": Column("<i8"), "x": Column("<f8", (100, 3))}}


# ---- the record ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_a_failed_run_with_advice_and_what_was_recorded_stays(tmp_path, monkeypatch, number):
    left = iter(range(40))
    save = Recorder.save

    def full(self, state):
        if next(left, None) is None:
            raise OSError(number, os.strerror(number))
        save(self, state)

    monkeypatch.setattr(Recorder, "save", full)
    spec = drill(steps=100, step_seconds=0.0)
    outcome = execute(spec, (), lambda s: None, tmp_path / "r", limits=Limits(0.0))
    assert (outcome.state, outcome.error) == ("failed", "The disk that holds the runs is full.")
    assert "Delete runs" in outcome.hint and outcome.summary is None
    assert list(read_table(tmp_path / "r", "steps")["step"]) == list(range(41))
    monkeypatch.setattr(Recorder, "save", save)
    again = execute(spec, (), lambda s: None, tmp_path / "again", previous=[tmp_path / "r"])
    assert again.state == "done" and list(read_table(tmp_path / "again", "steps")["step"]) == list(range(100))


def test_what_nobody_foresaw_goes_up_but_leaves_what_was_recorded(tmp_path, monkeypatch):
    left = iter(range(10))

    def broken(self, table, columns):
        if next(left, None) is None:
            raise ZeroDivisionError("of a library")
        append(self, table, columns)

    append = Recorder.append
    monkeypatch.setattr(Recorder, "append", broken)
    with pytest.raises(ZeroDivisionError):
        execute(drill(steps=100, step_seconds=0.0), (), lambda s: None, tmp_path / "r")
    assert list(read_table(tmp_path / "r", "steps")["step"]) == list(range(10))


def test_folder_has_its_name_only_when_it_holds_what_it_goes_on_from(config, monkeypatch):
    """A worker killed while it copies must not leave an attempt that hides the earlier one."""
    first = Recorder(attempt_folder(config, "r", 1), TABLE)
    first.append("a", {"n": range(50), "x": np.zeros((50, 100, 3))})
    first.save(Checkpoint({"k": 50}, {}))
    first.close()
    monkeypatch.setattr(series, "COPY_BYTES", 10 * 2408)
    seen, copy = [], Recorder._copy

    def watched(self, old, table, start, stop):
        seen.append((start, stop, latest_folder(config, "r", 2)))
        copy(self, old, table, start, stop)

    monkeypatch.setattr(Recorder, "_copy", watched)
    second = Recorder(attempt_folder(config, "r", 2), TABLE, attempt_folder(config, "r", 1))
    second.close()
    assert [s[:2] for s in seen] == [(k, k + 10) for k in range(0, 50, 10)], "a part at a time, by size"
    assert {s[2] for s in seen} == {attempt_folder(config, "r", 1)}
    assert latest_folder(config, "r", 2) == second.folder == attempt_folder(config, "r", 2)
    assert len(read_table(second.folder, "a")["n"]) == 50
    assert sorted(p.name for p in second.folder.parent.iterdir()) == ["attempt-1", "attempt-2"]


def test_failed_copy_leaves_no_half_folder(tmp_path):
    first = Recorder(tmp_path / "1", TABLE)
    first.append("a", {"n": [1], "x": np.zeros((1, 100, 3))})
    first.save(Checkpoint({}, {}))
    first.close()
    (tmp_path / "1" / "series.h5").write_bytes(b"")
    with pytest.raises(StoreError, match="not all"):
        Recorder(tmp_path / "2", TABLE, tmp_path / "1")
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


# ---- a run ---------------------------------------------------------------------------------------------------------


def test_unforeseen_error_is_a_failed_run_that_says_which(engine, worker, config):
    engine.wait(OPERATOR, submit(engine, drill(steps=1)))
    config.runs.rename(config.data / "elsewhere")
    config.runs.write_text("a file where the folder of runs should be")
    run = engine.wait(OPERATOR, submit(engine, drill(steps=3)))
    assert run.state == "failed" and "not foreseen" in run.error and "Error" in run.error and run.hint
    config.runs.unlink()
    run = engine.wait(OPERATOR, submit(engine, drill(steps=3)))
    assert run.state == "done", "the worker goes on"


class Answers:
    """In the place of a compute process: says what it is told to."""

    def __init__(self, *messages) -> None:
        self.messages, self.orders = list(messages), []

    def order(self, message) -> None:
        self.orders.append(message)

    def next(self, timeout):
        time.sleep(0.02)
        return self.messages.pop(0) if self.messages else None

    def kill(self) -> None:
        pass


def test_run_that_was_complete_when_its_time_was_over_is_complete(engine, config):
    run_id = submit(engine, drill(steps=1))
    short = replace(config, max_run_hours=0.05 / 3600)

    class Late(Answers):
        def order(self, message) -> None:
            super().order(message)
            if message["op"] == "stop":
                outcome = {"state": "done", "summary": {"steps": 1}}
                self.messages.append({"run": run_id, "attempt": 1, "outcome": outcome})

    compute = Late()
    assert Work(short, engine.store, compute, lambda: False).run(run_id) == "done"
    assert [o["op"] for o in compute.orders] == ["run", "stop"]
    run = engine.store.run(OPERATOR, run_id)
    assert (run.state, run.error, dict(run.summary)) == ("done", None, {"steps": 1})


def test_end_removes_all_that_other_attempts_left(engine, config):
    run_id = submit(engine, drill(steps=1))
    for name in ("attempt-1", "attempt-2.new", "attempt-3"):
        (config.runs / run_id / name).mkdir(parents=True)
    for _ in range(2):
        engine.store.begin_attempt(run_id, "w")
        engine.store.requeue("w", lambda *given: None)
    done = {"run": run_id, "attempt": 3, "outcome": {"state": "done", "summary": {}}}
    assert Work(config, engine.store, Answers(done), lambda: False).run(run_id) == "done"
    assert [p.name for p in (config.runs / run_id).iterdir()] == ["attempt-3"]


# ---- the worker ----------------------------------------------------------------------------------------------------


@pytest.fixture
def housekeeper(config, engine):
    """A supervisor in this process that serves nothing."""
    made = Supervisor(config)
    yield made
    made._locked.close()


def test_run_that_its_own_worker_let_go_of_is_offered_again(engine, housekeeper, config):
    """As after a database that was away for longer than the worker waits for it."""
    lost, kept = submit(engine, drill()), submit(engine, drill())
    for run_id in (lost, kept):
        engine.store.begin_attempt(run_id, config.name)
    housekeeper._working.add(kept)
    housekeeper._reconcile()
    assert engine.store.run(OPERATOR, lost).state == "queued" and queue.waits(config, lost, 1)
    assert engine.store.run(OPERATOR, kept).state == "running"
    assert [a.outcome for a in engine.store.attempts(lost)] == ["lost"]


def test_run_of_a_dead_worker_is_found_even_when_who_buried_it_died(engine, housekeeper, config):
    engine.store.hello("other", "host", 1, "0", {"quick": 1})
    run_id = submit(engine, drill())
    engine.store.begin_attempt(run_id, "other")
    time.sleep(0.05)
    assert engine.store.bury(0.01) == ("other",)
    assert engine.store.bury(0.01) == (), "nobody is told twice"
    housekeeper._reconcile()
    assert engine.store.run(OPERATOR, run_id).state == "queued" and queue.waits(config, run_id, 1)


def test_lost_delivery_is_offered_again_once(engine, housekeeper, config):
    run_id = submit(engine, drill())
    queue.forget_run(config, run_id, 0)
    assert not queue.waits(config, run_id, 0)
    for _ in range(2):
        housekeeper._reconcile()
        assert queue.waits(config, run_id, 0)
    engine.store.begin_attempt(run_id, "w")
    assert engine.store.attempts(run_id)[0].number == 1


def test_workers_that_are_long_gone_are_forgotten_unless_they_hold_something(engine):
    for name in ("gone", "holds", "alive"):
        engine.store.hello(name, "host", 1, "0", {"quick": 1})
    run_id = submit(engine, drill())
    engine.store.begin_attempt(run_id, "holds")
    for name in ("gone", "holds"):
        engine.store.goodbye(name, 1)
    engine.store.forget_workers(3600.0)
    assert len(engine.store.workers()) == 3
    time.sleep(0.02)
    engine.store.forget_workers(0.0)
    assert {w.name for w in engine.store.workers()} == {"holds", "alive"}


def test_retention_never_keeps_the_worker_from_being_heard_of(config):
    keeps = replace(config, retention_days=1e-9, heartbeat_seconds=0.0)
    engine = Engine(keeps)
    for _ in range(3):
        engine.store.begin_attempt(submit(engine, drill()), "w")
    for run in engine.store.list_runs(OPERATOR):
        engine.store.end(run.id, 1, "done")
    time.sleep(0.01)
    housekeeper = Supervisor(keeps)
    assert [housekeeper.prune() for _ in range(3)] == [False] * 3, "one at a time, here"
    assert housekeeper.prune() and engine.store.count_runs(OPERATOR) == 0
    housekeeper._locked.close()


def test_worker_goes_on_when_its_housekeeping_fails(config, engine, tmp_path):
    """A file system that refuses, a table that somebody locked: nothing that runs may end because of it."""
    script = tmp_path / "broken.py"
    script.write_text(
        "import sys\nfrom fdcore.jobs import supervisor\n"
        "def broken(self): raise PermissionError('no')\n"
        "supervisor.Supervisor.prune = broken\nsupervisor.PRUNE_SECONDS = 0.1\n"
        "supervisor.HOUSEKEEPING_PAUSE_SECONDS = 0.1\n"
        "sys.exit(supervisor.main([]))\n"
    )
    environment = {**os.environ, **config.environment(), "PYTHONPATH": str(ROOT)}
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=out)
    try:
        for _ in range(2):
            assert engine.wait(OPERATOR, submit(engine, drill(steps=20)), 60).state == "done"
        assert "PermissionError" in log.read_text()
        assert [w.alive for w in engine.store.workers()] == [True]
    finally:
        process.terminate()
        process.wait(30)


def test_frozen_worker_that_comes_back_changes_nothing(config, engine, workers):
    """As after a laptop's sleep: taken for dead meanwhile, its run taken over and finished by another."""
    frozen = workers(config)
    run_id = submit(engine, drill(steps=300, step_seconds=0.02))
    until(lambda: engine.store.run(OPERATOR, run_id).done > 20)
    everyone = [frozen.pid, *frozen.children()]
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(0.3)
    assert engine.store.bury(0.2) == ("local",)
    assert engine.store.requeue("local", lambda *given: None) == (run_id,)
    _, second = engine.store.begin_attempt(run_id, "other")
    for pid in everyone:
        os.kill(pid, signal.SIGCONT)
    until(lambda: any(w.alive for w in engine.store.workers()), what="it begins anew")
    time.sleep(1)
    run = engine.store.run(OPERATOR, run_id)
    assert (run.state, run.worker, run.attempt) == ("running", "other", second)
    assert not engine.store.progress(run_id, 1, 999, 1000, "", None, 0)
    assert engine.store.end(run_id, second, "done", summary={"by": "other"})
    assert dict(engine.store.run(OPERATOR, run_id).summary) == {"by": "other"}
    assert [a.outcome for a in engine.store.attempts(run_id)] == ["lost", "done"]
    assert not read_result(attempt_folder(config, run_id, 1)), "the frozen one did not finish"
    again = engine.wait(OPERATOR, submit(engine, drill(steps=3)), 30)
    assert again.worker == "local" and list(recorded(engine, again)["step"]) == [0, 1, 2]


def test_asking_whether_a_worker_lives_does_not_keep_one_from_starting(config):
    config.data.mkdir()
    stop = time.monotonic() + 1.5
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(lambda: [is_running(config) for _ in iter(lambda: time.monotonic() < stop, False)])
        started = 0
        while time.monotonic() < stop - 0.5:
            supervisor._lock(config, supervisor.LOCK_SECONDS).close()
            started += 1
        assert started > 10
        asking.result()
    held = supervisor._lock(config)
    assert is_running(config)
    with pytest.raises(AlreadyRunning):
        supervisor._lock(config, 0.1)
    held.close()


def test_database_that_cannot_be_read_is_said_in_words_by_every_part(config, engine):
    with engine.store.begin() as connection:
        for table in ("fd_runs", "workflow_status"):
            connection.execute(sa.text(f"ALTER TABLE {table} RENAME TO {table}_away"))
    for ask in (
        lambda: engine.store.list_runs(OPERATOR),
        lambda: queue.waits(config, "x", 0),
        lambda: queue.forget_deliveries(config, "x"),
        lambda: queue.forget_old(config, 0.0),
    ):
        with pytest.raises(StoreError, match="cannot be reached"):
            ask()


def test_worker_says_in_words_why_it_cannot_start(config):
    (config.data / "fdcore.sqlite").parent.mkdir()
    (config.data / "fdcore.sqlite").write_text("not a database, but long enough to be taken for one. " * 20)
    environment = {**os.environ, **config.environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "fdcore.jobs.supervisor"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("fdcore: The database of runs cannot be reached") and "Traceback" not in done.stderr


def test_migration_by_two_processes_at_once(config):
    code = "from fdcore.config import from_environment as c\nfrom fdcore.jobs.engine import Engine\nEngine(c())"
    environment = {**os.environ, **config.environment(), "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [p.communicate(timeout=120)[1] for p in both]
    assert [p.returncode for p in both] == [0, 0, 0], said
    engine = Engine(config)
    with engine.store.begin() as connection:
        numbers = list(connection.execute(sa.select(schema.migrations.c.number)).scalars())
    assert numbers == list(range(1, len(schema.MIGRATIONS) + 1))
    assert submit(engine, drill())
