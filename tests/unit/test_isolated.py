"""The client of an isolated worker against workers that crash, hang, lie and die; the worker's loop on plain streams; the wire."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fdcore.errors import ComputeError, WeightsError, WorkerError
from fdcore.models.base import OutOfMemory
from fdcore.models.envs import wire
from fdcore.models.isolated import KilledError, Worker

SCRIPT = """
import ctypes, os, signal, sys, time
import numpy as np
from serve import Failed, loop, streams

def load(order, arrays):
    return {"loads": order["note"]}, {}

def work(order, arrays):
    what = order["what"]
    if what == "crash":
        print("the last thing I say", file=sys.stderr, flush=True)
        os._exit(7)
    if what == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hang":
        time.sleep(600)
    if what == "print":
        print("a library talks", flush=True)
        os.write(1, b"and so does its C code")
    if what == "noise":
        outgoing.write(b"noise" * 10)
        outgoing.flush()
        time.sleep(600)
    if what == "memory":
        raise MemoryError
    if what == "weights":
        raise Failed("weights", "the file is no good")
    if what == "error":
        raise ValueError("no such thing")
    return {"pid": os.getpid()}, {"twice": 2 * arrays["x"], "flags": arrays["x"] > 0}

incoming, outgoing = streams()
loop(incoming, outgoing, {"load": load, "work": work}, packages=("numpy",))
"""


@pytest.fixture
def worker(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(SCRIPT)
    made = Worker(Path(sys.executable), script, {"note": "a file"}, {"numpy": np.__version__})
    yield made
    made.close()


def ask(worker: Worker, what: str, x: np.ndarray | None = None, patience: float = 60.0):
    return worker.ask({"do": "work", "what": what}, {"x": np.arange(3.0) if x is None else x}, patience)


def test_an_order_and_its_answer(worker):
    x = np.random.default_rng(0).normal(size=(5000, 3))
    done, found = ask(worker, "fine", x)
    np.testing.assert_array_equal(found["twice"], 2 * x)
    np.testing.assert_array_equal(found["flags"], x > 0)
    assert worker.facts == {"loads": "a file"}
    assert ask(worker, "fine")[0]["pid"] == done["pid"] == worker.pid


def test_what_libraries_print_does_not_reach_the_wire(worker):
    done, _ = ask(worker, "print")
    assert ask(worker, "fine")[0] == done


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("crash", WorkerError, r"ended with code 7: the last thing I say.*new one is started"),
        ("segfault", WorkerError, r"ended by signal 11"),
        ("noise", WorkerError, r"no message"),
    ],
)
def test_a_dead_or_babbling_process_is_replaced(worker, what, error, words):
    first = ask(worker, "fine")[0]["pid"]
    with pytest.raises(error, match=f"(?s){words}"):
        ask(worker, what)
    assert ask(worker, "fine")[0]["pid"] != first
    assert worker.facts == {"loads": "a file"}


def test_a_hanging_process_is_ended(worker):
    first = ask(worker, "fine")[0]["pid"]
    started = time.monotonic()
    with pytest.raises(WorkerError, match="did not answer for 1 s"):
        ask(worker, "hang", patience=1.0)
    assert time.monotonic() - started < 10
    assert not alive(first)
    assert ask(worker, "fine")[0]["pid"] != first


def test_a_stopped_process_that_reads_nothing_is_ended(worker):
    """More than a pipe holds: writing must not wait for ever."""
    first = ask(worker, "fine")[0]["pid"]
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(WorkerError, match="did not answer"):
        ask(worker, "fine", np.zeros(1_000_000), patience=1.0)
    assert not alive(first)


def test_cancel_from_another_thread(worker):
    ask(worker, "fine")
    threading.Timer(0.5, worker.cancel).start()
    started = time.monotonic()
    with pytest.raises(WorkerError, match="cancelled"):
        ask(worker, "hang")
    assert time.monotonic() - started < 10
    assert ask(worker, "fine")[0]["pid"] == worker.pid


def test_killed_from_outside_says_memory(worker):
    first = ask(worker, "fine")[0]["pid"]
    threading.Timer(0.5, os.kill, (first, signal.SIGKILL)).start()
    with pytest.raises(KilledError, match="out of memory"):
        ask(worker, "hang")


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("memory", OutOfMemory, None),
        ("weights", WeightsError, "the file is no good"),
        ("error", ComputeError, "ValueError: no such thing"),
    ],
)
def test_a_failed_order_leaves_the_process_alive(worker, what, error, words):
    first = ask(worker, "fine")[0]["pid"]
    with pytest.raises(error, match=words):
        ask(worker, what)
    assert ask(worker, "fine")[0]["pid"] == first


def test_another_protocol_or_package_is_refused(worker, monkeypatch):
    monkeypatch.setattr(wire, "PROTOCOL", wire.PROTOCOL + 1)
    with pytest.raises(WorkerError, match=r"(?s)speaks protocol 1, this fdcore protocol 2.*start it anew"):
        worker.start()
    assert worker.pid is None
    monkeypatch.undo()
    worker._packages = {"numpy": "0.1"}
    with pytest.raises(WorkerError, match=rf"(?s)holds numpy {np.__version__}, not 0.1.*Remove"):
        worker.start()
    assert worker.pid is None


def test_the_process_ends_with_its_client(worker, tmp_path):
    """Also a client that is killed, and a worker in the middle of a computation."""
    script = tmp_path / "worker.py"
    client = f"""
        import sys
        import numpy as np
        from pathlib import Path
        from fdcore.models.isolated import Worker
        w = Worker(Path(sys.executable), Path({str(script)!r}), {{"note": ""}}, {{}})
        w.start()
        print(w.pid, flush=True)
        w.ask({{"do": "work", "what": "hang"}}, {{"x": np.zeros(1)}}, 600)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(client)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 10
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(pid)


def test_a_forgotten_client_ends_its_process(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(SCRIPT)
    worker = Worker(Path(sys.executable), script, {"note": ""}, {})
    worker.start()
    pid = worker.pid
    assert pid is not None
    del worker
    assert not alive(pid)


def test_the_wire_round_trip_and_its_refusals():
    stream = io.BytesIO()
    arrays = {
        "a": np.arange(6, dtype=np.int32).reshape(2, 3),
        "b": np.asfortranarray(np.random.default_rng(0).normal(size=(3, 4))),
        "none": np.zeros((0, 3)),
        "flags": np.array([True, False]),
    }
    wire.send(stream, {"do": "x", "n": 1.5}, arrays)
    stream.seek(0)
    message, found = wire.receive(stream)
    assert message == {"do": "x", "n": 1.5}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].shape == array.shape
    with pytest.raises(EOFError):
        wire.receive(stream)
    whole = stream.getvalue()
    with pytest.raises(EOFError):
        wire.receive(io.BytesIO(whole[:-1]))
    with pytest.raises(wire.WireError, match="bytes"):
        wire.receive(io.BytesIO(b"\xff\xff\xff\xff" + whole))
    for header in (
        b"no json",
        b'{"do": 1}',
        b'{"arrays": [["a", "|O", [1]]]}',
        b'{"arrays": [["a", "<f8", [-1]]]}',
        b"[]",
    ):
        with pytest.raises(wire.WireError):
            wire.receive(io.BytesIO(struct.pack("<I", len(header)) + header))


def alive(pid: int) -> bool:
    """Running: not gone, and not a corpse that nobody has looked at."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
