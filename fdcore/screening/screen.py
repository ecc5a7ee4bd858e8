"""A whole screening from one command: list, several pairs of hands, the table. The same command on another machine that shares the folder and
the database joins; the same command later goes on, and looks for new inputs."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from fdcore import config as configuration
from fdcore.errors import ComputeError, FdcoreError, UsageError
from fdcore.models import resolve_device
from fdcore.records import Failure
from fdcore.screening import listing, place
from fdcore.screening.chunks import Chunk
from fdcore.screening.process import order_of
from fdcore.screening.results import Results, put_together, rows_there
from fdcore.screening.scoring import How
from fdcore.screening.summary import SUMMARY, summary_of
from fdcore.store.chunks import ChunkBook, Count, patiently

# Processes that end unasked before any of them finished another chunk: more is no accident.
DEATHS_ALLOWED = 12
# The rate is that of the last minute: what comes next is rather like that than like the beginning.
RATE_SECONDS = 60.0
SURE_STRUCTURES, SURE_SECONDS = 10, 20.0
TELL_SECONDS = 0.5
# A batch takes some hundred MB and gives them back; in large pages, and without asking the system for them anew every time, a structure takes
# a tenth less time (measured). Other C libraries than glibc do not look at it.
KEEPS_MEMORY = f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold={2**30}:glibc.malloc.trim_threshold={2**30}"
# How long a process may take to stop when it is asked to.
GRACE_SECONDS = 20.0


@dataclass(frozen=True)
class Order:
    """What is to be screened, how, and where it is kept.

    inputs : what is named, as absolute paths; a folder of results belongs to its inputs, to which more may be added.
    listed : makes the listing (chunks and what cannot be listed), each time anew; how it is divided belongs to `chunk`.
    model : id, dtype, weights (a path or None), weights_sha256, compile (bool).
    devices : one process for each; "cpu" several times where there are several cores.
    database_url : of a book that several machines share; empty for one beside the results.
    """

    folder: Path
    inputs: Sequence[str]
    listed: Callable[[], Iterable[Chunk | Failure]]
    model: Mapping[str, Any]
    devices: Sequence[str]
    how: How = field(default_factory=How)
    chunk: int = 200
    database_url: str = ""


@dataclass(frozen=True)
class Standing:
    """How far it is: `count` of the book, `done` structures, this machine's and all others' (what is scored within a chunk included for this
    machine), `rate` (structures/s, of all) and `seconds_left`, None while not known; `processes` at work here."""

    count: Count
    done: int
    rate: float | None
    seconds_left: float | None
    processes: int


def screen(order: Order, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Standing]:
    """Do it; afterwards the folder holds the table and its summary, also of a part where it was stopped.

    Raises UsageError for a folder that belongs to another screening, StoreError, and ComputeError where processes cannot work.
    """
    settings = place.settings_of(
        model=order.model["id"],
        weights_sha256=order.model.get("weights_sha256"),
        dtype=order.model["dtype"],
        how=asdict(order.how) | {"compile": order.model["compile"]},
        chunk=order.chunk,
    )
    new = not place.is_described(order.folder)
    name, before = place.described(order.folder, settings, order.inputs)
    book = place.book_of(order.folder, order.database_url, name)
    book.open(place.sha256_of(settings))
    results = Results(order.folder, place.sha256_of(settings))
    silent = configuration.from_environment().dead_after_seconds
    holder = f"{socket.gethostname()}-{os.getpid()}"
    began = time.time()
    # Where the book is beside the results nobody on another machine works on it, and on this one nobody who is not seen in the lock.
    alone = None if order.database_url else place.alone_in(order.folder)
    if not book.reopen(0.0 if alone else silent) and set(order.inputs) != set(before):
        raise UsageError(
            "Another command is at work on these results, with other inputs.",
            "Wait until it has ended, or name the same inputs to join it.",
        )
    place.describe_inputs(order.folder, order.inputs)
    crew = _Crew(order, name, place.sha256_of(settings), holder, book)
    try:
        # The processes load their model while the inputs are listed.
        crew.start()
        if book.take_listing(holder, silent):
            for _ in listing.fill(book, holder, order.listed()):
                yield _standing(book.count(), 0, None, crew)
                if should_stop():
                    return
        pace = Pace()
        while not should_stop():
            crew.look()
            count = patiently(book.count, silent)
            # Finished chunks of everybody, and what the processes here have done of theirs.
            done = count.scored + count.failed + crew.within
            yield _standing(count, done, pace.at(done), crew)
            if count.complete:
                break
            crew.wait(TELL_SECONDS)
    except FdcoreError:
        # A refusal that the processes bring, such as a model that cannot be loaded: nothing was done, and nothing is kept of it.
        if new and alone and not (book.count().scored + book.count().failed):
            place.forget(order.folder)
        raise
    finally:
        done_at = time.time()
        crew.stop()
        if alone:
            alone.close()
    count = book.count()
    if not count.complete and rows_there(order.folder) > count.scored + count.failed:
        # Interrupted before it had found again what is done: the table of before says more.
        return
    put_together(tables(book, results), order.folder)
    how = {
        "seconds": time.time() - began,
        # Without what it takes to begin.
        "working_seconds": None if crew.ready_at is None else done_at - crew.ready_at,
        "processes": len(order.devices),
    }
    summary = summary_of(book, settings, how)
    (order.folder / SUMMARY).write_text(json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    if count.complete:
        book.leave()


def tables(book: ChunkBook, results: Results) -> Iterator[pa.Table]:
    """The parts that are there, in the order of the listing."""
    for _, key, body, _ in book.done():
        yield listing.unlisted(body) if key == listing.UNLISTED else results.read(key)


def _standing(count: Count, done: int, rate: float | None, crew: _Crew) -> Standing:
    # A file may hold several structures, so that more can be done than was expected.
    left = max(0, count.expected - done)
    seconds = left / rate if rate and count.listed else None
    return Standing(count, done, rate, seconds, crew.alive)


class Pace:
    """Structures per second over the last minute; None while it cannot be told: the first file may be one that fails at once."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def at(self, done: float) -> float | None:
        now = time.monotonic()
        self._seen.append((now, done))
        while now - self._seen[0][0] > RATE_SECONDS:
            self._seen.popleft()
        then, before = self._seen[0]
        moved, passed = done - before, now - then
        enough = (moved >= SURE_STRUCTURES and passed >= 2.0) or passed >= SURE_SECONDS
        return moved / passed if moved > 0 and enough else None

    def clear(self) -> None:
        """What was seen says nothing of what comes."""
        self._seen.clear()


class _Crew:
    """The processes of this machine: one per device, begun again when one ends unasked."""

    def __init__(self, order: Order, screen: str, settings_sha256: str, holder: str, book: ChunkBook) -> None:
        self._order, self._book = order, book
        self._common = {
            "folder": order.folder.absolute(),
            "database_url": order.database_url,
            "screen": screen,
            "settings_sha256": settings_sha256,
        }
        self._holder = holder
        self._messages: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self._processes: list[subprocess.Popen[str] | None] = [None] * len(order.devices)
        self._begun = [0] * len(order.devices)
        self._within = [0] * len(order.devices)
        self._deaths = 0
        self._stopping = False
        self._finished = threading.Event()
        # When the first of them had its model; None until then.
        self.ready_at: float | None = None

    @property
    def alive(self) -> int:
        return sum(p is not None for p in self._processes)

    @property
    def within(self) -> int:
        """Structures that are done of chunks that are not."""
        return sum(self._within)

    def start(self) -> None:
        for k in range(len(self._order.devices)):
            self._start(k)

    def _name(self, k: int) -> str:
        return f"{self._holder}-{k}-{self._begun[k]}"

    def _start(self, k: int) -> None:
        self._begun[k] += 1
        # One, also where there are more cores than processes: sums of several threads differ in their last bits.
        threads = "1" if self._order.devices[k] == "cpu" else str(max(1, cores() // len(self._order.devices)))
        root = str(Path(__file__).resolve().parents[2])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", "")))),
            **{f"{name}_NUM_THREADS": threads for name in ("OMP", "MKL", "OPENBLAS")},
        }
        environment.setdefault("GLIBC_TUNABLES", KEEPS_MEMORY)
        process = subprocess.Popen(
            (sys.executable, "-P", "-m", "fdcore.screening.process"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            # Ctrl-C is for this process, which then asks the others.
            start_new_session=True,
        )
        model = {key: self._order.model.get(key) for key in ("id", "dtype", "weights", "compile")}
        order = order_of(
            **self._common,
            holder=self._name(k),
            model={**model, "device": self._order.devices[k]},
            how=self._order.how,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        self._processes[k], self._within[k] = process, 0
        threading.Thread(target=self._listen, args=(k, process), daemon=True).start()

    def _listen(self, k: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        over = False
        for line in process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # cut off in the middle: the end of the process follows
            over = over or "over" in message
            self._messages.put((k, message))
            if message.get("finished"):
                self._finished.set()
        process.wait()
        self._messages.put((k, {"gone": True} if over else None))

    def wait(self, seconds: float) -> None:
        """Until a chunk is finished, or so long."""
        until = time.monotonic() + seconds
        # Whoever counts at every chunk of many processes does little else.
        time.sleep(seconds / 5)
        self._finished.wait(max(0.0, until - time.monotonic()))
        self._finished.clear()

    def look(self) -> None:
        """Take in what was said; begin again what has ended unasked. Raises what a process says of itself, and ComputeError where they keep
        ending."""
        while True:
            try:
                k, message = self._messages.get_nowait()
            except queue.Empty:
                return
            if message is None or "gone" in message:
                self._processes[k], self._within[k] = None, 0
                if message is None and not self._stopping:
                    self._died(k)
            elif "ready" in message:
                self.ready_at = self.ready_at or time.time()
            elif "error" in message and not self._stopping:
                raise FdcoreError(message["error"], message["hint"])
            elif "structures" in message:
                self._within[k] = 0 if message["finished"] else self._within[k] + message["structures"]
                if message["finished"]:
                    self._deaths = 0

    def _died(self, k: int) -> None:
        self._book.release(self._name(k))
        self._deaths += 1
        if self._deaths > DEATHS_ALLOWED:
            raise ComputeError(
                "The processes that evaluate keep ending.",
                "Use fewer (--workers 1), a smaller model, or a machine with more memory; what is done is kept.",
            )
        self._start(k)

    def stop(self) -> None:
        """Ask all to stop, and wait a little."""
        self._stopping = True
        for process in filter(None, self._processes):
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        until = time.monotonic() + GRACE_SECONDS
        for k, process in enumerate(self._processes):
            if process is None:
                continue
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            with contextlib.suppress(FdcoreError):
                self._book.release(self._name(k), unused=True)


def devices(device: str, workers: int | None) -> tuple[str, ...]:
    """One process per core on a CPU, one per GPU; `workers` says otherwise. UsageError for numbers that make no sense."""
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} processes cannot work.", "Give --workers 1 or more.")
    # Says so where there is no such device.
    device = resolve_device(device)
    if device == "cuda":
        import torch

        there = torch.cuda.device_count()
        return tuple(f"cuda:{k % there}" for k in range(workers or there))
    return (device,) * (workers or (cores() if device == "cpu" else 1))


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
