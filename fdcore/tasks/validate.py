"""Holding models against a reference as a task: both forces of every structure, what the reference says of it, and, where that is asked for,
the one force that every member of an ensemble is run with.

structures  one row per structure that its model and the reference could evaluate, with both energies; says which rows of `atoms` are its own
atoms       F_nc, F_c, the force of the reference, and one column for the members' forces

Notes hold the structures that one of them could not evaluate, and members that failed on one. Errors, correlations and everything that is
made of them are pure functions of these (fdcore/validation.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fdcore.errors import FdcoreError, UsageError
from fdcore.spec import Spec, require_name
from fdcore.store.series import Column, Tables
from fdcore.tasks.base import Job, Note, Parameters, Progress, Record, Rows, Run
from fdcore.tasks.ensemble import EnsembleParameters
from fdcore.tasks.one_by_one import one_by_one

if TYPE_CHECKING:
    from fdcore.models.base import Model, Predictor
    from fdcore.records import Structure

# The reference results that came with the files.
LABELS = "labels"


@dataclass(frozen=True)
class ValidateParameters(Parameters):
    """reference: "labels" (the energies and forces in the files), or a name of `fdcore.reference`.
    climbs: of each structure, which climb or trajectory it comes from: those of one are alike, and an interval must know
    (None: each stands for itself).
    further, model_of: more models, and of each structure which one judges it, 0 being the first one (None: it judges all).
    ensemble: members whose disagreement is held beside that of the two forces; mix_methods: also of different methods."""

    reference: str = LABELS
    climbs: Sequence[int] | None = None
    further: Sequence[str] = ()
    model_of: Sequence[int] | None = None
    ensemble: Sequence[str] = ()
    mix_methods: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.reference, str):
            raise UsageError(f"reference is {self.reference!r}; a name is needed.")
        if self.reference != LABELS:
            # Heavy only where a calculator is asked for.
            from fdcore.reference import reference

            reference(self.reference)
        for name in ("climbs", "model_of"):
            object.__setattr__(self, name, _whole_numbers(name, getattr(self, name)))
        for name in ("further", "ensemble"):
            given = getattr(self, name)
            if isinstance(given, str) or not isinstance(given, list | tuple):
                raise UsageError(f"{name} is {given!r}; a list of model ids is needed.", "`fdcore models` lists them.")
            for model_id in given:
                require_name(model_id)
            object.__setattr__(self, name, tuple(given))
        if self.model_of is not None and not set(self.model_of) <= set(range(1 + len(self.further))):
            raise UsageError("model_of names a model that there is not.", f"Name 0 to {len(self.further)}.")
        if self.ensemble:
            EnsembleParameters(self.ensemble, self.mix_methods)

    def models(self, spec: Spec) -> tuple[str, ...]:
        """Of each structure, the id of the model that judges it."""
        names = ("" if spec.model is None else spec.model.id, *self.further)
        return tuple(names[k] for k in self.model_of or [0] * spec.n_structures)


def _whole_numbers(name: str, given: Any) -> tuple[int, ...] | None:
    if given is None:
        return None
    if not isinstance(given, list | tuple) or not all(type(c) is int for c in given):
        raise UsageError(f"{name} are {given!r}; one whole number per structure is needed.")
    return tuple(given)


class ValidateTask:
    name = "validate"
    unit = "structure"

    def check(self, spec: Spec) -> None:
        parameters: ValidateParameters = ValidateParameters.of(spec)
        for name in ("climbs", "model_of"):
            given = getattr(parameters, name)
            if given is not None and len(given) != spec.n_structures:
                raise UsageError(
                    f"{len(given)} {name} are named for {spec.n_structures} structures.", "Name one for each."
                )

    def tables(self, spec: Spec, structures: Sequence[Structure]) -> Tables:
        members = len(ValidateParameters.of(spec).ensemble)
        return {
            "structures": {
                "position": Column("<i8"),
                "first_atom": Column("<i8"),
                "n_atoms": Column("<i8"),
                "energy_eV": Column(),
                # NaN where labels have forces but no energy.
                "energy_reference_eV": Column(),
            },
            "atoms": {
                "forces_direct_eV_per_A": Column("<f8", (3,)),
                "forces_conservative_eV_per_A": Column("<f8", (3,)),
                "forces_reference_eV_per_A": Column("<f8", (3,)),
                # In the order of the members; NaN for one that failed.
                **({"forces_driving_eV_per_A": Column("<f8", (members, 3))} if members else {}),
            },
        }

    def run(self, job: Job) -> Run:
        parameters: ValidateParameters = ValidateParameters.of(job.spec)
        models = _Models(job)
        judges = parameters.models(job.spec)
        name = parameters.reference
        if parameters.ensemble:
            yield Progress(0 if job.state is None else job.state.values["next"], len(job.structures), "loading members")
            models.need_two(parameters.ensemble)

        def recorded(position: int, first_atom: int, answer: Any) -> Sequence[Record] | FdcoreError:
            structure = job.structures[position]
            seen = models.evaluated(judges[position], structure)
            problem = next((x for x in (answer, seen) if isinstance(x, FdcoreError)), None)
            if problem is not None:
                return problem
            said = [models.predicted(member, structure) for member in parameters.ensemble]
            return list(_rows(position, first_atom, seen, answer, parameters.ensemble, said))

        answers = _labels if name == LABELS else lambda left: _calculated(name, left)
        failed = yield from one_by_one(job, answers, recorded, "compared")
        model = job.needs_model()
        return {
            "compared": len(job.structures) - failed,
            "failed": failed,
            "device": model.device,
            "weights_sha256": model.weights_sha256,
            "models": len(set(judges)),
        }


@dataclass
class _Models:
    """The models of a run, each loaded when it is first asked; one that cannot be loaded is an answer."""

    job: Job
    loaded: dict[str, Predictor | FdcoreError] = field(default_factory=dict)

    def get(self, model_id: str) -> Any:
        first = self.job.needs_model()
        if model_id == first.card.id:
            return first
        if model_id not in self.loaded:
            try:
                self.loaded[model_id] = self.job.load(model_id)
            except FdcoreError as error:
                self.loaded[model_id] = error
        return self.loaded[model_id]

    def need_two(self, members: Sequence[str]) -> None:
        found = [m for m in members if not isinstance(self.get(m), FdcoreError)]
        if len(found) < 2:
            raise UsageError(
                "Fewer than two members of the ensemble could be loaded.", "Point to their weights, or choose others."
            )

    def evaluated(self, model_id: str, structure: Structure) -> Any:
        model: Model | FdcoreError = self.get(model_id)
        return model if isinstance(model, FdcoreError) else next(iter(model.evaluate_each([structure])))

    def predicted(self, model_id: str, structure: Structure) -> Any:
        model: Predictor | FdcoreError = self.get(model_id)
        return model if isinstance(model, FdcoreError) else next(iter(model.predict_each([structure])))


def _labels(structures: Sequence[Structure]) -> Iterator[Any]:
    from fdcore.reference import Truth

    for structure in structures:
        forces = structure.labels.get("forces_eV_per_A")
        if forces is None:
            yield UsageError(
                "It has no reference forces, or some that are not finite.",
                "Bring labels with a force on every atom, or name a reference.",
            )
        else:
            energy = structure.labels.get("energy_eV", float("nan"))
            yield Truth(float(energy), forces)  # pyright: ignore[reportArgumentType]


def _calculated(name: str, structures: Sequence[Structure]) -> Iterator[Any]:
    from fdcore.reference import reference, truths

    return truths(reference(name), structures)


def _rows(
    position: int, first_atom: int, seen: Any, truth: Any, members: Sequence[str], said: Sequence[Any]
) -> Iterator[Record]:
    n = len(seen.forces_direct)
    driving: Mapping[str, Any] = {}
    if members:
        for member, answer in zip(members, said, strict=True):
            if isinstance(answer, FdcoreError):
                yield Note({"position": position, "member": member, "error": answer.message, "hint": answer.hint})
        nothing = np.full((n, 3), np.nan)
        columns = [nothing if isinstance(a, FdcoreError) else a.forces_driving for a in said]
        driving = {"forces_driving_eV_per_A": np.stack(columns, axis=1)}
    # Atoms first: a row of `structures` that can be read promises that its atoms can be, too.
    yield Rows(
        "atoms",
        {
            "forces_direct_eV_per_A": seen.forces_direct,
            "forces_conservative_eV_per_A": seen.forces_conservative,
            "forces_reference_eV_per_A": truth.forces_reference,
            **driving,
        },
    )
    yield Rows(
        "structures",
        {
            "position": [position],
            "first_atom": [first_atom],
            "n_atoms": [n],
            "energy_eV": [seen.energy],
            "energy_reference_eV": [truth.energy],
        },
    )
