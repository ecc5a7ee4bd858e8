"""The supervisor: one per machine (one per SQLite file), which hands waiting runs to compute processes.

    python -m fdcore.jobs.supervisor [--linger]      what the app and `fdcore worker` start

It imports no model and no NumPy, so that it costs little while nothing is to be done. It holds a lock on its name; a second
one of that name ends at once. With --linger (started by the app) it goes when no app has been seen for a while and nothing is
left to do: a run outlives the browser, the server and the terminal they were started from.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from fdcore import __version__
from fdcore.config import Config, from_environment
from fdcore.errors import FdcoreError, StoreError
from fdcore.jobs import queue, screens
from fdcore.jobs.compute import Compute, environment_of, kill_leftovers, slots
from fdcore.jobs.work import Work
from fdcore.store.files import remove_files
from fdcore.store.records import Viewer
from fdcore.store.runs import Store

log = logging.getLogger("fdcore.worker")

# An app says that it is there by touching a file; after this long without, nobody is watching.
APP_SILENT_SECONDS = 120.0
# Housekeeping: lost deliveries, old runs.
RECONCILE_SECONDS = 20.0
PRUNE_SECONDS = 3600.0
HOUSEKEEPING_PAUSE_SECONDS = 1.0
WORKERS_KEPT_SECONDS = 7 * 86400.0
DELIVERIES_KEPT_SECONDS = 3600.0
TICK_SECONDS = 0.25
# `is_running` holds the lock for a moment to find out: a worker that starts just then asks again.
LOCK_SECONDS = 0.5


class AlreadyRunning(Exception):
    """Another process holds this worker's name."""


def lock_path(config: Config) -> Path:
    return config.data / "workers" / f"{config.name}.lock"


def app_path(config: Config) -> Path:
    """Touched by every app that is open on this machine."""
    return config.data / "workers" / f"{config.name}.app"


def page_path(config: Config) -> Path:
    """Touched when a person opens a page that will want a model. An app that is open says nothing of people."""
    return config.data / "workers" / f"{config.name}.page"


def log_path(config: Config) -> Path:
    return config.data / "workers" / f"{config.name}.log"


def page_is_open(config: Config) -> None:
    """Tell the worker of this machine that somebody will want the default model soon; start it as `app_is_open` does."""
    path = page_path(config)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch()
    app_is_open(config)


def app_is_open(config: Config) -> None:
    """Tell the worker of this machine that it is wanted; start it where there is none and the operator lets us."""
    path = app_path(config)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch()
    if config.worker == "auto" and not is_running(config):
        _start(config)


def _start(config: Config) -> None:
    with log_path(config).open("ab") as out:
        subprocess.Popen(
            [sys.executable, "-P", "-m", "fdcore.jobs.supervisor", "--linger"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **config.environment(), "PYTHONPATH": python_path()},
            # Not of the app's session: closing the terminal or the server must not end what runs.
            start_new_session=True,
        )


def python_path() -> str:
    """Where a child process finds this very package."""
    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))


def is_running(config: Config) -> bool:
    """Whether a supervisor of this name lives on this machine."""
    try:
        _lock(config).close()
    except AlreadyRunning:
        return True
    return False


def _lock(config: Config, patience: float = 0.0) -> IO[str]:
    path = lock_path(config)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = path.open("a+")
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() > until:
                file.close()
                raise AlreadyRunning(config.name) from error
            time.sleep(0.02)
        else:
            return file


def _touched(path: Path) -> float:
    """When a file was last touched; long ago where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


class Supervisor:
    def __init__(self, config: Config, *, linger: bool = False) -> None:
        self.config, self.linger = config, linger
        self._locked = _lock(config, LOCK_SECONDS)
        self._started = time.time()
        # The last time that a person opened a page, as far as this worker has answered to it.
        self._warmed_for = self._started
        kill_leftovers(lock_path(config).parent, config.name)
        self.store = Store(config)
        self.lanes = slots(config)
        self._ending = threading.Event()
        # Set while this worker may be taken for dead by others: everything it holds must be let go.
        self._fenced = threading.Event()
        self._computes: dict[str, list[Compute]] = {}
        self._free: dict[str, list[Compute]] = {}
        self._free_lock = threading.Lock()
        # Runs that a thread of this process attends to.
        self._working: set[str] = set()
        # Set when one of them let go of a run that may still be its own.
        self._astray = threading.Event()
        for lane, count in self.lanes.items():
            names = [f"{lane}-{k}" for k in range(count)]
            self._computes[lane] = [
                Compute(config, name, environment_of(config, lane, k), log_path(config)) for k, name in enumerate(names)
            ]
            self._free[lane] = list(self._computes[lane])

    def run(self) -> None:
        """Serve until told to stop (SIGTERM, SIGINT) or, lingering, until nobody needs it."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_end)
        # The compute process takes longest to start: it goes first.
        if self.linger and self.lanes["quick"]:
            self._warm()
        self.store.migrate()
        queue.migrate(self.config)
        self._take_back(self.config.name)
        # Before the first run: others take back what is held by somebody who is not alive.
        self._hello()
        # Deliveries that the last one of this name took while it was ending: offered again now, or a later run would be served first.
        self._reconcile()
        self._launch()
        self._hello()
        log.warning("worker %s serves %s", self.config.name, self.lanes)
        try:
            self._serve()
        finally:
            self._end()

    def _told_to_end(self, number: int, _frame: object) -> None:
        # Not by the logger: the handler may have interrupted a line of it.
        os.write(2, f"worker {self.config.name} was told to end ({signal.Signals(number).name})\n".encode())
        self._ending.set()

    # ---- the engine ------------------------------------------------------------------------------------------------

    def _launch(self) -> None:
        from dbos import DBOS

        DBOS(config=queue.settings(self.config))

        @DBOS.workflow(name=queue.WORKFLOW, max_recovery_attempts=None)
        def _run(run_id: str) -> str:
            return self._work(run_id)

        DBOS.listen_queues([lane for lane, count in self.lanes.items() if count])
        DBOS.launch()
        for lane, count in self.lanes.items():
            if count:
                DBOS.register_queue(
                    lane,
                    worker_concurrency=count,
                    polling_interval_sec=self.config.poll_seconds,
                    on_conflict="always_update",
                )

    def _work(self, run_id: str) -> str:
        lane = self.store.lane(run_id)
        compute = None if lane is None else self._take(lane)
        if compute is None:
            return "nothing to do"
        self._working.add(run_id)
        how = "let go"
        try:
            log.info("run %s: taken by %s", run_id, compute.name)
            how = Work(self.config, self.store, compute, self._must_let_go).run(run_id)
            log.info("run %s: %s", run_id, how)
            return how
        except FdcoreError as error:
            # Reconciliation will offer the run again if it still waits.
            log.warning("run %s: %s", run_id, error)
            return "let go"
        except Exception:
            log.exception("run %s", run_id)
            compute.kill()
            with contextlib.suppress(FdcoreError):
                self.store.abandon(run_id, self.config.name)
            return "failed"
        finally:
            self._working.discard(run_id)
            if how == "let go":
                self._astray.set()
            with self._free_lock:
                self._free[lane or ""].append(compute)

    def _take(self, lane: str) -> Compute | None:
        """A free compute process of this lane, waited for; the warmest first. None when the worker ends."""
        while not self._ending.is_set():
            with self._free_lock:
                free = self._free.get(lane, [])
                if free:
                    free.sort(key=lambda c: (c.pid is not None, c.last_used))
                    return free.pop()
            time.sleep(0.02)
        return None

    def _must_let_go(self) -> bool:
        return self._ending.is_set() or self._fenced.is_set()

    # ---- the loop --------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        beaten = time.monotonic()
        reconciled = pruned = -math.inf
        while not self._ending.wait(TICK_SECONDS):
            now = time.monotonic()
            try:
                if now - beaten >= self.config.heartbeat_seconds:
                    self._beat(now - beaten)
                    beaten = now
                    if self.store.bury(self.config.dead_after_seconds):
                        self._bury()
                if now - reconciled >= RECONCILE_SECONDS or self._astray.is_set():
                    self._astray.clear()
                    self._reconcile()
                    reconciled = now
                if now - pruned >= PRUNE_SECONDS and self.prune():
                    pruned = now
                self._unload(now)
                if self.linger:
                    self._follow_app()
            except StoreError as error:
                log.warning("%s", error)
            except Exception:  # the boundary: a fault of housekeeping must not end the runs that go on meanwhile
                log.exception("housekeeping")
                self._ending.wait(HOUSEKEEPING_PAUSE_SECONDS)

    def _hello(self) -> None:
        self.store.hello(self.config.name, socket.gethostname(), os.getpid(), __version__, self.lanes)

    def _beat(self, since: float) -> None:
        """Say that this worker lives; after a pause in which it may have been taken for dead, let everything go first."""
        if self.store.heartbeat(self.config.name, os.getpid()):
            self._fenced.clear()
            return
        log.warning("silent for %.0f s and taken for dead: starting anew", since)
        self._fenced.set()
        until = time.monotonic() + 10
        while self._working and time.monotonic() < until:
            time.sleep(0.05)
        self._take_back(self.config.name)
        self._hello()
        self._fenced.clear()

    def _bury(self) -> None:
        """Take over what workers held that are no longer heard of."""
        for name in self.store.not_alive():
            if name != self.config.name:
                self._take_back(name)

    def _take_back(self, worker: str) -> None:
        queue.forget_deliveries(self.config, worker)
        self._requeue(worker, lambda run_id: False)

    def _requeue(self, worker: str, attended: Callable[[str], bool]) -> None:
        back = self.store.requeue(worker, lambda c, place: queue.offer(self.config, c, place), attended=attended)
        if back:
            log.warning("%d runs of %s go on", len(back), worker)

    def _reconcile(self) -> None:
        """What fell between two chairs is offered again: runs that this worker let go of while the database was away, runs of
        workers that died while they were being taken over, and waiting runs whose delivery was lost (a worker died between
        taking and beginning them)."""
        self._requeue(self.config.name, self._working.__contains__)
        self._bury()
        for place in self.store.queued():
            if not queue.waits(self.config, place.run, place.attempt):
                queue.offer_again(self.config, self.store, place)

    def prune(self) -> bool:
        """What the operator's retention says, and deliveries that nobody asks for any more. False where more is left to do
        than fits between two heartbeats: a worker that is busy forgetting must not be taken for dead."""
        until = time.monotonic() + self.config.heartbeat_seconds
        queue.forget_old(self.config, time.time() - DELIVERIES_KEPT_SECONDS)
        self.store.forget_workers(WORKERS_KEPT_SECONDS)
        days = self.config.retention_days
        if days:
            for run in self.store.ended_before(time.time() - days * 86400, Viewer.operator()):
                self.store.delete(Viewer.operator(), run.id)
                screens.remove_run(self.config, self.store, run)
                if time.monotonic() > until:
                    return False
        self._remove_orphans()
        return True

    def _remove_orphans(self) -> None:
        """Folders of runs that no longer exist: a delete that was interrupted between the row and its files."""
        screens.remove_orphans(self.config, self.store)
        if not self.config.runs.is_dir():
            return
        ids = [p.name for p in self.config.runs.iterdir() if p.is_dir()]
        for start in range(0, len(ids), 1000):
            part = ids[start : start + 1000]
            for orphan in set(part) - self.store.known_ids(part):
                remove_files(self.config, orphan)

    # ---- warm and cold ---------------------------------------------------------------------------------------------

    def _warm(self) -> None:
        """Let the first quick process load the default model, so that the first score need not wait for it."""
        with self._free_lock:
            free = self._free["quick"]
            if free and all(c.pid is None for c in self._computes["quick"]):
                free[0].order({"op": "warm"})

    def _unload(self, now: float) -> None:
        """Processes that had nothing to do for long give their memory back."""
        with self._free_lock:
            for lane in self._free.values():
                for compute in lane:
                    if compute.pid is not None and now - compute.last_used > self.config.idle_seconds:
                        compute.kill()

    def _follow_app(self) -> None:
        opened = _touched(page_path(self.config))
        if opened > self._warmed_for and self.lanes["quick"]:
            # Once each time: a model that nobody came to use is unloaded and stays so, however long the app is open.
            self._warmed_for = opened
            self._warm()
        silent = time.time() - max(self._started, _touched(app_path(self.config)))
        if silent > APP_SILENT_SECONDS and not self._working and not self._anything_waits():
            log.warning("no app is open and nothing is left to do")
            self._ending.set()

    def _anything_waits(self) -> bool:
        try:
            return bool(self.store.queued())
        except StoreError:
            return True

    def _end(self) -> None:
        """Let go of everything: what is not finished goes on at the next start, or elsewhere at once."""
        self._ending.set()
        for lane in self._computes.values():
            for compute in lane:
                compute.kill()
        until = time.monotonic() + 5
        while self._working and time.monotonic() < until:
            time.sleep(0.05)
        with contextlib.suppress(FdcoreError):
            self._take_back(self.config.name)
            self.store.goodbye(self.config.name, os.getpid())
        self._locked.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fdcore.jobs.supervisor")
    parser.add_argument("--linger", action="store_true", help="end when no app is open and nothing is left to do")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    try:
        supervisor = Supervisor(from_environment(), linger=arguments.linger)
        supervisor.run()
    except AlreadyRunning as error:
        print(f"fdcore: a worker called {error} is running already.", file=sys.stderr)
        return 3
    except FdcoreError as error:
        print(f"fdcore: {error.message} {error.hint}", file=sys.stderr)
        return 1
    sys.stderr.flush()
    # Threads of the engine may wait for a computation that was let go.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
