"""Whatever is killed, whenever: every run ends complete, no point lost or doubled, and the history says what happened."""

from __future__ import annotations

import random
import signal
import time

import numpy as np
import pytest

from tests.jobs.conftest import OPERATOR, drill, expected_positions, recorded, submit, until

KILLS = 30
STEPS = 400


def test_a_run_survives_thirty_kills(config, engine, workers, tmp_path):
    chance = random.Random(20261123)
    worker = workers(config)
    specs = {}

    def keep_one_running():
        if not any(engine.store.run(OPERATOR, r).active for r in specs):
            spec = drill(seed=len(specs), steps=STEPS, step_seconds=0.02)
            specs[submit(engine, spec)] = spec

    for kill in range(KILLS):
        keep_one_running()
        until(lambda: any(r.state == "running" for r in engine.store.list_runs(OPERATOR)), what="a run is taken")
        time.sleep(chance.uniform(0.0, 2.2))
        kind = ("worker", "compute", "both")[kill % 3]
        if kind != "worker":
            until(worker.children, what="a compute process")
            worker.kill_children()
        if kind != "compute":
            worker.kill()
            worker.start()
    for run_id, spec in specs.items():
        run = engine.wait(OPERATOR, run_id, 120)
        assert run.state == "done", (run.error, engine.store.attempts(run_id))
        rows = recorded(engine, run)
        assert list(rows["step"]) == list(range(STEPS)), "no point lost or doubled"
        expected = expected_positions(spec, tmp_path / f"expected-{run_id}")
        assert np.array_equal(rows["position"], expected), "bit for bit"
        assert run.summary["end"] == expected[-1].tolist()
    attempts = [a for run_id in specs for a in engine.store.attempts(run_id)]
    assert all(a.outcome in ("lost", "crashed", "done") for a in attempts)
    assert {a.outcome for a in attempts} == {"lost", "crashed", "done"}
    # A kill between two attempts, or before the first, interrupts none.
    assert 20 <= len(attempts) - len(specs) <= KILLS + 3
    assert max(a.done_at_start for a in attempts) > 0, "a later attempt goes on from what was saved"


def test_what_was_saved_is_not_done_again(config, engine, worker, tmp_path):
    run_id = submit(engine, drill(steps=200, step_seconds=0.02))
    until(lambda: engine.store.run(OPERATOR, run_id).done > 60)
    worker.kill()
    worker.start()
    run = engine.wait(OPERATOR, run_id)
    first, second = engine.store.attempts(run_id)
    assert (first.outcome, second.outcome) == ("lost", "done")
    assert second.done_at_start >= 40, "the last checkpoint, at most 0.2 s before the kill"
    assert run.attempt == 2 and run.state == "done"


def test_worker_that_ends_in_order_gives_its_runs_back(config, engine, worker):
    run_id = submit(engine, drill(steps=300, step_seconds=0.02))
    until(lambda: engine.store.run(OPERATOR, run_id).done > 20)
    worker.kill(signal.SIGTERM)
    run = engine.store.run(OPERATOR, run_id)
    assert run.state == "queued" and run.worker is None
    assert not worker.children(), "no compute process stays behind"
    assert not any(w.alive for w in engine.store.workers())
    worker.start()
    run = engine.wait(OPERATOR, run_id)
    assert run.state == "done" and list(recorded(engine, run)["step"]) == list(range(300))


@pytest.mark.parametrize("trouble", ["hang", "hold"])
def test_compute_process_of_a_killed_worker_does_not_stay(config, engine, worker, trouble):
    submit(engine, drill(steps=20, step_seconds=0.2, trouble=trouble, trouble_at=8))
    until(lambda: engine.store.list_runs(OPERATOR)[0].done >= 4)
    time.sleep(1)
    old = worker.children()
    worker.kill()
    engine.cancel(OPERATOR, engine.store.list_runs(OPERATOR)[0].id)
    worker.start()
    until(
        lambda: engine.store.list_runs(OPERATOR)[0].state == "cancelled",
        what="the wish is fulfilled by the next worker",
    )
    assert not set(old) & set(worker.children())
