"""What the job engine costs and how fast it answers: a real worker with the settings a person gets, on this machine.

    python benchmarks/jobs.py [--json PATH] [--rounds N] [--skip-hung]

Quantities:
  start       from `submit` to the first record of the task, warm; `taken` is when the worker had it
  cancel      from the wish to the end of the run: a task that behaves, one that sleeps for ever (`hang`), one inside a C call
              that never lets another thread run (`hold`); the last two are ended after their grace
  recovery    from SIGKILL to the first record of the next attempt: of the compute process, and of the whole worker (which
              is started again at once, as the app does)
  idle        resident memory and share of one core of everything the engine runs, once the models are unloaded
  throughput  runs per second of one worker with one quick slot, each run with its own durable record

The peers do the same work (`fdcore.tasks.run.execute` of one step, into a folder) in the same run, interleaved with it: a process
per job, which is what one does without an engine, and a warm `ProcessPoolExecutor`, which is the fastest one can do and forgets
everything when it dies. Every time is wall time on one machine's clock.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from fdcore.config import Config
from fdcore.jobs.engine import Engine
from fdcore.spec import Spec
from fdcore.store import database
from fdcore.store.database import sqlite_module
from fdcore.store.records import Run, Viewer
from fdcore.tasks.run import execute

ME = Viewer("benchmark")
ROOT = Path(__file__).resolve().parents[1]
# How often a watcher looks here: the resolution of the times. Slower than this would be seen in the figures, much faster would
# take the processor that the engine needs.
LOOK_SECONDS = 0.005
# To reach, from the project's plan: (quantity, figure) -> the largest allowed.
TARGETS = {
    ("start", "worst"): 0.5,
    ("cancel behaved", "worst"): 1.0,
    ("cancel hang", "worst"): 10.0,
    ("cancel hold", "worst"): 10.0,
    ("idle", "resident_MB"): 150.0,
    ("idle", "core_percent"): 5.0,
}


def drill(seed: int = 0, **parameters: Any) -> Spec:
    return Spec("drill", None, "", 0, parameters, seed=seed)


ONE_STEP = drill(steps=1, step_seconds=0.0)


# ---- the engine ----------------------------------------------------------------------------------------------------


class Worker:
    """A supervisor process, its compute processes, and the engine that submits to it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.engine = Engine(config)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, **self.config.environment(), "PYTHONPATH": str(ROOT)}
        with (self.config.data / "supervisor.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fdcore.jobs.supervisor"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def computes(self) -> list[int]:
        """Compute processes that are alive."""
        found = []
        for file in (self.config.data / "workers").glob(f"{self.config.name}.*.pid"):
            with contextlib.suppress(OSError, ValueError):
                pid = int(file.read_text())
                if b"fdcore.jobs.child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def kill_computes(self) -> None:
        for pid in self.computes():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def submit(self, spec: Spec) -> str:
        return self.engine.submit("benchmark", spec, title=spec.task, lane="quick")

    def run(self, run_id: str) -> Run:
        return self.engine.store.run(ME, run_id)

    def begun(self, run_id: str, attempt: int = 1) -> bool:
        """Whether that attempt has yielded its first record."""
        return any(a.begun and a.number >= attempt for a in self.engine.store.attempts(run_id))

    def finish(self, run_id: str, state: str) -> Run:
        run = self.engine.wait(ME, run_id, 120, LOOK_SECONDS)
        if run.state != state:
            raise RuntimeError(f"the run ended {run.state}, not {state}: {run.error}")
        return run

    def stop(self, run_id: str) -> Run:
        self.engine.cancel(ME, run_id)
        return self.finish(run_id, "cancelled")


@contextlib.contextmanager
def worker(**settings: Any) -> Iterator[Worker]:
    """A worker that has served one run, with the settings that a person gets except those named; all of it goes at the end."""
    with tempfile.TemporaryDirectory(prefix="fd-jobs-") as folder:
        # Quotas are not measured: the throughput has more waiting than one owner is usually allowed.
        made = Worker(replace(Config(data=Path(folder), worker="none", max_active_runs=0), **settings))
        made.start()
        try:
            made.finish(made.submit(ONE_STEP), "done")
            yield made
        finally:
            with contextlib.suppress(ProcessLookupError):
                made.kill()
            made.kill_computes()
            database.dispose(made.config)


def until(true: Callable[[], object], seconds: float = 60.0) -> float:
    """Wait until something holds; returns when (seconds since 1970)."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(LOOK_SECONDS)
    return time.time()


@contextlib.contextmanager
def _bytecode() -> Iterator[None]:
    """Processes start as from an installation, which has its bytecode, also where Python may not keep it beside the sources."""
    with tempfile.TemporaryDirectory(prefix="fd-bytecode-") as folder:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ.setdefault("PYTHONPYCACHEPREFIX", folder)
        yield


# ---- the peers -----------------------------------------------------------------------------------------------------


def one_step(folder: Path) -> float:
    """Do what one run does, in this process; returns when its first record came."""
    first: list[float] = []
    execute(ONE_STEP, (), lambda spec: None, folder, report=lambda report: first.append(time.time()))
    return first[0]


def process_per_job(folder: Path) -> float:
    """The same in a process of its own."""
    command = [sys.executable, "-P", __file__, "--one-step", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


@contextlib.contextmanager
def pool() -> Iterator[Callable[[Path], float]]:
    """The same in a warm process of a pool."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as made, _folders() as fresh:
        run = lambda folder: made.submit(one_step, folder).result()  # noqa: E731
        run(fresh())
        yield run


@contextlib.contextmanager
def _folders() -> Iterator[Callable[[], Path]]:
    """A function that names a new folder each time."""
    with tempfile.TemporaryDirectory(prefix="fd-jobs-") as top:
        count = iter(range(10**9))
        yield lambda: Path(top) / str(next(count))


# ---- quantities ----------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "worst": max(values), "n": len(values)}


def measure_start(served: Worker, rounds: int) -> dict[str, dict[str, float]]:
    """Warm: the compute process is there and imported. The pauses are random, because the worker polls."""
    chance = random.Random(0)
    seconds: dict[str, list[float]] = {k: [] for k in ("start", "taken", "process per job", "warm pool")}
    with pool() as in_pool, _folders() as fresh:
        for _ in range(rounds):
            time.sleep(chance.uniform(0.2, 0.8))
            asked = time.time()
            run_id = served.submit(drill(steps=3, step_seconds=0.2))
            seconds["start"].append(until(lambda r=run_id: served.begun(r)) - asked)
            seconds["taken"].append(served.engine.store.attempts(run_id)[0].started_at - asked)
            served.finish(run_id, "done")
            for name, peer in (("process per job", process_per_job), ("warm pool", in_pool)):
                asked = time.time()
                seconds[name].append(peer(fresh()) - asked)
    return {name: spread(values) for name, values in seconds.items()}


def measure_cancel(served: Worker, rounds: int, hung: int) -> dict[str, dict[str, float]]:
    chance = random.Random(1)
    out: dict[str, dict[str, float]] = {}
    for trouble, count in (("", rounds), ("hang", hung), ("hold", hung)):
        seconds = []
        for _ in range(count):
            run_id = served.submit(drill(steps=10_000, step_seconds=0.02, trouble=trouble, trouble_at=10))
            until(lambda r=run_id: served.begun(r))
            time.sleep((1.0 if trouble else 0.0) + chance.uniform(0.2, 0.8))
            asked = time.monotonic()
            served.stop(run_id)
            seconds.append(time.monotonic() - asked)
        if seconds:
            out[f"cancel {trouble or 'behaved'}"] = spread(seconds)
    return out


def measure_recovery(served: Worker, rounds: int) -> dict[str, dict[str, float]]:
    """How long nobody works on a run after its process, or the whole worker, was killed."""
    seconds: dict[str, list[float]] = {"compute process": [], "worker": []}
    for _ in range(rounds):
        for kind, values in seconds.items():
            run_id = served.submit(drill(steps=10_000, step_seconds=0.02))
            until(lambda r=run_id: served.run(r).done > 20)
            killed = time.time()
            if kind == "worker":
                served.kill()
                served.start()
            else:
                served.kill_computes()
            values.append(until(lambda r=run_id: served.begun(r, 2)) - killed)
            served.stop(run_id)
    return {f"recovery of the {kind}": spread(values) for kind, values in seconds.items()}


def measure_idle(seconds: float) -> dict[str, float]:
    """Everything the engine runs, after the compute process has given its memory back."""
    with worker(idle_seconds=1.0) as served:
        until(lambda: not served.computes())
        time.sleep(3)
        began, before = time.monotonic(), _cpu_seconds(served.pid)
        time.sleep(seconds)
        share = (_cpu_seconds(served.pid) - before) / (time.monotonic() - began)
        return {"resident_MB": _resident_MB(served.pid), "core_percent": 100 * share, "seconds": seconds}


def measure_throughput(served: Worker, count: int) -> dict[str, float]:
    """Runs per second; the peers on a part of the count, because a process per job takes long."""
    began = time.monotonic()
    ids = [served.submit(drill(k, steps=1, step_seconds=0.0)) for k in range(count)]
    submitted = time.monotonic()
    for run_id in ids:
        served.finish(run_id, "done")
    ended = time.monotonic()
    out = {"submitted": count / (submitted - began), "engine": count / (ended - began), "runs": float(count)}
    with pool() as in_pool, _folders() as fresh:
        for name, peer, times in (("process per job", process_per_job, 5), ("warm pool", in_pool, count)):
            began = time.monotonic()
            for _ in range(times):
                peer(fresh())
            out[name] = times / (time.monotonic() - began)
    return out


def _resident_MB(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1e3


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- the command ---------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--idle-seconds", type=float, default=30.0)
    parser.add_argument("--runs", type=int, default=60, help="for the throughput")
    parser.add_argument("--skip-hung", action="store_true", help="no cancels that wait for the grace to pass")
    parser.add_argument("--one-step", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_step:
        print(one_step(arguments.one_step))
        return 0
    if not Path("/proc/self/stat").exists():
        print("jobs.py reads processes from /proc, which this system has not.", file=sys.stderr)
        return 2
    with _bytecode():
        with worker() as served:
            start = measure_start(served, arguments.rounds)
            cancel = measure_cancel(served, arguments.rounds // 2, 0 if arguments.skip_hung else 2)
            recovery = measure_recovery(served, max(2, arguments.rounds // 4))
            throughput = measure_throughput(served, arguments.runs)
        idle = measure_idle(arguments.idle_seconds)
    document = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "sqlite": sqlite_module().sqlite_version,
            "dbos": version("dbos"),
        },
        "seconds": {**start, **cancel, **recovery},
        "idle": idle,
        "per_second": throughput,
    }
    _print(document)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _print(document: dict[str, Any]) -> None:
    print(f"\n{'seconds':<30} {'median':>8} {'worst':>8}   of")
    for name, values in document["seconds"].items():
        line = f"  {name:<28} {values['median']:8.3f} {values['worst']:8.3f} {values['n']:4d}"
        print(line + _judged(name, "worst", values["worst"], "s"))
    idle = document["idle"]
    print("\nidle, models unloaded")
    print(f"  {'memory':<28} {idle['resident_MB']:8.0f} MB" + _judged("idle", "resident_MB", idle["resident_MB"], "MB"))
    print(f"  {'core':<28} {idle['core_percent']:8.1f} %" + _judged("idle", "core_percent", idle["core_percent"], "%"))
    rates = document["per_second"]
    print(f"\nruns per second, {rates['runs']:.0f} of one step")
    for name in ("engine", "process per job", "warm pool"):
        print(f"  {name:<28} {rates[name]:8.1f}")
    print(f"  {'submitted':<28} {rates['submitted']:8.1f}")


def _judged(quantity: str, figure: str, value: float, unit: str) -> str:
    target = TARGETS.get((quantity, figure))
    if target is None:
        return ""
    return f"   target < {target:g} {unit}: {'reached' if value < target else 'MISSED'}"


if __name__ == "__main__":
    sys.exit(main())
