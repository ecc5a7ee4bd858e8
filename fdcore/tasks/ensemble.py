"""An ensemble beside one model's own disagreement, as a task: both forces of the judged model, and the one force that every member is run
with, structure by structure, each timed in turn.

structures    one row per structure that the judged model could do; says which rows of `atoms` are its own
atoms         F_nc, F_c and the confidence of the judged model
members       one row per structure and member; says which rows of `member_atoms` are its own
member_atoms  the force of the member

Notes hold the structures that the judged model could not do, members that failed on one (left out by name), and members that could not be
loaded (left out altogether). Spreads and correlations are pure functions of these (fdcore/ensemble.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fdcore.errors import FdcoreError, UsageError
from fdcore.spec import Spec, require_name
from fdcore.store.series import Checkpoint, Column, Tables
from fdcore.tasks.base import Job, Note, Parameters, Progress, Rows, Run, Savable

if TYPE_CHECKING:
    from fdcore.models.base import Predictor
    from fdcore.records import Structure

MOST_MEMBERS = 20


@dataclass(frozen=True)
class EnsembleParameters(Parameters):
    """members: ids of at least two models; mix_methods: also models that were trained to reproduce different methods."""

    members: Sequence[str] = ()
    mix_methods: bool = False

    def __post_init__(self) -> None:
        # Light: no model is imported by its card.
        from fdcore.models import card, mixed_methods

        named = self.members
        if isinstance(named, str) or not isinstance(named, Sequence) or not all(isinstance(m, str) for m in named):
            raise UsageError(f"members is {named!r}; a list of model ids is needed.", "`fdcore models` lists them.")
        if not isinstance(self.mix_methods, bool):
            raise UsageError(f"mix_methods is {self.mix_methods!r}; true or false is needed.")
        if not 2 <= len(named) <= MOST_MEMBERS:
            raise UsageError(
                f"An ensemble has from 2 to {MOST_MEMBERS} members, not {len(named)}.",
                "Name them with commas: --models ID,ID.",
            )
        for name in named:
            require_name(name)
        if len(set(named)) < len(named):
            raise UsageError("A model is named twice.", "Every member counts once.")
        problem = mixed_methods([card(m) for m in named])
        if problem and not self.mix_methods:
            raise UsageError(problem, "Leave one group out, or accept it (--mix-methods).")


class EnsembleTask:
    name = "ensemble"
    unit = "structure"

    def check(self, spec: Spec) -> None:
        EnsembleParameters.of(spec)

    def tables(self, spec: Spec, structures: Sequence[Structure]) -> Tables:
        return {
            "structures": {
                "position": Column("<i8"),
                "first_atom": Column("<i8"),
                "n_atoms": Column("<i8"),
                "energy_eV": Column(),
                "seconds": Column(),
            },
            "atoms": {
                "forces_direct_eV_per_A": Column("<f8", (3,)),
                "forces_conservative_eV_per_A": Column("<f8", (3,)),
                "confidence_eV_per_A": Column(),
            },
            "members": {
                "position": Column("<i8"),
                "member": Column("<i8"),
                "first_atom": Column("<i8"),
                "n_atoms": Column("<i8"),
                "energy_eV": Column(),
                "seconds": Column(),
            },
            "member_atoms": {"forces_driving_eV_per_A": Column("<f8", (3,))},
        }

    def run(self, job: Job) -> Run:
        model, structures = job.needs_model(), job.structures
        names = list(EnsembleParameters.of(job.spec).members)
        state = {"next": 0, "atoms": 0, "member_atoms": 0, "failed": 0, "told": []}
        if job.state is not None:
            state = dict(job.state.values)
        total = len(structures)
        yield Progress(state["next"], total, _text(state["next"], total))
        loaded: dict[str, Predictor] = {}
        for name in names:
            yield Progress(state["next"], total, f"loading {name}")
            found = _loaded(job, model, name)
            if not isinstance(found, FdcoreError):
                loaded[name] = found
            elif name not in state["told"]:
                state["told"] = [*state["told"], name]
                yield Note({"member": name, "error": found.message, "hint": found.hint})
        if len(loaded) < 2:
            raise UsageError(
                "Fewer than two members of the ensemble could be loaded.", "Point to their weights, or choose others."
            )
        if state["next"] < total:
            _first_time(model, loaded, structures[state["next"]])
        for position in range(state["next"], total):
            yield from _one(position, structures[position], model, loaded, names, state)
            state["next"] = position + 1
            yield Progress(position + 1, total, _text(position + 1, total))
            yield Savable(lambda kept=dict(state): Checkpoint(kept, {}))
        return {
            "compared": total - state["failed"],
            "failed": state["failed"],
            "members": len(loaded),
            "device": model.device,
            "weights_sha256": model.weights_sha256,
            "members_sha256": {name: p.weights_sha256 for name, p in loaded.items()},
        }


def _loaded(job: Job, model: Predictor, name: str) -> Predictor | FdcoreError:
    if name == model.card.id:
        return model
    try:
        return job.load(name)
    except FdcoreError as error:
        return error


def _first_time(model: Any, loaded: dict[str, Predictor], structure: Structure) -> None:
    """Once without a clock: the first evaluation in a process also compiles."""
    list(model.evaluate_each([structure]))
    for member in loaded.values():
        list(member.predict_each([structure]))


def _one(
    position: int,
    structure: Structure,
    model: Any,
    loaded: dict[str, Predictor],
    names: Sequence[str],
    state: dict[str, Any],
) -> Iterator[Rows | Note]:
    [seen], seconds = _timed(lambda: list(model.evaluate_each([structure])))
    if isinstance(seen, FdcoreError):
        state["failed"] += 1
        yield Note({"position": position, "error": seen.message, "hint": seen.hint})
        return
    n = structure.n_atoms
    for name, member in loaded.items():
        [found], taken = _timed(lambda member=member: list(member.predict_each([structure])))
        if isinstance(found, FdcoreError):
            yield Note({"position": position, "member": name, "error": found.message, "hint": found.hint})
            continue
        # Atoms first: a row that can be read promises that its atoms can be, too.
        yield Rows("member_atoms", {"forces_driving_eV_per_A": found.forces_driving})
        yield Rows(
            "members",
            {
                "position": [position],
                "member": [names.index(name)],
                "first_atom": [state["member_atoms"]],
                "n_atoms": [n],
                "energy_eV": [found.energy],
                "seconds": [taken],
            },
        )
        state["member_atoms"] += n
    confidence = np.full(n, np.nan) if seen.confidence is None else seen.confidence
    yield Rows(
        "atoms",
        {
            "forces_direct_eV_per_A": seen.forces_direct,
            "forces_conservative_eV_per_A": seen.forces_conservative,
            "confidence_eV_per_A": confidence,
        },
    )
    yield Rows(
        "structures",
        {
            "position": [position],
            "first_atom": [state["atoms"]],
            "n_atoms": [n],
            "energy_eV": [seen.energy],
            "seconds": [seconds],
        },
    )
    state["atoms"] += n


def _timed[T](work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def _text(done: int, total: int) -> str:
    return f"compared {done:,} of {total:,} structure{'' if total == 1 else 's'}"
