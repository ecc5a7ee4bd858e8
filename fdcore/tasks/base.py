"""The contract of a task: a spec in, a generator of records, a result out. The same in the engine and in a command line.

A task is one file with a class like `Task` and one row in `fdcore.tasks.TASKS`; the tests in `tests/contracts` run over all
of them. Its `run` is a generator that yields, in any order,

    Progress    how far it is, in its own unit
    Rows        numbers to keep: rows of one of the tables that `tables` declares
    Note        words to keep
    Savable     "here I can be interrupted": a function that returns the state from which `run` would go on

beginning with a Progress that says where it starts, and returns a small dict, the summary of the result. It knows nothing of files, databases, processes or pages. Started again
with a saved state it continues so that rows and notes are those of an uninterrupted run; whoever drives it drops everything
that was recorded after that state. Between two yields it should not take much longer than a second: that is where a stop is
noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fdcore.errors import UsageError
from fdcore.spec import Spec
from fdcore.store.series import Checkpoint, Tables

if TYPE_CHECKING:
    from fdcore.models.base import Model
    from fdcore.records import Structure


@dataclass(frozen=True)
class Progress:
    """done of total in the task's unit; `text` says it in words."""

    done: float
    total: float
    text: str = ""


@dataclass(frozen=True)
class Rows:
    """Rows for one table: columns of equal length."""

    table: str
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class Note:
    """One object of plain JSON values."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class Savable:
    """The state can be taken now; `take` is only called when it is time to, so offering it costs nothing."""

    take: Callable[[], Checkpoint]


Record = Progress | Rows | Note | Savable
Run = Generator[Record, None, dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """What a task is given: the spec, its inputs, the loaded model (None where it needs none), and the state to go on
    from (None at the first beginning)."""

    spec: Spec
    structures: Sequence[Structure] = ()
    model: Model | None = None
    state: Checkpoint | None = None

    def needs_model(self) -> Model:
        if self.model is None:
            raise UsageError(f"The task {self.spec.task} needs a model.", "Name one in the spec.")
        return self.model


class Task(Protocol):
    """One kind of work."""

    # Both are what the spec, the history and the command line call it; `unit` is what progress counts.
    name: str
    unit: str

    def check(self, spec: Spec) -> None:
        """Raise UsageError for parameters that this task cannot work with. Called before a run is submitted."""
        ...

    def tables(self, spec: Spec, structures: Sequence[Structure]) -> Tables:
        """What will be recorded."""
        ...

    def run(self, job: Job) -> Run: ...


@dataclass(frozen=True)
class Parameters:
    """Base of the frozen parameter record of a task: made from plain JSON, unknown names refused."""

    @classmethod
    def of(cls, spec: Spec) -> Any:
        known = set(cls.__dataclass_fields__)
        unknown = sorted(set(spec.parameters) - known)
        if unknown:
            raise UsageError(
                f"The task {spec.task} has no parameter {unknown[0]!r}.",
                f"Known are {', '.join(sorted(known)) or 'none'}.",
            )
        try:
            return cls(**spec.parameters)
        except TypeError as error:
            raise UsageError(
                f"The parameters of the task {spec.task} are not of the kind it needs ({error}).",
                "Numbers are numbers, not text.",
            ) from error
