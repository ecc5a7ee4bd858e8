"""What tasks share that ask a reference about one structure after the other: a reference takes far longer than a model, so that what it has said
is kept at once, and a run goes on with the next structure."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fdcore.errors import FdcoreError
from fdcore.store.series import Checkpoint
from fdcore.tasks.base import Job, Note, Progress, Record, Savable

if TYPE_CHECKING:
    from fdcore.records import Structure

# From a position, the number of the first row of atoms, and an answer, to what is recorded, or why there is nothing to record.
Recorded = Callable[[int, int, Any], Sequence[Record] | FdcoreError]


def one_by_one(
    job: Job, answers: Callable[[Sequence[Structure]], Iterable[Any]], recorded: Recorded, done: str
) -> Generator[Record, None, int]:
    """Ask `answers` about the structures that are left, record each, and return how many could not be done. `done`: in words, of one."""
    structures = job.structures
    state = {"next": 0, "atoms": 0, "failed": 0} if job.state is None else dict(job.state.values)
    total = len(structures)
    yield Progress(state["next"], total, _text(done, state["next"], total))
    for position, answer in enumerate(answers(structures[state["next"] :]), start=state["next"]):
        found = recorded(position, state["atoms"], answer)
        if isinstance(found, FdcoreError):
            state["failed"] += 1
            yield Note({"position": position, "error": found.message, "hint": found.hint})
        else:
            yield from found
            state["atoms"] += structures[position].n_atoms
        state["next"] = position + 1
        yield Progress(position + 1, total, _text(done, position + 1, total))
        yield Savable(lambda kept=dict(state): Checkpoint(kept, {}))
    return state["failed"]


def _text(done: str, count: int, total: int) -> str:
    return f"{done} {count:,} of {total:,} structure{'' if total == 1 else 's'}"
