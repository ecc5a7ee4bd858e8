"""What a run records: nothing that was saved is lost, nothing is there twice, whatever interrupts the writer."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fdcore.errors import StoreError, UsageError
from fdcore.spec import Spec
from fdcore.store import series
from fdcore.store.series import (
    CHECKPOINT,
    SERIES,
    Checkpoint,
    Column,
    Recorder,
    closed_series,
    read_checkpoint,
    read_notes,
    read_result,
    read_table,
)
from fdcore.tasks.run import Limits, execute
from tests.jobs.conftest import ROOT, drill

TABLES = {"a": {"n": Column("<i8")}, "b": {"n": Column("<i8"), "x": Column("<f4", (2,))}}


def row(table: str, n: int) -> dict:
    return {"n": [n]} if table == "a" else {"n": [n], "x": [[n, -n]]}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["a", "b", "note", "flush", "save", "kill"]), max_size=40))
def test_every_interruption_goes_back_to_what_was_saved(tmp_path_factory, acts):
    """`kill` continues from a copy of the folder as another process would find it; the model is two plain lists."""
    top = tmp_path_factory.mktemp("series")
    attempt, recorder = 0, Recorder(top / "0", TABLES)
    now, saved = {"a": 0, "b": 0, "note": 0}, None
    for act in acts:
        if act in TABLES:
            recorder.append(act, row(act, now[act]))
            now[act] += 1
        elif act == "note":
            recorder.note({"n": now["note"]})
            now["note"] += 1
        elif act == "flush":
            recorder.flush()
        elif act == "save":
            recorder.save(Checkpoint({"now": dict(now)}, {"x": np.arange(now["a"])}))
            saved = dict(now)
        else:
            attempt += 1
            dead = top / f"dead-{attempt}"
            shutil.copytree(recorder.folder, dead)
            recorder.close()
            recorder = Recorder(top / str(attempt), TABLES, dead)
            assert (recorder.state is None) == (saved is None)
            now = dict(saved) if saved else {"a": 0, "b": 0, "note": 0}
            if recorder.state is not None:
                assert recorder.state.values["now"] == now
                assert list(recorder.state.arrays["x"]) == list(range(now["a"]))
    recorder.finish({"ok": True})
    for table in TABLES:
        assert list(read_table(recorder.folder, table)["n"]) == list(range(now[table]))
    assert [n["n"] for n in read_notes(recorder.folder)] == list(range(now["note"]))
    assert np.array_equal(read_table(recorder.folder, "b")["x"][:, 1], -np.arange(now["b"], dtype="f4"))


def test_wrong_columns_are_refused(tmp_path):
    recorder = Recorder(tmp_path / "r", TABLES)
    with pytest.raises(UsageError, match="columns"):
        recorder.append("b", {"n": [1]})
    recorder.close()


def test_finished_record_cannot_be_changed(tmp_path):
    recorder = Recorder(tmp_path / "r", TABLES)
    recorder.append("a", row("a", 0))
    recorder.save(Checkpoint({}, {}))
    recorder.finish({"answer": 42})
    assert read_result(tmp_path / "r") == {"answer": 42}
    assert not (tmp_path / "r" / CHECKPOINT).exists(), "there is nothing to go on from"
    assert {oct(f.stat().st_mode)[-3:] for f in (tmp_path / "r").iterdir()} == {"400"}


WRITER = """
import sys, numpy as np
from pathlib import Path
from fdcore.store.series import Recorder, Column, Checkpoint
recorder = Recorder(Path(sys.argv[1]), {"a": {"n": Column("<i8"), "x": Column("<f8", (100, 3))}})
k = 0
while True:
    for _ in range(7):
        recorder.append("a", {"n": [k], "x": np.full((1, 100, 3), k)})
        k += 1
    recorder.note({"k": k})
    recorder.flush()
    if k % 5 == 0:
        recorder.save(Checkpoint({"k": k}, {}))
    print(k, flush=True)
"""


@pytest.mark.parametrize("moment", range(5))
def test_reading_while_it_grows_and_after_its_writer_was_killed(tmp_path, moment):
    folder = tmp_path / "r"
    command = [sys.executable, "-c", WRITER, str(folder)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(ROOT)})
    said = [int(writer.stdout.readline())]
    for _ in range(3):
        count = len(read_table(folder, "a")["n"])
        assert count >= said[0], "what was flushed is readable from another process"
        time.sleep(0.02)
    time.sleep(0.05 * moment)
    writer.send_signal(signal.SIGKILL)
    said += [int(line) for line in writer.stdout.read().split("\n")[:-1]]
    writer.wait()
    found = read_table(folder, "a")
    assert len(found["n"]) >= said[-1] and list(found["n"]) == list(range(len(found["n"])))
    assert np.array_equal(found["x"][:, 7, 1], found["n"].astype(float))
    assert [n["k"] for n in read_notes(folder)] == list(range(7, 7 * (len(list(read_notes(folder))) + 1), 7))
    checkpoint = read_checkpoint(folder)
    if checkpoint is not None:
        rows = checkpoint.rows
        assert rows["a"] == checkpoint.state.values["k"]
        again = Recorder(tmp_path / "again", {"a": {"n": Column("<i8"), "x": Column("<f8", (100, 3))}}, folder)
        again.close()
        assert len(read_table(tmp_path / "again", "a")["n"]) == rows["a"]


def columns_of(path: Path) -> dict[str, np.ndarray]:
    """What any HDF5 program reads."""
    with h5py.File(path, "r") as file:
        return {f"{table}/{name}": file[table][name][()] for table in file for name in file[table]}


def test_record_of_a_killed_writer_is_passed_on_as_a_file_that_opens(tmp_path, monkeypatch):
    folder = tmp_path / "run" / "attempt-1"
    command = [sys.executable, "-c", WRITER, str(folder)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(ROOT)})
    for _ in range(20):
        writer.stdout.readline()
    writer.send_signal(signal.SIGSTOP)
    for state in ("still writes", "killed"):
        if state == "killed":
            writer.kill()
            writer.wait()
        with pytest.raises(OSError):
            h5py.File(folder / SERIES, "r")
        known = read_table(folder, "a")
        # Several pieces.
        monkeypatch.setattr(series, "COPY_BYTES", 40 * 2408)
        with closed_series(folder) as path:
            found = columns_of(path)
            assert path != folder / SERIES
        assert list(found) == ["a/n", "a/x"] and len(found["a/n"]) >= 140, state
        assert all(np.array_equal(found[f"a/{name}"], known[name]) for name in known)
        assert [p.name for p in folder.parent.iterdir()] == ["attempt-1"], "the copy is gone"


def test_record_that_was_closed_is_passed_on_as_it_is(tmp_path):
    with closed_series(tmp_path) as path:
        assert path is None
    recorder = Recorder(tmp_path / "r", TABLES)
    recorder.append("a", row("a", 0))
    recorder.close()
    with closed_series(tmp_path / "r") as path:
        assert path == tmp_path / "r" / SERIES and list(columns_of(path)["a/n"]) == [0]
    (tmp_path / "r" / SERIES).write_bytes(b"torn")
    with closed_series(tmp_path / "r") as path:
        assert path.read_bytes() == b"torn", "rather than nothing"


def _stopped(spec: Spec, folder: Path) -> None:
    """An attempt that was stopped after some steps, with a saved state."""
    calls = iter(range(10**6))
    outcome = execute(spec, (), lambda s: None, folder, should_stop=lambda: next(calls) > 60, limits=Limits(0.0))
    assert outcome.state == "cancelled" and read_checkpoint(folder) is not None


@pytest.mark.parametrize("damage", ["checkpoint", "series", "notes"])
def test_damaged_state_begins_again_and_says_so(tmp_path, damage):
    spec = drill(steps=100, step_seconds=0.0)
    _stopped(spec, tmp_path / "1")
    file = {"checkpoint": CHECKPOINT, "series": "series.h5", "notes": "notes.jsonl"}[damage]
    if damage == "notes":
        # The drill has none: claim some.
        recorder = Recorder(tmp_path / "n", {"steps": {"step": Column("<i8"), "position": Column("<f8", (3,))}})
        recorder.note({"x": 1})
        recorder.save(Checkpoint({"step": 0}, {}))
        recorder.close()
        shutil.rmtree(tmp_path / "1")
        (tmp_path / "n").rename(tmp_path / "1")
        (tmp_path / "1" / file).write_bytes(b"")
    else:
        content = (tmp_path / "1" / file).read_bytes()
        (tmp_path / "1" / file).write_bytes(content[: len(content) // 3])
    outcome = execute(spec, (), lambda s: None, tmp_path / "2", previous=[tmp_path / "1"])
    assert outcome.state == "done" and outcome.note.startswith("Begun again from the start")
    assert list(read_table(tmp_path / "2", "steps")["step"]) == list(range(100))


def test_intact_state_is_gone_on_from_without_a_word(tmp_path):
    spec = drill(steps=100, step_seconds=0.0)
    _stopped(spec, tmp_path / "1")
    firsts = []
    outcome = execute(
        spec, (), lambda s: None, tmp_path / "2", previous=[tmp_path / "1"], report=lambda r: firsts.append(r.done)
    )
    assert outcome.state == "done" and outcome.note == ""
    assert firsts[0] > 10
    assert list(read_table(tmp_path / "2", "steps")["step"]) == list(range(100))


def test_damaged_checkpoint_is_an_error_in_words(tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(StoreError, match="damaged"):
        read_checkpoint(tmp_path)
