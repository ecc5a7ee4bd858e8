"""An attack as a task: an optional relaxation of the given structures, then the climb of many copies of them.

relaxation  one row per structure and iteration
origins     one row per given structure as the attack begins: what its copies are measured against
steps       one row per structure on the way of a start; its environments are described here, so that choosing is reading
atoms       positions and both forces of origins and steps, which say which rows are their own

Notes say which starts were displaced at random and why, and how each ended. The dataset is a pure function of these
(fdcore/adversarial.py), so cancelling keeps what was made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from fdcore.attack.settings import MOST_STARTS, Attack, Choice, Gradient
from fdcore.dynamics.settings import Relaxation, check_can_move, whole
from fdcore.errors import UsageError
from fdcore.spec import Spec
from fdcore.store.series import Checkpoint, Column, Tables
from fdcore.tasks.base import Job, Note, Parameters, Progress, Record, Rows, Run, Savable

if TYPE_CHECKING:
    from fdcore.attack.ascent import Ascent, Event, Origin, Step
    from fdcore.models.base import Model
    from fdcore.records import Structure

# Copies per structure asked for where nobody says how many starts: each way up leaves at least two that differ (measured).
STARTS_PER_COUNT, FEWEST_STARTS = 0.5, 4


@dataclass(frozen=True)
class AttackParameters(Parameters):
    """As `Attack` and `Choice`, and: starts, the copies altogether (None: half of `count`, at least 4 and every structure once);
    relax_fmax_eV_per_A, relax first along F_c until no atom feels more (None: begin at the structures as they are)."""

    steps: int = Attack.steps
    alpha: float | None = None
    beta: float | None = None
    balance: float = Attack.balance
    first_step_A: float = Attack.first_step_A
    temperature_K: float | None = None
    max_step_A: float = Attack.max_step_A
    rattle_A: float = Attack.rattle_A
    strain: bool = False
    max_strain: float = Attack.max_strain
    closest: float = Attack.closest
    max_force_eV_per_A: float = Attack.max_force_eV_per_A
    window_eV_per_atom: float = Attack.window_eV_per_atom
    patience: int = Attack.patience
    gradient: Gradient = Attack.gradient
    count: int = Choice.count
    rise: float = Choice.rise
    spread: bool = False
    apart: float = Choice.apart
    starts: int | None = None
    relax_fmax_eV_per_A: float | None = 0.05
    relax_steps: int = 200

    def __post_init__(self) -> None:
        self.attack(), self.choice(), self.relaxation()
        if self.starts is not None:
            whole("starts", self.starts, 1, MOST_STARTS)

    def attack(self) -> Attack:
        return Attack(**{f.name: getattr(self, f.name) for f in fields(Attack)})

    def choice(self) -> Choice:
        return Choice(self.count, self.rise, self.spread, self.apart)

    def relaxation(self) -> Relaxation | None:
        if self.relax_fmax_eV_per_A is None:
            whole("relax-steps", self.relax_steps, 1, 100_000)
            return None
        return Relaxation("conservative", "fire", self.relax_fmax_eV_per_A, self.relax_steps, 1)

    def starts_for(self, n_structures: int) -> int:
        """How many copies climb."""
        if self.starts is not None:
            return self.starts
        return min(MOST_STARTS, max(FEWEST_STARTS, -int(-STARTS_PER_COUNT * self.count // 1), n_structures))


class AttackTask:
    name = "attack"
    unit = "step"

    def check(self, spec: Spec) -> None:
        parameters: AttackParameters = AttackParameters.of(spec)
        if parameters.starts is not None and parameters.starts < spec.n_structures:
            raise UsageError(
                f"{parameters.starts} starts are fewer than the {spec.n_structures} structures that were given.",
                "Give at least one start for each, or fewer structures.",
            )

    def tables(self, spec: Spec, structures: Sequence[Structure]) -> Tables:
        import numpy as np

        from fdcore.attack.environments import width

        numbers = np.unique(np.concatenate([s.numbers for s in structures]))
        return {
            "relaxation": {
                "parent": Column("<i4"),
                "iteration": Column("<i8"),
                "energy_eV": Column(),
                "fmax_eV_per_A": Column(),
                "force_delta_eV_per_A": Column(),
            },
            "origins": {
                "parent": Column("<i4"),
                "energy_eV": Column(),
                "force_delta_eV_per_A": Column(),
                "closest_share": Column(),
                # What distances between its descendants are measured in.
                "unit": Column(),
                "first_atom": Column("<i8"),
                "n_atoms": Column("<i8"),
            },
            "steps": {
                "start": Column("<i4"),
                "parent": Column("<i4"),
                "step": Column("<i8"),
                "energy_eV": Column(),
                "above_eV_per_atom": Column(),
                "force_delta_eV_per_A": Column(),
                # Infinite where no two atoms are near each other.
                "closest_A": Column(),
                "closest_share": Column(),
                "fmax_eV_per_A": Column(),
                "moved_A": Column(),
                "alpha": Column(),
                "beta": Column(),
                # 0: a start that lies outside the bounds.
                "allowed": Column("<i1"),
                "cell_A": Column("<f8", (3, 3)),
                "environments": Column("<f4", (width(numbers),)),
                "first_atom": Column("<i8"),
                "n_atoms": Column("<i8"),
            },
            "atoms": {
                "position_A": Column("<f8", (3,)),
                "forces_direct_eV_per_A": Column("<f4", (3,)),
                "forces_conservative_eV_per_A": Column("<f4", (3,)),
            },
        }

    def run(self, job: Job) -> Run:
        from fdcore.attack.ascent import Ascent

        model, parameters = job.needs_model(), AttackParameters.of(job.spec)
        relaxation = parameters.relaxation()
        starts = parameters.starts_for(len(job.structures))
        before = 0 if relaxation is None else relaxation.steps * len(job.structures)
        work = _Work(model, job, before, before + starts * parameters.steps)
        yield work.progress()
        if relaxation is not None:
            yield from work.relax(relaxation)
        ascent = Ascent(model, work.structures, starts, parameters.attack(), job.spec.seed, work.ascent_state)
        yield from work.climb(ascent)
        return {
            "starts": starts,
            "steps_done": ascent.steps_done,
            "seconds": work.seconds,
            "device": model.device,
            "weights_sha256": model.weights_sha256,
        }


class _Work:
    """One attempt: what it has, what it has recorded, and where it can be taken up again."""

    def __init__(self, model: Model, job: Job, before: int, total: int) -> None:
        self._model, self._before, self._total = model, before, total
        self.structures: list[Structure] = [model.check(s) for s in job.structures]
        self.ascent_state: tuple[Any, Any] | None = None
        self._atoms, self.seconds, self._done = 0, 0.0, 0.0
        # The structure that is being relaxed; as many as there are structures: none.
        self._relaxing = 0
        self._descent: Any = None
        if job.state is None:
            return
        values, arrays = job.state.values, job.state.arrays
        self._atoms, self.seconds, self._done = int(values["atoms"]), float(values["seconds"]), float(values["done"])
        self._relaxing = int(values["relaxing"])
        for name, positions in arrays.items():
            if name.startswith("relaxed/"):
                k = int(name[8:])
                self.structures[k] = replace(self.structures[k], positions=positions, labels={})
        if "descent" in values:
            self._descent = (values["descent"], arrays)
        if "ascent" in values:
            self.ascent_state = (
                values["ascent"],
                {k[7:]: v for k, v in arrays.items() if k.startswith("ascent/")},
            )

    def progress(self, text: str = "") -> Progress:
        return Progress(self._done, self._total, text or "beginning")

    # ---- relaxation ------------------------------------------------------------------------------------------------

    def relax(self, settings: Relaxation) -> Iterator[Record]:
        import time

        from fdcore.relax import Descent, Point, Relaxed
        from fdcore.relax import Snapshot as DescentSnapshot

        while self._relaxing < len(self.structures):
            k, snapshot = self._relaxing, None
            check_can_move(self.structures[k])
            if self._descent is not None:
                saved, arrays = self._descent
                tensors = {n[8:]: v for n, v in arrays.items() if n.startswith("descent/")}
                snapshot = DescentSnapshot(
                    saved["iteration"], tuple(saved["active"]), tensors, arrays.get("descent.reference")
                )
                self._descent = None
            descent = Descent(self._model, [self.structures[k]], settings, snapshot)
            clock = time.perf_counter()
            for event in descent.run():
                if isinstance(event, Point):
                    yield self._point(k, event)
                elif isinstance(event, Relaxed):
                    yield Note({"parent": k, "relaxed": event.converged, "text": event.note})
                    if event.finite:
                        self.structures[k] = replace(self.structures[k], positions=event.positions, labels={})
                else:
                    now = time.perf_counter()
                    self.seconds, clock = self.seconds + now - clock, now
                    self._done = settings.steps * k + descent.iteration
                    if descent.active:
                        yield self.progress(
                            f"relaxing structure {k + 1} of {len(self.structures)}, iteration {descent.iteration}"
                        )
                        yield Savable(lambda known=descent: self._state(descent=known))
            self._relaxing += 1
            self._done = settings.steps * self._relaxing
            yield self.progress(f"relaxed structure {k + 1} of {len(self.structures)}")
            yield Savable(self._state)

    def _point(self, parent: int, point: Any) -> Rows:
        nan = float("nan")
        return Rows(
            "relaxation",
            {
                "parent": [parent],
                "iteration": [point.iteration],
                "energy_eV": [point.energy],
                "fmax_eV_per_A": [point.fmax],
                "force_delta_eV_per_A": [nan if point.force_delta is None else point.force_delta],
            },
        )

    # ---- the climb -------------------------------------------------------------------------------------------------

    def climb(self, ascent: Ascent) -> Iterator[Record]:
        import time

        clock = time.perf_counter()
        for event in ascent.run():
            if event is None:
                now = time.perf_counter()
                self.seconds, clock = self.seconds + now - clock, now
                self._done = max(self._done, self._before + ascent.done)
                yield self.progress(_text(ascent))
                yield Savable(lambda: self._state(ascent=ascent))
                clock = time.perf_counter()
            else:
                yield from self._records(ascent, event)
        self._done = self._total
        yield self.progress(f"climbed from {ascent.starts} starts")

    def _records(self, ascent: Ascent, event: Event) -> Iterator[Record]:
        match type(event).__name__:
            case "Origin":
                yield from self._origin(ascent, event)  # pyright: ignore[reportArgumentType]
            case "Step":
                yield from self._step(ascent, event)  # pyright: ignore[reportArgumentType]
            case "Rattled":
                yield Note({"start": event.start, "rattled_A": event.sigma_A, "text": event.why})  # pyright: ignore
            case _:
                yield Note(
                    {"start": event.start, "step": event.step, "ended": event.reason, "text": event.text}  # pyright: ignore
                )

    def _origin(self, ascent: Ascent, origin: Origin) -> Iterator[Record]:
        from fdcore.attack.environments import unit_distance

        structure = ascent.structures[origin.parent]
        if origin.problem:
            yield Note({"parent": origin.parent, "problem": origin.problem})
        n = structure.n_atoms
        nothing = [[0.0, 0.0, 0.0]] * n
        yield Rows(
            "atoms",
            {
                "position_A": structure.positions,
                "forces_direct_eV_per_A": nothing if origin.problem else origin.forces_direct,
                "forces_conservative_eV_per_A": nothing if origin.problem else origin.forces_conservative,
            },
        )
        yield Rows(
            "origins",
            {
                "parent": [origin.parent],
                "energy_eV": [float("nan") if origin.problem else origin.energy],
                "force_delta_eV_per_A": [float("nan") if origin.problem else origin.force_delta],
                "closest_share": [origin.closest],
                "unit": [unit_distance(structure, self._numbers())],
                "first_atom": [self._atoms],
                "n_atoms": [n],
            },
        )
        self._atoms += n

    def _step(self, ascent: Ascent, step: Step) -> Iterator[Record]:
        from fdcore.attack.environments import describe

        here = replace(ascent.structures[step.parent], positions=step.positions, cell=step.cell)
        # Atoms first: a row of `steps` that can be read promises that its atoms can be, too.
        yield Rows(
            "atoms",
            {
                "position_A": step.positions,
                "forces_direct_eV_per_A": step.forces_direct.astype("f4"),
                "forces_conservative_eV_per_A": step.forces_conservative.astype("f4"),
            },
        )
        yield Rows(
            "steps",
            {
                "start": [step.start],
                "parent": [step.parent],
                "step": [step.step],
                "energy_eV": [step.energy],
                "above_eV_per_atom": [step.above_eV_per_atom],
                "force_delta_eV_per_A": [step.force_delta],
                "closest_A": [step.closest_A],
                "closest_share": [step.closest_share],
                "fmax_eV_per_A": [step.fmax],
                "moved_A": [step.moved_A],
                "alpha": [step.alpha],
                "beta": [step.beta],
                "allowed": [0 if step.broken else 1],
                "cell_A": step.cell[None],
                "environments": describe(here, self._numbers())[None].astype("f4"),
                "first_atom": [self._atoms],
                "n_atoms": [step.n_atoms],
            },
        )
        self._atoms += step.n_atoms

    def _numbers(self) -> Any:
        import numpy as np

        return np.unique(np.concatenate([s.numbers for s in self.structures]))

    # ---- saved states ----------------------------------------------------------------------------------------------

    def _state(self, descent: Any = None, ascent: Ascent | None = None) -> Checkpoint:
        values: dict[str, Any] = {
            "atoms": self._atoms,
            "seconds": self.seconds,
            "done": self._done,
            "relaxing": self._relaxing,
        }
        arrays = {
            f"relaxed/{k}": self.structures[k].positions for k in range(min(self._relaxing, len(self.structures)))
        }
        if descent is not None:
            now = descent.snapshot()
            values["descent"] = {"iteration": now.iteration, "active": list(now.active)}
            arrays |= {f"descent/{k}": v for k, v in now.tensors.items()}
            if now.reference is not None:
                arrays["descent.reference"] = now.reference
        if ascent is not None:
            values["ascent"], known = ascent.save()
            arrays |= {f"ascent/{k}": v for k, v in known.items()}
        return Checkpoint(values, arrays)


def _text(ascent: Ascent) -> str:
    climbing = ascent.climbing
    ended = ascent.taken - len(climbing)
    if not climbing:
        return f"{ended} of {ascent.starts} starts have climbed"
    highest, step = max(c.best for c in climbing), max(c.step for c in climbing)
    return f"{ended} of {ascent.starts} starts have climbed, {len(climbing)} are at step {step}, U_Delta up to {highest:.3g} eV/Å"
