"""The parsing children, seen from the app: started when first needed, reused, killed when a file stalls or breaks them."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from fdcore.records import Failure, Structure
from fdcore.structures.limits import Limits, Source
from fdcore.structures.text import clean_name
from fdcore.structures.wire import WireError, receive, result_of, send_request

CHILDREN = 2
START_SECONDS = 60.0
# More than the header of a request takes, its name apart.
_HEADER = 1000
_AGAIN = "Try again; tell the operator if it stays."
_COMMAND = (sys.executable, "-P", "-m", "fdcore.structures.child")

Read = tuple[list[Structure], list[Failure]]


class Child:
    """One parsing process; used by one thread at a time."""

    def __init__(self, command: Sequence[str] = _COMMAND) -> None:
        self.command = tuple(command)
        self.process: subprocess.Popen[bytes] | None = None

    def read(self, source: Source, limits: Limits) -> Read:
        """Parse one source; a child that stalls, dies or answers nonsense is killed and the source becomes a Failure."""
        (read,) = self.read_each((source,), limits)
        return read

    def read_each(self, sources: Iterable[Source], limits: Limits) -> Iterator[Read]:
        """Parse many sources, in order, each as `read` does: a child that breaks on one is replaced for those behind it.

        Small sources wait in the pipe while the child works, so that a file costs no round trip; each has `limits.max_seconds` from the
        moment at which the one before it was answered.
        """
        rest = iter(sources)
        # Taken and not answered yet; the first of them are on the pipe.
        waiting: deque[Source] = deque(islice(rest, 1))
        talk: _Conversation | None = None
        try:
            while waiting:
                try:
                    talk = talk or _Conversation(self._started(), limits)
                except (OSError, WireError) as error:
                    read = _failed(waiting[0], f"The process that reads files did not start ({error}).", _AGAIN)
                    self.kill()
                else:
                    try:
                        talk.send(waiting, rest)
                        read = talk.receive()
                    except (OSError, WireError, MemoryError):
                        self.kill()
                        read = talk.broken(waiting[0])
                    if self.process is None or talk.passed:
                        self.kill()
                        talk.close()
                        talk = None
                waiting.popleft()
                yield read
                if not waiting:
                    waiting.extend(islice(rest, 1))
        except BaseException:
            # Interrupted within a message, or before the last answer: what comes next on the pipe belongs to nobody.
            self.kill()
            raise
        finally:
            if talk is not None:
                talk.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is not None and self.process.poll() is None:
            return self.process
        self.kill()
        root = str(Path(__file__).resolve().parents[2])
        # One thread: BLAS threads reserve address space by the gigabyte, which counts against the limit.
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", "")))),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self.process = process
        deadline = _Deadline(process)
        deadline.start(START_SECONDS)
        try:
            ready = receive(_pipes(process)[1], 0)
        finally:
            deadline.close()
        if ready is None or ready[0].get("ready") is not True:
            raise WireError("it ended at once")
        return process

    def kill(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.kill()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        process.wait()


class _Conversation:
    """What is on the pipes of one process, and the clock of the source whose answer is due."""

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits) -> None:
        self._stdin, self._stdout = _pipes(process)
        self._limits = limits
        self._deadline = _Deadline(process)
        # Half of what the pipe holds, which is counted in pages that need not be full.
        self._room = _capacity(self._stdin) // 2
        self._sizes: deque[int] = deque()

    @property
    def passed(self) -> bool:
        """Whether the process was killed because its time was over."""
        return self._deadline.passed

    def send(self, waiting: deque[Source], rest: Iterator[Source]) -> None:
        """Start the clock, and send the first of `waiting` and as many more of them and of `rest` as the pipe takes unread."""
        while True:
            if len(self._sizes) == len(waiting):
                # What is not sent may be large: one at a time is taken. How long that takes is not the reader's fault.
                self._deadline.stop()
                waiting.extend(islice(rest, 1))
            self._deadline.start(self._limits.max_seconds)
            if len(self._sizes) == len(waiting):
                return
            source = waiting[len(self._sizes)]
            size = len(source.data) + 6 * len(source.name) + _HEADER
            # To a child that waits for a request, of any size; else it and this process could wait for each other.
            if self._sizes and sum(self._sizes) + size > self._room:
                return
            self._sizes.append(size)
            try:
                send_request(self._stdin, source, self._limits)
            except OSError:
                # The process ended, perhaps after it answered what was due: that is found where the answer is read.
                return

    def receive(self) -> Read:
        """The next answer; raises OSError, WireError or MemoryError where there is none."""
        # 8 bytes for each number of each atom, cells and energies; larger than that, the answer is not read at all.
        answer = receive(self._stdout, 56 * self._limits.max_total_atoms + 80 * self._limits.max_frames + 1000)
        if answer is None:
            raise WireError("no answer")
        read = result_of(*answer)
        # Whoever takes the answers may take their time.
        self._deadline.stop()
        self._sizes.popleft()
        return read

    def broken(self, source: Source) -> Read:
        """What is said of the source on which the process ended."""
        self._deadline.stop()
        if self.passed:
            error = f"The file was not read within {self._limits.max_seconds:g} seconds."
            return _failed(source, error, "Split it or save it again in a simpler form.")
        return _failed(
            source, "Reading the file broke the reader.", "Save it again as CIF or extxyz; it may be damaged."
        )

    def close(self) -> None:
        self._deadline.close()


class _Deadline:
    """Kills the process when its time is over, which ends every read and write on its pipes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.passed = self._closed = False
        self._until: float | None = None
        # When the watching thread looks again by itself.
        self._wakes: float | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._watch, daemon=True).start()

    def start(self, seconds: float) -> None:
        with self._changed:
            self._until = time.monotonic() + seconds
            # One who sleeps until an earlier end finds the new one there: thousands of small files wake nobody.
            if self._wakes is None or self._wakes > self._until:
                self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._until = None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                left = None if self._until is None else self._until - time.monotonic()
                if left is not None and left <= 0:
                    self.passed = True
                    with contextlib.suppress(OSError):
                        self.process.kill()
                    return
                self._wakes = self._until
                self._changed.wait(left)


def _failed(source: Source, error: str, hint: str) -> Read:
    return [], [Failure(clean_name(source.name), error, hint, source.first)]


def _capacity(pipe: BinaryIO) -> int:
    """Bytes that a pipe holds; 0 where the system does not say, and then a source waits for the answer to the one before it."""
    try:
        import fcntl

        return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
    except (ImportError, AttributeError, OSError):
        return 0


def _pipes(process: subprocess.Popen[bytes]) -> tuple[BinaryIO, BinaryIO]:
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout  # type: ignore[return-value]


class Pool:
    """A few children shared by all threads: a file that stalls one leaves the other to the other users."""

    def __init__(self, size: int = CHILDREN, command: Sequence[str] = _COMMAND) -> None:
        self.children = [Child(command) for _ in range(size)]
        # Last in, first out: one child stays warm under light use and the second never starts.
        self._idle: queue.LifoQueue[Child] = queue.LifoQueue()
        for child in self.children:
            self._idle.put(child)

    def read(self, source: Source, limits: Limits) -> Read:
        (read,) = self.read_each((source,), limits)
        return read

    def read_each(self, sources: Iterable[Source], limits: Limits) -> Iterator[Read]:
        """Like `Child.read_each`, by one child that is taken for as long as it lasts."""
        child = self._idle.get()
        try:
            yield from child.read_each(sources, limits)
        finally:
            self._idle.put(child)

    def close(self) -> None:
        for child in self.children:
            child.kill()


_pool: tuple[int, Pool] | None = None
_pool_lock = threading.Lock()


def shared_pool() -> Pool:
    """The pool of this process; a forked process makes its own, since pipes cannot be shared."""
    global _pool
    with _pool_lock:
        if _pool is None or _pool[0] != os.getpid():
            pool = Pool()
            atexit.register(pool.close)
            _pool = (os.getpid(), pool)
        return _pool[1]
