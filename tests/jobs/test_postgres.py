"""Several workers on one real PostgreSQL: every run once, also when a worker dies and when the database restarts."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from fdcore.jobs.engine import Engine
from fdcore.store import database, schema
from fdcore.store.records import Viewer
from tests.jobs.conftest import OPERATOR, drill, recorded, submit, until

JOBS, STEPS = 200, 4


def missing(reason: str) -> None:
    """Without root nobody can install a server, so `make test` does without; where `.ci/run` has installed it, its absence is a failure."""
    (pytest.fail if os.environ.get("TEST_EVERYTHING") else pytest.skip)(reason)


def _binary(name: str) -> str | None:
    places = [shutil.which(name), *map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))]
    return next((p for p in places if p), None)


class Server:
    """PostgreSQL in a folder of its own, run by somebody who is not root, because it refuses root."""

    def __init__(self, folder: Path) -> None:
        self.initdb, self.pg_ctl = _binary("initdb"), _binary("pg_ctl")
        if not self.initdb or not self.pg_ctl:
            missing("no PostgreSQL server on this machine: `make postgres` installs it (Debian, needs root)")
        self.folder = folder
        self.as_user: list[str] = []
        if os.getuid() == 0:
            user = next((u for u in ("postgres", "nobody") if _exists(u)), None)
            if user is None or not shutil.which("runuser"):
                missing("PostgreSQL does not run as root, and there is no other user to run it")
            self.as_user = ["runuser", "-u", user, "--"]
            shutil.chown(folder, user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._call(self.initdb, "-D", str(folder / "db"), "-U", "fd", "-A", "trust", "--no-sync", "-E", "UTF8")
        self.url = f"postgresql://fd@127.0.0.1:{self.port}/postgres"

    def _call(self, *command: str) -> None:
        done = subprocess.run(
            [*self.as_user, *command], capture_output=True, text=True, timeout=120, cwd=self.folder, check=False
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        # -l: pg_ctl's own pipes would stay open in the server.
        self._call(
            self.pg_ctl, "-D", str(self.folder / "db"), "-l", str(self.folder / "log"), "-o", options, "-w", "start"
        )

    def stop(self) -> None:
        with contextlib.suppress(AssertionError):
            self._call(self.pg_ctl, "-D", str(self.folder / "db"), "-m", "immediate", "-w", "stop")


def _exists(user: str) -> bool:
    with contextlib.suppress(KeyError):
        pwd.getpwnam(user)
        return True
    return False


@pytest.fixture(scope="module")
def postgres():
    # Not pytest's folder: its parents are closed to other users.
    with tempfile.TemporaryDirectory(prefix="fd-postgres-") as folder:
        server = Server(Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def shared(config, postgres):
    """A configuration on that server, with empty tables."""
    made = replace(config, database_url=postgres.url)
    with database.engine(made).begin() as connection:
        connection.exec_driver_sql(
            "DROP SCHEMA IF EXISTS dbos CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public"
        )
    yield made
    database.dispose(made)


def test_two_workers_share_two_hundred_runs_and_one_is_killed(shared, workers):
    # On a busy machine the survivor may be silent for seconds; were it taken for dead, it would rightly lose runs, too.
    shared = replace(shared, dead_after_seconds=20.0)
    engine = Engine(shared)
    ids = [submit(engine, drill(seed=k, steps=STEPS, step_seconds=0.01), owner=f"o{k % 7}") for k in range(JOBS - 1)]
    first, second = (workers(replace(shared, worker_name=name)) for name in ("first", "second"))
    ended = lambda: engine.store.count_runs(OPERATOR, ("done",))  # noqa: E731
    until(lambda: {w.name for w in engine.store.workers() if w.alive} == {"first", "second"})
    # One that is certainly in the hands of the one that is killed.
    until(lambda: ended() >= 40, 240)
    long = submit(engine, drill(seed=JOBS, steps=150, step_seconds=0.02), owner="long", lane="long")
    until(lambda: engine.store.run(OPERATOR, long).done > 30, what="the long one has saved something")
    holder = engine.store.run(OPERATOR, long).worker
    victim = first if holder == "first" else second
    victim.kill()
    victim.kill_children()
    until(lambda: ended() == JOBS, 300, "all runs are done")
    lost = 0
    by: Counter[str] = Counter()
    for run_id in [*ids, long]:
        run = engine.store.run(OPERATOR, run_id)
        assert run.summary["steps"] == run.spec.parameters["steps"]
        assert list(recorded(engine, run)["step"]) == list(range(run.spec.parameters["steps"]))
        attempts = engine.store.attempts(run_id)
        assert [a.outcome for a in attempts[:-1]] == ["lost"] * (len(attempts) - 1) and attempts[-1].outcome == "done"
        assert all(a.worker == victim.config.name for a in attempts[:-1]), (
            "only what the killed one held is begun again"
        )
        lost += len(attempts) - 1
        by[attempts[-1].worker] += 1
    assert 1 <= lost <= 2, "one run of each lane at most"
    assert min(by.values()) >= 10 and set(by) == {"first", "second"}, by
    assert [w.alive for w in engine.store.workers() if w.name == victim.config.name] == [False]


def test_database_restart_is_survived(shared, workers, postgres):
    engine = Engine(shared)
    patient = replace(shared, worker_name="only", dead_after_seconds=30.0)
    workers(patient)
    run_id = submit(engine, drill(steps=300, step_seconds=0.02))
    until(lambda: engine.store.run(OPERATOR, run_id).done > 20)
    postgres.stop()
    postgres.start()
    run = engine.wait(OPERATOR, run_id, 60)
    assert run.state == "done"
    assert list(recorded(engine, run)["step"]) == list(range(300))
    # And what comes afterwards is taken, too.
    assert engine.wait(OPERATOR, submit(engine, drill(steps=2)), 60).state == "done"


def test_database_that_is_away_for_long_is_survived_by_the_only_worker(shared, workers, postgres):
    """It lets go of its run, because somebody else may have it by then; nobody has, so it takes it up again."""
    engine = Engine(shared)
    impatient = replace(shared, worker_name="only", dead_after_seconds=2.0)
    only = workers(impatient)
    run_id = submit(engine, drill(steps=300, step_seconds=0.02))
    until(lambda: engine.store.run(OPERATOR, run_id).done > 40)
    postgres.stop()
    until(lambda: not only.children(), 20, "it has let go")
    postgres.start()
    run = engine.wait(OPERATOR, run_id, 60)
    assert run.state == "done"
    assert list(recorded(engine, run)["step"]) == list(range(300))
    first, second = engine.store.attempts(run_id)
    assert (first.outcome, second.outcome) == ("lost", "done") and second.done_at_start > 0
    assert only.process.poll() is None


def test_structures_stay_while_runs_are_made_of_them(shared):
    """Deleting the last run of a structure while others that use it are being submitted."""
    import numpy as np

    from fdcore.records import Structure
    from fdcore.store import structures

    engine = Engine(replace(shared, max_active_runs=0))
    structure = Structure(np.array([11]), np.zeros((1, 3)), 3 * np.eye(3), (True,) * 3, file="a")

    def round_trip(k: int) -> None:
        for _ in range(15):
            also = lambda connection, run_id: structures.add(connection, run_id, [structure])  # noqa: E731
            run_id = submit(engine, drill(), owner=f"o{k}", also=also)
            assert structures.of_run(engine.store, run_id)[0].content_id == structure.content_id
            engine.cancel(OPERATOR, run_id)
            engine.delete(OPERATOR, run_id)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(round_trip, range(6)))
    with engine.store.begin() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(schema.structures)).scalar_one() == 0


def test_worker_that_was_taken_for_dead_changes_nothing_when_it_comes_back(shared, workers):
    engine = Engine(shared)
    short = replace(shared, dead_after_seconds=2.0)
    frozen = workers(replace(short, worker_name="frozen"))
    until(lambda: any(w.alive for w in engine.store.workers()))
    run_id = submit(engine, drill(steps=250, step_seconds=0.02))
    until(lambda: engine.store.run(OPERATOR, run_id).done > 20)
    children = frozen.children()
    for pid in (frozen.pid, *children):
        os.kill(pid, signal.SIGSTOP)
    workers(replace(short, worker_name="other"))
    until(lambda: engine.store.run(OPERATOR, run_id).worker == "other", 30)
    until(lambda: engine.store.run(OPERATOR, run_id).done > 60, 30)
    for pid in (frozen.pid, *children):
        os.kill(pid, signal.SIGCONT)
    run = engine.wait(OPERATOR, run_id, 60)
    assert run.state == "done" and run.worker == "other"
    assert [a.outcome for a in engine.store.attempts(run_id)] == ["lost", "done"]
    assert list(recorded(engine, run)["step"]) == list(range(250))
    until(lambda: all(w.alive for w in engine.store.workers()), 30, "the frozen one serves again")


def test_owners_and_structures_work_the_same(shared):
    """The SQL of the store on this database: ignore-on-conflict, bytes, clocks."""
    import numpy as np

    from fdcore.records import Structure
    from fdcore.store import structures

    engine = Engine(shared)
    structure = Structure(np.array([11, 17]), np.eye(3)[:2], 5 * np.eye(3), (True,) * 3, file="a.cif", charge=0)
    for _ in range(2):
        run_id = submit(engine, drill(), also=lambda c, r: structures.add(c, r, [structure, structure]))
    found = structures.of_run(engine.store, run_id)
    assert [s.content_id for s in found] == [structure.content_id] * 2 and found[0].file == "a.cif"
    assert engine.store.list_runs(Viewer("nobody")) == ()
    engine.cancel(OPERATOR, run_id)
    engine.delete(OPERATOR, run_id)
    assert engine.store.count_runs(OPERATOR) == 1
