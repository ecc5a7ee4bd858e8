"""The parsing children, seen from the app: started when first needed, reused, killed when a file stalls or breaks them."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from fdcore.records import Failure, Structure
from fdcore.structures.limits import Limits, Source
from fdcore.structures.text import clean_name
from fdcore.structures.wire import WireError, receive, result_of, send_request

CHILDREN = 2
START_SECONDS = 60.0
_COMMAND = (sys.executable, "-P", "-m", "fdcore.structures.child")


class Child:
    """One parsing process; used by one thread at a time."""

    def __init__(self, command: Sequence[str] = _COMMAND) -> None:
        self.command = tuple(command)
        self.process: subprocess.Popen[bytes] | None = None

    def read(self, source: Source, limits: Limits) -> tuple[list[Structure], list[Failure]]:
        """Parse one source; a child that stalls, dies or answers nonsense is killed and the source becomes a Failure."""
        name = clean_name(source.name)
        try:
            process = self._started()
        except (OSError, WireError) as error:
            self.kill()
            return [], [
                Failure(
                    name,
                    f"The process that reads files did not start ({error}).",
                    "Try again; tell the operator if it stays.",
                )
            ]
        timer = _Deadline(process, limits.max_seconds)
        try:
            stdin, stdout = _pipes(process)
            send_request(stdin, source, limits)
            # 8 bytes for each number of each atom, cells and energies; larger than that, the answer is not read at all.
            answer = receive(stdout, 56 * limits.max_total_atoms + 80 * limits.max_frames + 1000)
            if answer is None:
                raise WireError("no answer")
            return result_of(*answer)
        except (OSError, WireError, MemoryError):
            self.kill()
            if timer.passed:
                return [], [
                    Failure(
                        name,
                        f"The file was not read within {limits.max_seconds:g} seconds.",
                        "Split it or save it again in a simpler form.",
                    )
                ]
            return [], [
                Failure(
                    name, "Reading the file broke the reader.", "Save it again as CIF or extxyz; it may be damaged."
                )
            ]
        except BaseException:
            # Interrupted within a message: what comes next on the pipe belongs to nobody.
            self.kill()
            raise
        finally:
            timer.cancel()
            if timer.passed:
                self.kill()

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
        timer = _Deadline(process, START_SECONDS)
        try:
            ready = receive(_pipes(process)[1], 0)
        finally:
            timer.cancel()
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


class _Deadline:
    """Kills the process when its time is over, which ends every read and write on its pipes."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self.process = process
        self.passed = self._over = False
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._kill)
        self._timer.daemon = True
        self._timer.start()

    def _kill(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if not self._over:
                self.passed = True
                self.process.kill()

    def cancel(self) -> None:
        self._timer.cancel()
        # A timer that is just firing must not kill the child while it has the next file.
        with self._lock:
            self._over = True


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

    def read(self, source: Source, limits: Limits) -> tuple[list[Structure], list[Failure]]:
        child = self._idle.get()
        try:
            return child.read(source, limits)
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
