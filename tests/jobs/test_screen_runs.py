"""Screenings by real workers with the embedded model: killed in the middle, alone and sharing one screening, the table is the same."""

from __future__ import annotations

import io
import os
import signal
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase.build import bulk

from fdcore import services
from fdcore.config import Config
from fdcore.services import runs, screening
from fdcore.services.screening import Brought
from fdcore.spec import ModelChoice
from fdcore.store import database
from tests.jobs.conftest import OPERATOR, until
from tests.jobs.test_postgres import postgres, shared

__all__ = ["postgres", "shared"]

ME = runs.Viewer("me")
MODEL = ModelChoice(services.default_model_id(), device="cpu")
COUNT, CHUNK = 48, 3


def crystals() -> bytes:
    """Small ones, strained, no two alike."""
    rng, several = np.random.default_rng(0), []
    for k in range(COUNT):
        name, structure, a = (("NaCl", "rocksalt", 5.64), ("MgO", "rocksalt", 4.21), ("Al", "fcc", 4.05))[k % 3]
        atoms = bulk(name, structure, a=a) * (1 + k % 3, 2, 2)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.01, (3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        several.append(atoms)
    out = io.StringIO()
    ase.io.write(out, several, format="extxyz")
    return out.getvalue().encode()


@pytest.fixture
def use(monkeypatch):
    """use(config): services speak to this engine."""

    def chosen(config: Config) -> None:
        for name, value in config.environment().items():
            monkeypatch.setenv(name, value)
        runs.current.cache_clear()

    yield chosen
    database.dispose(runs.current().config)
    runs.current.cache_clear()


def start(hands: int = 1) -> runs.Run:
    brought = [Brought("crystals.extxyz", io.BytesIO(crystals())), Brought("broken.cif", io.BytesIO(b"data_x\n"))]
    return screening.start(ME, MODEL, brought=brought, chunk=CHUNK, check_share=0.1, hands=hands)[0]


def done(run: runs.Run) -> int:
    return screening.Watch(run).look().count.done


def ended(run: runs.Run) -> bool:
    return not any(hand.active for hand in screening.hands_of(run))


def check(run: runs.Run, undisturbed: runs.Run) -> None:
    """Complete, and the same bytes."""
    assert {hand.state for hand in screening.hands_of(run)} == {"done"}
    summary = screening.summary(run)
    assert (summary["complete"], summary["structures"], summary["failed"]) == (True, COUNT + 1, 1)
    assert screening.table_bytes(run, "parquet") == screening.table_bytes(undisturbed, "parquet")
    assert screening.table_bytes(run, "csv") == screening.table_bytes(undisturbed, "csv")


def test_killed_in_the_middle_the_table_is_that_of_an_undisturbed_run(config, workers, use):
    use(config)
    run = start()
    # However many threads a process has: sums in another order would differ in their last bits.
    first = workers(replace(config, threads=3))
    until(lambda: done(run) >= 3, what="some chunks are done")
    first.kill_children()
    until(lambda: runs.get(ME, run.id).attempt == 2 and done(run) >= 7, what="it goes on")
    assert done(run) < screening.Watch(run).look().count.chunks, "not over yet"
    first.kill()
    first.kill_children()
    workers(replace(config, threads=1))
    until(lambda: ended(run), 120)
    attempts = runs.attempts(runs.get(ME, run.id))
    assert [a.outcome for a in attempts] == ["crashed", "lost", "done"]
    assert attempts[1].done_at_start >= 3 * CHUNK, "what was done is not done again"
    calm = start()
    until(lambda: ended(calm), 120)
    check(run, calm)
    assert runs.get(ME, run.id).bytes > 0


def test_two_workers_share_one_screening_and_one_is_killed(shared, workers, use):
    use(shared)
    first, second = (
        workers(replace(shared, worker_name=name, threads=threads)) for name, threads in (("first", 2), ("second", 1))
    )
    until(lambda: sum(w.alive for w in runs.workers()) == 2)
    run = start(hands=2)
    holders = lambda: {h.worker for h in screening.hands_of(run) if h.state == "running"}  # noqa: E731
    until(lambda: holders() == {"first", "second"}, what="both work on it")
    until(lambda: done(run) >= 2, what="some chunks are done")
    os.kill(first.pid, signal.SIGKILL)
    first.kill()
    first.kill_children()
    until(lambda: ended(run), 180, "the other one finishes it, and the hand of the killed one goes on there")
    outcomes = {a.worker: a.outcome for h in screening.hands_of(run) for a in runs.attempts(h)}
    assert outcomes["first"] == "lost" and outcomes["second"] == "done"
    calm = start()
    until(lambda: ended(calm), 120)
    check(run, calm)
    # A screening that is stopped gives its chunks back, and is gone with its last run.
    stopped = start()
    until(lambda: runs.get(ME, stopped.id).state == "running")
    screening.stop(ME, stopped)
    until(lambda: ended(stopped))
    assert screening.Watch(stopped).look().count.taken == 0
    folder = screening.folder_of(run)
    screening.delete(ME, run)
    assert not folder.exists() and second.process.poll() is None
    assert len(runs.list_runs(OPERATOR)) == 2
