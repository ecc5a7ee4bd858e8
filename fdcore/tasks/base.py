"""The contract of a task: a spec in, a generator of records, a result out. The same in the engine and in a command line.

A task is one file with a class like `Task` and one row in `fdcore.tasks.TASKS`; the tests in `tests/contracts` run over all
of them. Its `run` is a generator that yields, in any order,

    Progress    how far it is, in its own unit
    Rows        numbers to keep: rows of one of the tables that `tables` declares
    Note        words to keep
    Product     a folder of files to keep, which the task itself writes
    Savable     "here I can be interrupted": a function that returns the state from which `run` would go on

beginning with a Progress that says where it starts, and returns a small dict, the summary of the result. It knows nothing of databases, processes or pages. Started again
with a saved state it continues so that rows and notes are those of an uninterrupted run; whoever drives it drops everything
that was recorded after that state. Between two yields it should not take much longer than a second: that is where a stop is
noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fdcore.errors import UsageError
from fdcore.spec import Spec
from fdcore.store.series import Checkpoint, Tables

if TYPE_CHECKING:
    from fdcore.models.base import Model, Predictor
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


@dataclass(frozen=True)
class Product:
    """Files that are the result, such as a model: `write` fills a new folder, which is then kept under `name` (`Job.kept`), also for
    whoever takes the run up again."""

    name: str
    write: Callable[[Path], None]


Record = Progress | Rows | Note | Savable | Product
Run = Generator[Record, None, dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """What a task is given: the spec, its inputs, the loaded model (None where it needs none), the state to go on from (None at the
    first beginning), how further models are loaded by their ids (None: as the spec says of the first), and where the products of this
    run are kept."""

    spec: Spec
    structures: Sequence[Structure] = ()
    model: Model | None = None
    state: Checkpoint | None = None
    load_further: Callable[[str], Predictor] | None = None
    products: Path | None = None

    def kept(self, product: str) -> Path:
        """The folder of a product that this run, or the attempt that it goes on from, has yielded."""
        if self.products is None:
            raise UsageError(f"The task {self.spec.task} needs a folder for its products.", "Run it with a recorder.")
        return self.products / product

    def needs_model(self) -> Model:
        if self.model is None:
            raise UsageError(f"The task {self.spec.task} needs a model.", "Name one in the spec.")
        return self.model

    def load(self, model_id: str) -> Predictor:
        """Another model beside the first, as a member of an ensemble. Raises as `fdcore.models.load_predictor`."""
        if self.load_further is not None:
            return self.load_further(model_id)
        # Heavy, and only some tasks ask for it.
        from fdcore.models import load_predictor

        first = self.needs_model()
        return load_predictor(model_id, first.device, first.dtype)


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
