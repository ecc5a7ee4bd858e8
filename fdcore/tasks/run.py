"""Drives a task: its records go to a recorder, its progress to whoever watches, its end becomes an outcome.

Command lines call `execute` in their own process, the engine calls it in a compute process; the task cannot tell.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fdcore.config import MB
from fdcore.errors import FdcoreError, QuotaError, StoreError
from fdcore.spec import Spec
from fdcore.store.series import Recorder
from fdcore.tasks import task
from fdcore.tasks.base import Job, Note, Product, Progress, Rows, Savable

if TYPE_CHECKING:
    from fdcore.models.base import Model, Predictor
    from fdcore.records import Structure

# How often others can see what is new.
FLUSH_SECONDS = 0.5
OUT_OF_MEMORY_HINT = "Nothing was computed from that point on. Use a smaller structure, a smaller model or float32, or a machine with more memory."

OUT_OF_SPACE_HINT = (
    "What was recorded until then is kept. Delete runs that are no longer needed; then submit it again and it goes on."
)


@dataclass(frozen=True)
class Limits:
    """How often a state is saved, and how large the record may grow (bytes, infinite for no limit)."""

    checkpoint_seconds: float = 5.0
    max_bytes: float = math.inf


@dataclass(frozen=True)
class Report:
    """What a watcher hears: progress with the estimated seconds left (None: not known yet) and the bytes recorded."""

    done: float
    total: float
    text: str
    seconds_left: float | None
    size: int
    # True once per attempt: `done` is where it goes on.
    first: bool = False


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. What was recorded stays in every case."""

    state: Literal["done", "failed", "cancelled"]
    summary: Mapping[str, Any] | None = None
    error: str | None = None
    hint: str | None = None
    note: str = ""
    size: int = 0


def execute(
    spec: Spec,
    structures: Sequence[Structure],
    load_model: Callable[[Spec], Model | None],
    folder: Path,
    *,
    previous: Sequence[Path] = (),
    report: Callable[[Report], None] = lambda report: None,
    should_stop: Callable[[], bool] = lambda: False,
    limits: Limits = Limits(),
    load_further: Callable[[str], Predictor] | None = None,
) -> Outcome:
    """Run one attempt in `folder`, going on from the newest of the `previous` folders that has a saved state.

    Never raises for what the task, its model or its record do wrong: that is the outcome. A shortage of memory is one, with
    advice; nothing computed before it is presented as its result.
    """
    recorder: Recorder | None = None
    note = ""
    try:
        kind = task(spec.task)
        kind.check(spec)
        model = load_model(spec)
        recorder, note = _recorder(folder, kind.tables(spec, structures), previous)
        job = Job(spec, structures, model, recorder.state, load_further, recorder.folder)
        outcome = _drive(kind.run(job), recorder, report, should_stop, limits)
    except FdcoreError as error:
        outcome = Outcome("failed", error=error.message, hint=error.hint)
    except Exception as error:  # the boundary: whatever a backend throws ends this run, not the process
        if out_of_memory(error):
            outcome = Outcome("failed", error="The run needed more memory than there is.", hint=OUT_OF_MEMORY_HINT)
        elif out_of_space(error):
            outcome = Outcome("failed", error="The disk that holds the runs is full.", hint=OUT_OF_SPACE_HINT)
        else:
            raise
    finally:
        # Also before what was not foreseen goes up: what was recorded until then stays, as far as it can be written.
        if recorder is not None:
            with contextlib.suppress(OSError, RuntimeError):
                recorder.close()
    return replace(outcome, note=note, size=0 if recorder is None else recorder.size())


def _recorder(folder: Path, tables: Any, previous: Sequence[Path]) -> tuple[Recorder, str]:
    note = ""
    for earlier in sorted(previous, key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            recorder = Recorder(folder, tables, earlier)
        except StoreError as error:
            note = f"Begun again from the start: {error.message}"
            continue
        if recorder.state is not None:
            return recorder, ""
        recorder.close()
    return Recorder(folder, tables), note


def _drive(
    run: Any, recorder: Recorder, report: Callable[[Report], None], should_stop: Callable[[], bool], limits: Limits
) -> Outcome:
    now = flushed = saved = time.monotonic()
    watch = _Remaining()
    latest: Progress | None = None
    try:
        while True:
            try:
                record = next(run)
            except StopIteration as end:
                summary = dict(end.value or {})
                recorder.finish(summary)
                return Outcome("done", summary=summary)
            now = time.monotonic()
            match record:
                case Rows():
                    recorder.append(record.table, record.columns)
                case Note():
                    recorder.note(record.values)
                case Product():
                    recorder.keep(record.name, record.write)
                case Progress():
                    latest = record
                    # Only the first of an attempt and then a few each second: watchers are people.
                    if watch.first or now - watch.told >= FLUSH_SECONDS or record.done >= record.total:
                        recorder.flush()
                        flushed = now
                        report(watch.report(record, now, recorder.size()))
                case Savable():
                    stopping = should_stop()
                    if stopping or now - saved >= limits.checkpoint_seconds:
                        recorder.save(record.take())
                        saved = flushed = now
                        if recorder.size() > limits.max_bytes:
                            raise QuotaError(
                                f"The run recorded more than the {limits.max_bytes / MB:,.0f} MB that this server allows for one.",
                                "What it recorded is kept. Record less often, or split the work.",
                            )
                    if stopping:
                        break
            if now - flushed >= FLUSH_SECONDS:
                recorder.flush()
                flushed = now
            if should_stop() and not isinstance(record, Savable):
                # A task that never offers a state is stopped where it stands.
                watch.patience -= 1
                if watch.patience < 0:
                    break
    finally:
        run.close()
    if latest is not None:
        report(watch.report(latest, now, recorder.size()))
    return Outcome("cancelled")


class _Remaining:
    """Seconds left from the speed since this attempt began."""

    # Records that may pass between a wish to stop and the next chance to save.
    patience = 20

    def __init__(self) -> None:
        self.first, self.told = True, -math.inf
        self._start: tuple[float, float] | None = None

    def report(self, progress: Progress, now: float, size: int) -> Report:
        first, self.first, self.told = self.first, False, now
        if self._start is None:
            self._start = (now, progress.done)
        began, done_then = self._start
        done_since = progress.done - done_then
        left = (now - began) / done_since * (progress.total - progress.done) if done_since > 0 else None
        return Report(progress.done, progress.total, progress.text, left, size, first)


def out_of_space(error: BaseException) -> bool:
    """Whether a disk or a quota is full; HDF5 and safetensors say it only in their text."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


def out_of_memory(error: BaseException) -> bool:
    """Whether this is what Python, NumPy or torch raise when memory is short."""
    if isinstance(error, MemoryError):
        return True
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
