"""Stability as a task: the same questions to several models, from the same structures and seeds.

ladder       one row per displaced copy, with the energy of the reference (NaN: none, or it failed); its atoms are rows of `ladder_atoms`
ladder_atoms positions and forces of the reference of the copies
errors       one row per model and copy: U_Delta and the errors (NaN: no reference)
relaxations  one row per model and structure
series       one row per model, NVE run and recorded step

Models are named in the parameters; in the tables they are numbered in that order. Notes say what failed or ended early. Drifts and
bands are pure functions of these (fdcore/drifts.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from fdcore.errors import FdcoreError, UsageError
from fdcore.spec import Spec, require_name
from fdcore.stability.settings import Stability
from fdcore.store.series import Checkpoint, Column, Tables
from fdcore.tasks.base import Job, Note, Parameters, Progress, Record, Rows, Run, Savable

if TYPE_CHECKING:
    from fdcore.models.base import Model
    from fdcore.records import Structure
    from fdcore.stability.ladder import Rung

MOST_MODELS = 12
NAN = float("nan")


@dataclass(frozen=True)
class StabilityParameters(Parameters, Stability):
    """As `Stability`, and: models, the ids beside the first (which is that of the spec); reference, a name of `fdcore.reference` whose
    errors are told (None: none)."""

    models: tuple[str, ...] = ()
    reference: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.models, str) or not all(isinstance(m, str) for m in self.models):
            raise UsageError(f"models are {self.models!r}; a list of names is needed.")
        object.__setattr__(self, "models", tuple(self.models))
        for name in self.models:
            require_name(name)
        if len(self.models) + 1 > MOST_MODELS:
            raise UsageError(
                f"{len(self.models) + 1} models are more than the {MOST_MODELS} that fit one report.", "Name fewer."
            )
        if self.reference is not None:
            require_reference(self.reference)

    def settings(self) -> Stability:
        return Stability(**{f.name: getattr(self, f.name) for f in fields(Stability)})


def require_reference(name: object) -> None:
    """UsageError unless there is a reference of this name and it is installed."""
    if not isinstance(name, str):
        raise UsageError(f"reference is {name!r}; a name is needed.")
    # Heavy only where a calculator is asked for.
    from fdcore.reference import reference

    reference(name)


class StabilityTask:
    name = "stability"
    unit = "step"

    def check(self, spec: Spec) -> None:
        parameters: StabilityParameters = StabilityParameters.of(spec)
        if spec.n_structures < 1:
            raise UsageError("Stability needs a structure to simulate.", "Give one.")
        if spec.model is not None and spec.model.id in parameters.models:
            raise UsageError(f"{spec.model.id} is named twice.", "Name every model once.")
        if len(set(parameters.models)) < len(parameters.models):
            raise UsageError("A model is named twice.", "Name every model once.")

    def tables(self, spec: Spec, structures: Sequence[Structure]) -> Tables:
        return stability_tables()

    def run(self, job: Job) -> Run:
        parameters: StabilityParameters = StabilityParameters.of(job.spec)
        first = job.needs_model()

        def model(number: int) -> Any:
            return first if number == 0 else job.load(parameters.models[number - 1])

        work = Work(
            job.structures,
            parameters.settings(),
            parameters.reference,
            1 + len(parameters.models),
            model,
            job.spec.seed,
            job.state,
        )
        yield from work.run()
        return {"device": first.device, "weights_sha256": first.weights_sha256, **work.summary()}


def stability_tables() -> Tables:
    """See above."""
    return {
        "ladder": {
            "parent": Column("<i4"),
            "sigma_A": Column(),
            "energy_reference_eV": Column(),
            "first_atom": Column("<i8"),
            "n_atoms": Column("<i8"),
        },
        "ladder_atoms": {"position_A": Column("<f8", (3,)), "forces_reference_eV_per_A": Column("<f8", (3,))},
        "errors": {
            "model": Column("<i2"),
            "rung": Column("<i8"),
            "force_delta_eV_per_A": Column(),
            "error_direct_eV_per_A": Column(),
            "error_conservative_eV_per_A": Column(),
            "error_energy_eV_per_atom": Column(),
        },
        "relaxations": {
            "model": Column("<i2"),
            "parent": Column("<i4"),
            "iterations": Column("<i8"),
            "converged": Column("<i1"),
            "moved_A": Column(),
        },
        "series": {
            "model": Column("<i2"),
            "parent": Column("<i4"),
            "seed": Column("<i4"),
            "time_ps": Column(),
            "conserved_eV": Column(),
            "temperature_K": Column(),
            # NaN where it was not due.
            "force_delta_eV_per_A": Column(),
        },
    }


class Work:
    """The measurement: what it has, and where it can be taken up again. `model(k)` gives the k-th of n_models when it is its turn."""

    STAGES = ("ladder", "errors", "relax", "nve")

    def __init__(
        self,
        structures: Sequence[Structure],
        settings: Stability,
        reference: str | None,
        n_models: int,
        model: Any,
        seed: int,
        state: Checkpoint | None = None,
    ) -> None:
        from fdcore.stability.ladder import ladder
        from fdcore.tasks.motion import leg_timestep, systems_of

        self.structures, self.settings, self.reference, self.n_models = tuple(structures), settings, reference, n_models
        self._model, self._seed = model, seed
        self.rungs: list[Rung] = ladder(structures, settings.sigmas_A, settings.per_sigma, seed)
        self._leg = settings.leg(leg_timestep(structures, settings.timestep_fs))
        self._systems = systems_of(structures, settings.seeds)
        self.at, self.stage, self._next, self._atoms = 0, "ladder", 0, 0
        # What the reference says of each rung; None: nothing.
        self._truths: list[tuple[float, Any] | None] = []
        self._seconds, self._steps = [0.0] * n_models, [0] * n_models
        self._course: Any = None
        self._resume: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None
        if state is not None:
            self._load(state)

    # ---- how far ---------------------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        each = len(self.rungs) + self.settings.relax_steps + self._leg.steps
        return (len(self.rungs) if self.reference else 0) + self.n_models * each

    @property
    def done(self) -> int:
        labelled = len(self.rungs) if self.reference else 0
        if self.stage == "ladder":
            return self._next if self.reference else 0
        each = len(self.rungs) + self.settings.relax_steps + self._leg.steps
        before = labelled + self.at * each
        if self.stage == "errors":
            return before
        steps = 0
        if self._course is not None:
            steps = self._course.done
        elif self._resume is not None:
            steps = int(self._resume[0]["done"])
        relaxed = self.settings.relax_steps if self.stage == "nve" else 0
        return before + len(self.rungs) + relaxed + steps

    def progress(self, text: str) -> Progress:
        return Progress(self.done, self.total, text)

    # ---- the measurement -------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Record]:
        yield self.progress("beginning")
        if self.stage == "ladder":
            yield from self._label()
            self.stage = "errors"
            yield self.progress("displaced copies are there")
            yield Savable(self.save)
        while self.at < self.n_models:
            model = self._model(self.at)
            if self.stage == "errors":
                yield from self._errors(model)
                self.stage = "relax"
                yield self.progress(f"model {self.at + 1} of {self.n_models}: looked at displaced copies")
                yield Savable(self.save)
            if self.stage == "relax":
                yield from self._relax(model)
                self.stage = "nve"
                yield self.progress(f"model {self.at + 1} of {self.n_models}: relaxed")
                yield Savable(self.save)
            yield from self._dynamics(model)
            self.at, self.stage = self.at + 1, "errors"
            yield self.progress(f"{self.at} of {self.n_models} models")
            yield Savable(self.save)
        yield self.progress("done")

    def _label(self) -> Iterator[Record]:
        from fdcore.reference import Truth

        truths = self._said(self.rungs[self._next :])
        for truth in truths:
            rung, number = self.rungs[self._next], self._next
            known = truth if isinstance(truth, Truth) else None
            if isinstance(truth, FdcoreError):
                yield Note({"rung": number, "sigma_A": rung.sigma_A, "error": truth.message, "hint": truth.hint})
            n = rung.structure.n_atoms
            yield Rows(
                "ladder_atoms",
                {
                    "position_A": rung.structure.positions,
                    "forces_reference_eV_per_A": [[NAN] * 3] * n if known is None else known.forces_reference,
                },
            )
            yield Rows(
                "ladder",
                {
                    "parent": [rung.parent],
                    "sigma_A": [rung.sigma_A],
                    "energy_reference_eV": [NAN if known is None else known.energy],
                    "first_atom": [self._atoms],
                    "n_atoms": [n],
                },
            )
            self._truths.append(None if known is None else (known.energy, known.forces_reference))
            self._atoms, self._next = self._atoms + n, self._next + 1
            if self.reference:
                yield self.progress(f"labelled {self._next} of {len(self.rungs)} displaced copies")
            yield Savable(self.save)

    def _said(self, rungs: Sequence[Rung]) -> Iterator[Any]:
        if self.reference is None:
            return iter([None] * len(rungs))
        from fdcore.reference import reference, truths

        return truths(reference(self.reference), [r.structure for r in rungs])

    def _errors(self, model: Model) -> Iterator[Record]:
        from fdcore import delta

        for number, (rung, found) in enumerate(
            zip(self.rungs, model.evaluate_each([r.structure for r in self.rungs]), strict=True)
        ):
            if isinstance(found, FdcoreError):
                yield Note({"model": self.at, "rung": number, "error": found.message, "hint": found.hint})
                continue
            truth = self._truths[number]
            energy, direct, conservative = NAN, NAN, NAN
            if truth is not None:
                energy = (found.energy - truth[0]) / rung.structure.n_atoms
                direct = delta.rms_difference(found.forces_direct, truth[1])
                conservative = delta.rms_difference(found.forces_conservative, truth[1])
            yield Rows(
                "errors",
                {
                    "model": [self.at],
                    "rung": [number],
                    "force_delta_eV_per_A": [found.force_delta],
                    "error_direct_eV_per_A": [direct],
                    "error_conservative_eV_per_A": [conservative],
                    "error_energy_eV_per_atom": [energy],
                },
            )

    def _relax(self, model: Model) -> Iterator[Record]:
        import numpy as np

        from fdcore.course import Course, Plan
        from fdcore.relax import Relaxed

        plan = Plan((), self.settings.relaxation())
        self._course = Course(model, self.structures, plan, self._seed, self._resume)
        self._resume = None
        for _, event in self._course.run():
            if isinstance(event, Relaxed):
                moved = event.positions - self.structures[event.system].positions
                yield Rows(
                    "relaxations",
                    {
                        "model": [self.at],
                        "parent": [event.system],
                        "iterations": [event.iteration],
                        "converged": [1 if event.converged else 0],
                        "moved_A": [float(np.sqrt((moved**2).sum(-1)).max()) if event.finite else NAN],
                    },
                )
            elif event is None:
                yield self.progress(f"model {self.at + 1} of {self.n_models}: relaxing")
                yield Savable(self.save)
        self._course = None

    def _dynamics(self, model: Model) -> Iterator[Record]:
        from fdcore.course import Course, Plan
        from fdcore.dynamics.simulation import Ended, Sample

        plan = Plan((self._leg,), None, self.settings.bounds())
        self._course = course = Course(model, self._systems, plan, self._seed, self._resume)
        self._resume = None
        for _, event in course.run():
            if isinstance(event, Sample):
                yield self._sample(event)
            elif isinstance(event, Ended):
                parent, seed = divmod(event.system, self.settings.seeds)
                yield Note(
                    {
                        "model": self.at,
                        "parent": parent,
                        "seed": seed,
                        "ended": event.reason,
                        "text": event.text,
                        "step": event.step,
                    }
                )
            elif event is None:
                now = course.done * self._leg.timestep_fs / 1000
                yield self.progress(
                    f"model {self.at + 1} of {self.n_models}: {now:.2f} of {self.settings.picoseconds:g} ps"
                )
                yield Savable(self.save)
        self._seconds[self.at], self._steps[self.at] = course.work[1], course.steps_done[0]
        self._course = None

    def _sample(self, event: Any) -> Rows:
        parent, seed = event.systems // self.settings.seeds, event.systems % self.settings.seeds
        return Rows(
            "series",
            {
                "model": [self.at] * len(parent),
                "parent": parent,
                "seed": seed,
                "time_ps": [event.time_ps] * len(parent),
                "conserved_eV": event.conserved,
                "temperature_K": event.temperature_K,
                "force_delta_eV_per_A": event.force_delta,
            },
        )

    def summary(self) -> dict[str, Any]:
        """What a list of runs says of it, and what no table holds."""
        return {
            "models": self.n_models,
            "nve_runs": len(self._systems),
            "steps_done": list(self._steps),
            "dynamics_seconds": list(self._seconds),
            "timestep_fs": self._leg.timestep_fs,
        }

    # ---- saved states ----------------------------------------------------------------------------------------------

    def save(self) -> Checkpoint:
        import numpy as np

        values: dict[str, Any] = {
            "at": self.at,
            "stage": self.stage,
            "next": self._next,
            "atoms": self._atoms,
            "dynamics_seconds": list(self._seconds),
            "steps": list(self._steps),
            "truths": [None if t is None else t[0] for t in self._truths],
        }
        arrays: dict[str, Any] = {}
        known = [t[1] for t in self._truths if t is not None]
        if known:
            arrays["forces_reference"] = np.concatenate(known)
        if self._course is not None:
            course, more = self._course.save()
            values["course"] = {**course, "done": self._course.done}
            arrays |= {f"course/{k}": v for k, v in more.items()}
        return Checkpoint(values, arrays)

    def _load(self, state: Checkpoint) -> None:
        import numpy as np

        values, arrays = state.values, state.arrays
        self.at, self.stage, self._next, self._atoms = values["at"], values["stage"], values["next"], values["atoms"]
        self._seconds, self._steps = list(values["dynamics_seconds"]), list(values["steps"])
        known = [k for k, energy in enumerate(values["truths"]) if energy is not None]
        parts: list[Any] = []
        if known:
            ends = np.cumsum([self.rungs[k].structure.n_atoms for k in known])
            parts = np.split(np.array(arrays["forces_reference"]), ends[:-1])
        labels = dict(zip(known, parts, strict=True))
        self._truths = [
            None if k not in labels else (values["truths"][k], labels[k]) for k in range(len(values["truths"]))
        ]
        if "course" in values:
            self._resume = (values["course"], {k[7:]: v for k, v in arrays.items() if k.startswith("course/")})
