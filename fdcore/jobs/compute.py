"""Compute processes as the supervisor sees them: started when first needed, kept warm, killed when they do not answer."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fdcore.config import Config


@dataclass(frozen=True)
class Gone:
    """The last message of a process: it has ended. `killed_for_memory` where the system says that it took it."""

    returncode: int
    killed_for_memory: bool


class Compute:
    """One slot of a lane: at most one process, which does one thing at a time. Used by one thread at a time."""

    def __init__(self, config: Config, name: str, environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._pid_file = log.with_name(f"{config.name}.{name}.pid")
        self._config = config
        self._environment = dict(environment)
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self._messages: queue.Queue[dict[str, Any] | Gone] = queue.Queue()
        self._killed_before = 0
        self.last_used = time.monotonic()

    @property
    def pid(self) -> int | None:
        """Of the live process, None without one."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def order(self, message: Mapping[str, Any]) -> None:
        """Send an order; starts the process where there is none."""
        self.last_used = time.monotonic()
        if self.pid is None:
            self._start()
        with contextlib.suppress(OSError):
            # A process that has just died says so as the next message.
            self._stdin.write(json.dumps(dict(message)) + "\n")
            self._stdin.flush()

    def next(self, timeout: float) -> dict[str, Any] | Gone | None:
        """The next message, or None when nothing was said for `timeout` seconds."""
        try:
            message = self._messages.get(timeout=timeout)
        except queue.Empty:
            return None
        self.last_used = time.monotonic()
        return message

    def kill(self) -> None:
        """End the process at once; what it recorded stays in its files."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        process.wait()

    @property
    def _stdin(self) -> IO[str]:
        assert self._process is not None and self._process.stdin is not None
        return self._process.stdin

    def _start(self) -> None:
        self.kill()
        self._messages = queue.Queue()
        self._killed_before = memory_kills()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fdcore.jobs.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **self._config.environment(), **self._environment},
                text=True,
                encoding="utf-8",
                # Its own group: Ctrl-C in the terminal is for the supervisor, and a kill takes its helpers too.
                start_new_session=True,
            )
        self._pid_file.write_text(str(self._process.pid))
        threading.Thread(
            target=self._listen, args=(self._process, self._messages), daemon=True, name=f"messages of {self.name}"
        ).start()

    def _listen(self, process: subprocess.Popen[str], messages: queue.Queue[dict[str, Any] | Gone]) -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            for line in process.stdout:
                message = json.loads(line)
                if "ready" not in message:
                    messages.put(message)
        code = process.wait()
        messages.put(Gone(code, code == -signal.SIGKILL and memory_kills() > self._killed_before))


def kill_leftovers(folder: Path, worker: str) -> None:
    """Compute processes of a supervisor that was killed end by themselves, except those that cannot look up from a
    computation: end these too, before they share the machine with their successors."""
    for file in folder.glob(f"{worker}.*.pid"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(file.read_text())
            # The number may belong to somebody else by now.
            if b"fdcore.jobs.child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.killpg(pid, signal.SIGKILL)
        file.unlink(missing_ok=True)


def memory_kills() -> int:
    """How many processes of this container the system has killed for memory so far; 0 where it does not say."""
    try:
        lines = Path("/sys/fs/cgroup/memory.events").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def count_gpus() -> int:
    """CUDA devices that processes started here would see, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([v for v in visible.split(",") if v.strip() and v.strip() != "-1"])
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/driver/nvidia/gpus"))
    return 0


def slots(config: Config) -> dict[str, int]:
    """How many runs of each lane this worker takes at once. With a shared database that is one: a machine with several GPUs
    runs one worker for each."""
    gpus = count_gpus()
    here = {
        "quick": config.quick_slots,
        "long": config.long_slots,
        "gpu": gpus if config.gpu_slots < 0 else min(gpus, config.gpu_slots),
    }
    # What a worker takes at once is written in the queue's row, which all workers of a database share.
    return here if config.sqlite else {lane: min(1, count) for lane, count in here.items()}


def environment_of(config: Config, lane: str, number: int) -> dict[str, str]:
    """What tells a compute process its share of the machine."""
    cpu_slots = max(1, config.quick_slots + config.long_slots)
    threads = str(config.threads or max(1, (os.cpu_count() or 1) // cpu_slots))
    shared = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    if lane != "gpu":
        return {**shared, "CUDA_VISIBLE_DEVICES": ""}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(k) for k in range(count_gpus())]
    return {**shared, "CUDA_VISIBLE_DEVICES": devices[number].strip()}
