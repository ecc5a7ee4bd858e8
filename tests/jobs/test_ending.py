"""How runs end: by themselves, stopped, out of memory, crashed, too large, too long; and what stays of each."""

from __future__ import annotations

import io
import time
import zipfile
from dataclasses import replace

import h5py
import numpy as np
import pytest

from fdcore.config import MB
from fdcore.errors import RunStateError, UnknownRunError
from fdcore.jobs import archive
from fdcore.jobs.engine import Engine
from fdcore.store.files import folder_size
from fdcore.store.series import read_result
from tests.jobs.conftest import OPERATOR, drill, expected_positions, recorded, submit, until


def _done(engine, run_id) -> float:
    return engine.store.run(OPERATOR, run_id).done


def test_starts_soon_when_warm(engine, worker):
    engine.wait(OPERATOR, submit(engine, drill(steps=1)))
    began = time.monotonic()
    run_id = submit(engine, drill(steps=5))
    until(lambda: engine.store.run(OPERATOR, run_id).state != "queued")
    # The benchmark has the figure (under 0.5 s); this bound only knows that nobody waits for a poll of seconds.
    assert time.monotonic() - began < 3


def test_complete_run_is_immutable(engine, worker):
    run = engine.wait(OPERATOR, submit(engine, drill(steps=5)))
    folder = engine.folder(run)
    assert folder is not None and read_result(folder) == run.summary
    assert all(f.stat().st_mode & 0o222 == 0 for f in folder.iterdir())
    assert run.bytes == folder_size(folder)
    assert not engine.store.end(run.id, run.attempt, "failed", error="late")
    assert engine.store.run(OPERATOR, run.id).state == "done"


def test_well_behaved_run_stops_within_a_second(engine, worker):
    run_id = submit(engine, drill(steps=10_000, step_seconds=0.01))
    until(lambda: _done(engine, run_id) > 5)
    began = time.monotonic()
    engine.cancel(OPERATOR, run_id)
    run = engine.wait(OPERATOR, run_id)
    assert time.monotonic() - began < 1.0
    assert run.state == "cancelled"
    steps = recorded(engine, run)["step"]
    assert list(steps) == list(range(len(steps))) and len(steps) == run.done > 5
    with pytest.raises(RunStateError):
        engine.cancel(OPERATOR, run_id)


@pytest.mark.parametrize("trouble", ["hang", "hold"])
def test_hung_run_stops_within_ten_seconds_and_its_record_stays(engine, worker, trouble):
    run_id = submit(engine, drill(steps=50, step_seconds=0.05, trouble=trouble, trouble_at=30))
    until(lambda: _done(engine, run_id) >= 20)
    time.sleep(1)
    began = time.monotonic()
    engine.cancel(OPERATOR, run_id)
    run = engine.wait(OPERATOR, run_id)
    assert time.monotonic() - began < 10
    assert run.state == "cancelled" and "did not answer" in run.text
    steps = list(recorded(engine, run)["step"])
    assert steps == list(range(len(steps))) and len(steps) >= 20
    assert [a.outcome for a in engine.store.attempts(run_id)] == ["cancelled"], "never begun again"
    assert engine.wait(OPERATOR, submit(engine, drill(steps=2)), 30).state == "done", "the lane is free"


def test_waiting_run_is_cancelled_at_once_and_never_begins(engine, worker):
    submit(engine, drill(steps=100, step_seconds=0.02))
    waiting = submit(engine, drill(steps=2))
    assert engine.cancel(OPERATOR, waiting).state == "cancelled"
    last = engine.wait(OPERATOR, submit(engine, drill(steps=2)))
    assert last.state == "done"
    assert engine.store.attempts(waiting) == ()


def test_cancelled_while_no_worker_lives(engine, config, workers):
    worker = workers(config)
    run_id = submit(engine, drill(steps=1000))
    until(lambda: _done(engine, run_id) > 0)
    worker.end()
    engine.cancel(OPERATOR, run_id)
    worker.start()
    assert engine.wait(OPERATOR, run_id).state == "cancelled"
    assert len(engine.store.attempts(run_id)) == 1


def test_out_of_memory_is_a_failed_run_with_advice(engine, worker):
    run = engine.wait(OPERATOR, submit(engine, drill(steps=30, trouble="memory", trouble_at=20)))
    assert run.state == "failed" and run.summary is None
    assert "memory" in run.error and "smaller" in run.hint
    folder = engine.folder(run)
    assert folder is not None and read_result(folder) is None, "never a stale result"
    assert len(recorded(engine, run)["step"]) == 20, "what was computed before stays"
    assert engine.wait(OPERATOR, submit(engine, drill(steps=2))).state == "done"


def test_task_that_kills_its_process_fails_with_advice(config, workers):
    # Saved at every step: an attempt that begins later than the one before has got further, and would count anew.
    careful = replace(config, checkpoint_seconds=0.0)
    engine = Engine(careful)
    workers(careful)
    run = engine.wait(OPERATOR, submit(engine, drill(steps=30, step_seconds=0.05, trouble="die", trouble_at=25)))
    assert run.state == "failed" and "without getting further" in run.error and "smaller" in run.hint
    attempts = engine.store.attempts(run.id)
    assert [a.outcome for a in attempts] == ["crashed"] * 4 + ["failed"], "from the start, then three at the same place"
    assert [a.done_at_start for a in attempts] == [0, 25, 25, 25, 25]
    assert run.bytes == folder_size(engine.folder(run)) > 0, (
        "the attempt that was refused recorded nothing, but they did"
    )
    with zipfile.ZipFile(exported(engine, run)) as made, h5py.File(io.BytesIO(made.read("series.h5"))) as file:
        assert list(file["steps"]["step"]) == list(range(25)), "what it recorded opens everywhere"


def exported(engine, run) -> io.BytesIO:
    """The run as a zip."""
    stream = io.BytesIO()
    attempts, folder = engine.store.attempts(run.id), engine.folder(run)
    archive.write(stream, run=run, attempts=attempts, structures=(), refusals=(), folder=folder, files={})
    return stream


def test_error_of_the_task_is_shown_in_its_words(engine, worker):
    run = engine.wait(OPERATOR, submit(engine, drill(steps=5, trouble="error", trouble_at=1)))
    assert (run.state, run.error) == ("failed", "The drill failed as it was asked to.")
    assert run.hint == "Ask for a drill without trouble."


def test_continued_run_equals_an_uninterrupted_one(engine, worker, tmp_path):
    spec = drill(seed=4, steps=200, step_seconds=0.02)
    first = submit(engine, spec)
    until(lambda: _done(engine, first) > 40)
    engine.cancel(OPERATOR, first)
    stopped = engine.wait(OPERATOR, first)
    second = submit(engine, spec, parent=first)
    run = engine.wait(OPERATOR, second)
    rows = recorded(engine, run)
    assert list(rows["step"]) == list(range(200))
    assert np.array_equal(rows["position"], expected_positions(spec, tmp_path / "expected"))
    [attempt] = engine.store.attempts(second)
    assert attempt.done_at_start == stopped.done > 40
    assert list(recorded(engine, stopped)["step"]) == list(range(int(stopped.done))), "the old run stays as it was"


def test_run_that_records_too_much_ends_with_what_it_has(config, workers):
    small = replace(config, max_run_MB=1)
    engine = Engine(small)
    workers(small)
    run = engine.wait(OPERATOR, submit(engine, drill(steps=1_000_000, step_seconds=0.0)), 120)
    assert run.state == "failed" and "more than the 1 MB" in run.error and "kept" in run.hint
    steps = recorded(engine, run)["step"]
    assert len(steps) > 10_000 and steps[-1] == len(steps) - 1


GROWS = {"steps": 1_000_000, "step_seconds": 0.0}


@pytest.mark.parametrize("limit", ["max_owner_MB", "max_total_MB"])
def test_runs_that_grow_together_end_at_the_limit_of_all_and_what_was_recorded_stays(config, workers, limit):
    small = replace(config, **{limit: 1})
    engine = Engine(small)
    grow = [submit(engine, drill(**GROWS), lane=lane) for lane in ("quick", "long")]
    behind = submit(engine, drill(steps=1), lane="long")
    other = submit(engine, drill(steps=1), owner="other", lane="long")
    workers(small)
    ended = [engine.wait(OPERATOR, r, 120) for r in grow]
    for run in ended:
        assert run.state == "failed" and "hold" in run.error and "1 MB" in run.error, run.error
        assert "kept" in run.hint and "go on" in run.hint and "elete" in run.hint
        steps = recorded(engine, run)["step"]
        assert list(steps) == list(range(len(steps))) and run.bytes > 0
    assert sum(r.bytes for r in ended) >= MB
    refused = engine.wait(OPERATOR, behind, 30)
    assert refused.state == "failed" and "1 MB" in refused.error, "nor does what waited begin"
    assert engine.wait(OPERATOR, other, 30).state == ("done" if limit == "max_owner_MB" else "failed")


def test_run_that_takes_too_long_ends(config, workers):
    short = replace(config, max_run_hours=1.5 / 3600)
    engine = Engine(short)
    workers(short)
    run = engine.wait(OPERATOR, submit(engine, drill(steps=100_000)))
    assert run.state == "failed" and "took longer" in run.error
    assert len(recorded(engine, run)["step"]) > 10


def test_deleted_run_leaves_nothing(engine, worker, config):
    run_id = submit(engine, drill(steps=200))
    until(lambda: _done(engine, run_id) > 0)
    with pytest.raises(RunStateError):
        engine.delete(OPERATOR, run_id)
    engine.cancel(OPERATOR, run_id)
    engine.wait(OPERATOR, run_id)
    engine.delete(OPERATOR, run_id)
    assert not (config.runs / run_id).exists()
    with pytest.raises(UnknownRunError):
        engine.store.run(OPERATOR, run_id)
