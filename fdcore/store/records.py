"""The frozen records of the store. Times are seconds since 1970."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fdcore.spec import Spec

RunState = Literal["queued", "running", "done", "failed", "cancelled"]
ACTIVE: tuple[RunState, ...] = ("queued", "running")
ENDED: tuple[RunState, ...] = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Viewer:
    """Who asks. Every question to the store is asked by somebody; `owner` None is the operator, who sees everything."""

    owner: str | None

    @classmethod
    def operator(cls) -> Viewer:
        return cls(None)


@dataclass(frozen=True)
class Run:
    """One run as the history knows it.

    done, total : progress in the task's own unit (structures, steps); total 0 is not known yet. `text` says it in words.
    seconds_left : as the compute process estimates it; None is not known.
    attempt : how many times it was begun; more than one means that a worker or a compute process died under it.
    summary : what the task says of its result, small enough for a list; None until it has ended.
    """

    id: str
    owner: str
    task: str
    title: str
    lane: str
    state: RunState
    spec: Spec
    spec_sha256: str
    turn: int
    created_at: float
    started_at: float | None
    ended_at: float | None
    done: float
    total: float
    text: str
    seconds_left: float | None
    attempt: int
    worker: str | None
    cancel_requested: bool
    error: str | None
    hint: str | None
    summary: Mapping[str, Any] | None
    bytes: int
    share: str | None
    parent: str | None

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    @property
    def seconds(self) -> float | None:
        """Wall time from the first start to the end; None where it has not both."""
        return None if self.started_at is None or self.ended_at is None else self.ended_at - self.started_at


@dataclass(frozen=True)
class Attempt:
    """One beginning of a run. `outcome`: running, done, failed, cancelled, crashed (the compute process died), lost (the worker
    died). `begun`: whether the task had started to work; what comes before is loading."""

    number: int
    worker: str
    started_at: float
    ended_at: float | None
    outcome: str
    note: str
    begun: bool
    done_at_start: float
    done_at_end: float


@dataclass(frozen=True)
class Worker:
    """One machine's worker. `silent_seconds`: since it was last heard of, by the database's clock."""

    name: str
    host: str
    pid: int
    version: str
    lanes: Mapping[str, int]
    alive: bool
    started_at: float
    silent_seconds: float


@dataclass(frozen=True)
class Waiting:
    """Who waits for what: runs before this one in its lane, those that hold the lane now, and whether anybody serves it."""

    ahead: int
    holding: int
    slots: int


class Outline(NamedTuple):
    """How much there is of a viewer's history, and its newest run ("": none)."""

    running: int
    waiting: int
    ended: int
    newest: str

    @property
    def active(self) -> int:
        return self.running + self.waiting

    def differs(self, other: Outline) -> bool:
        """Whether a run has come, ended or gone; that a waiting one has begun is none of these."""
        return (self.active, self.ended, self.newest) != (other.active, other.ended, other.newest)


class Place(NamedTuple):
    """Where a waiting run stands in its lane. What was interrupted (`attempt` is not 0) comes first, then whose `turn` it is,
    then who was there first."""

    run: str
    lane: str
    attempt: int
    turn: int
    created_at: float


def run_of(row: Any) -> Run:
    """A row of fd_runs as a record."""
    values = dict(row._mapping)
    values.pop("work_sha256")
    values["spec"] = Spec.from_json(values["spec"])
    values["cancel_requested"] = bool(values["cancel_requested"])
    values["summary"] = None if values["summary"] is None else json.loads(values["summary"])
    return Run(**values)
