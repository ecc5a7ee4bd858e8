"""The client of a worker that runs in an environment of its own: started when first needed, killed when it does not answer.

One order at a time. Whatever goes wrong between the two (the process ended, hangs, or speaks another protocol; the caller was
interrupted) ends the process, so that no answer is ever taken for that of another order; the next order starts a new one, which is
given its model again. The contract of the messages is in `envs/wire`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from fdcore.errors import ComputeError, UnconvergedError, WeightsError, WorkerError
from fdcore.models.base import OutOfMemory
from fdcore.models.envs import wire

Arrays = dict[str, np.ndarray]
# Importing torch and a package, and reading weights, from a cold disk.
START_SECONDS = 600.0


class KilledError(WorkerError):
    """The process was killed from outside: in a batch, a smaller one may fit."""


class Worker:
    """A process of `python script`, and the order that loads its model.

    packages : what it must say that it has, e.g. {"fairchem-core": "1.10.0"}.
    called : what errors call it.
    """

    def __init__(
        self,
        python: Path,
        script: Path,
        load: Mapping[str, Any],
        packages: Mapping[str, str],
        called: str = "the model",
    ) -> None:
        self._command = [str(python), "-s", str(script)]
        self._load, self._packages, self._called = dict(load), dict(packages), called
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[Any] = queue.Queue()
        self._log: IO[bytes] | None = None
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._end = lambda: None
        self.start_seconds = START_SECONDS
        # What the worker said of the model that it loaded.
        self.facts: dict[str, Any] = {}
        # What the last order took there, without the way.
        self.seconds = 0.0

    @property
    def pid(self) -> int | None:
        """Of the live process, None without one."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process and load its model, unless it lives."""
        with self._lock:
            self._cancelled.clear()
            self._started()

    def ask(self, order: Mapping[str, Any], arrays: Arrays, patience_seconds: float) -> tuple[dict[str, Any], Arrays]:
        """The answer to one order.

        Raises WorkerError (ended, hung, cancelled), OutOfMemory, ComputeError.
        """
        with self._lock:
            self._cancelled.clear()
            self._started()
            return self._exchange(order, arrays, patience_seconds)

    def cancel(self) -> None:
        """End the present order from another thread, by ending the process: the order raises WorkerError."""
        self._cancelled.set()
        process = self._process
        if process is not None:
            _end(process)

    def close(self) -> None:
        """End the process."""
        self._end()
        self._process = None

    # ---- one exchange ----------------------------------------------------------------------------------------------

    def _exchange(
        self, order: Mapping[str, Any], arrays: Arrays, patience_seconds: float
    ) -> tuple[dict[str, Any], Arrays]:
        assert self._process is not None and self._process.stdin is not None
        try:
            # Not here: where the process does not read, a long order would wait for ever.
            sending = threading.Thread(target=_send, args=(self._process, order, arrays), daemon=True, name="order")
            sending.start()
            answer = self._next(patience_seconds)
        except BaseException:
            # Also Ctrl-C: the answer to this order must not be taken for that to the next.
            self.close()
            raise
        message, found = answer
        if "failed" in message:
            raise self._failure(message["failed"])
        self.seconds = float(message["seconds"])
        return message["done"], found

    def _next(self, patience_seconds: float) -> tuple[dict[str, Any], Arrays]:
        try:
            answer = self._answers.get(timeout=patience_seconds)
        except queue.Empty:
            raise WorkerError(
                f"The process of {self._called} did not answer for {patience_seconds:.0f} s; it was ended.",
                "Try again (a new one is started), with a smaller structure or fewer at a time.",
            ) from None
        if isinstance(answer, tuple):
            return answer
        raise self._ended(answer)

    def _ended(self, error: Exception) -> Exception:
        assert self._process is not None
        if self._cancelled.is_set():
            return WorkerError("The computation was cancelled.", "Start it again when it is wanted.")
        if isinstance(error, wire.WireError):
            return WorkerError(
                f"The process of {self._called} sent what is no message: {error}.", "Try again; a new one is started."
            )
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.poll()
        if code == -signal.SIGKILL:
            return KilledError(
                f"The process of {self._called} was killed, which is what a system does that is out of memory.",
                "Use a smaller structure or model, or a machine with more memory.",
            )
        how = f"was ended by signal {-code}" if code and code < 0 else f"ended with code {code}"
        return WorkerError(
            f"The process of {self._called} {how}: {self._last_words()}",
            "Try again; a new one is started with the next request.",
        )

    def _failure(self, failed: Mapping[str, str]) -> Exception:
        if failed["kind"] == "memory":
            return OutOfMemory()
        if failed["kind"] == "weights":
            return WeightsError(failed["message"], "Use the official checkpoint of this model (--model, --weights).")
        if failed["kind"] == "convergence":
            return UnconvergedError(failed["message"], "Loosen what is asked for, or leave the structure out.")
        called = self._called[:1].upper() + self._called[1:]
        return ComputeError(f"{called} failed: {failed['message']}", "Try another structure or model.")

    # ---- the process -----------------------------------------------------------------------------------------------

    def _started(self) -> None:
        if self.pid is not None:
            return
        self.close()
        self._answers = queue.Queue()
        # As long as the process.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        python_path = str(Path(wire.__file__).parent)
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": python_path, "PYTHONDONTWRITEBYTECODE": ""},
            # Its own group: Ctrl-C in the terminal is for us, who then end it.
            start_new_session=True,
        )
        # Also when the model is forgotten, and at the end of ours.
        self._end = weakref.finalize(self, _end, self._process)
        threading.Thread(target=_listen, args=(self._process, self._answers), daemon=True, name="answers").start()
        try:
            hello, _ = self._next(self.start_seconds)
            self._check(hello.get("hello", {}))
            self.facts, _ = self._exchange({"do": "load", **self._load}, {}, self.start_seconds)
        except BaseException:
            self.close()
            raise

    def _check(self, hello: Mapping[str, Any]) -> None:
        if hello.get("protocol") != wire.PROTOCOL:
            raise WorkerError(
                f"The process of {self._called} speaks protocol {hello.get('protocol')}, this fdcore protocol {wire.PROTOCOL}.",
                "fdcore was upgraded while it ran: start it anew.",
            )
        for package, version in self._packages.items():
            if hello.get(package, "").split("+")[0] != version:
                raise WorkerError(
                    f"The environment of {self._called} holds {package} {hello.get(package)}, not {version}.",
                    f"Remove {Path(self._command[0]).parents[1]}; it is built again on the next use.",
                )

    def _last_words(self) -> str:
        if self._log is None:
            return "it said nothing."
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 4000))
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing."


def _send(process: subprocess.Popen[bytes], order: Mapping[str, Any], arrays: Arrays) -> None:
    assert process.stdin is not None
    # A process that has just died says so as the next answer.
    with contextlib.suppress(OSError, ValueError):
        wire.send(process.stdin, order, arrays)


def _listen(process: subprocess.Popen[bytes], answers: queue.Queue[Any]) -> None:
    assert process.stdout is not None
    try:
        while True:
            answers.put(wire.receive(process.stdout))
    except Exception as error:
        answers.put(error)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
