"""The climb: r_new = r_old + alpha grad U_Delta - beta grad E, many starts at once, guarded, as a generator of frozen records.

Starts are taken in waves, each small enough that a step of all of its members takes about a second; a wave climbs to its end
before the next one begins. What is yielded is what happened, and None where the state is complete and `save` may be called. Taken
up from a saved state, everything that follows is the same to the last bit on a CPU: no member's numbers depend on a clock or on
free memory, and the random displacement of a start depends on the seed and its number alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdcore.attack.guards import Closest, broken, closest_pair, held_apart, largest_force
from fdcore.attack.settings import NO_FORCE_DELTA, Attack
from fdcore.errors import FdcoreError
from fdcore.models.base import Model, estimated_edges, guessed_seconds_per_edge
from fdcore.records import Gradients, Structure
from fdcore.units import KB

Array = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]

# A step of a wave should not take much longer: between steps progress is reported and a wish to stop is noticed.
WAVE_SECONDS = 1.0
# One gradient costs so many evaluations of both forces, and a GPU does so many times as much (both rough: only waves depend on it).
GRADIENT_COST, GPU_SPEED = 2.5, 40.0
# Below this (eV/Å^2, the largest of an atom) grad U_Delta is zero by symmetry, or rounding.
NO_GRADIENT = 2e-3
# The displacement of a start that has no gradient where rattle_A is zero (Å).
LEAST_RATTLE_A = 0.01
# By how much U_Delta must exceed its highest value so far to count as rising.
RISING = 1.005
# A step that breaks a guard is tried again at half its length, so often.
HALVINGS = 4
# The force scale (eV/Å) below which the first gradient of the energy says nothing: a relaxed start has none.
FLAT = 0.1
# Altogether the cell is strained by at most so many steps' worth.
MOST_STRAINS = 10


@dataclass(frozen=True)
class Origin:
    """One of the given structures as the model sees it, both forces (N, 3) in eV/Å: what its copies are measured against. `problem`:
    why it cannot be attacked."""

    parent: int
    energy: float
    force_delta: float
    closest: float
    forces_direct: Array
    forces_conservative: Array
    problem: str = ""


@dataclass(frozen=True)
class Rattled:
    """A start was displaced at random by sigma_A per component; `why` in words."""

    start: int
    sigma_A: float
    why: str


@dataclass(frozen=True)
class Step:
    """One structure on the way of one start: positions (N, 3) and cell (3, 3) in Å, both forces (N, 3) in eV/Å, energy (eV), U_Delta
    (eV/Å), energy above the origin (eV/atom), the closest pair, the largest force, and how far the farthest atom is from where
    it was in the origin (Å). `broken`: the guard that a start breaks before it has moved, else empty."""

    start: int
    parent: int
    step: int
    energy: float
    force_delta: float
    above_eV_per_atom: float
    closest_A: float
    closest_share: float
    fmax: float
    moved_A: float
    alpha: float
    beta: float
    broken: str
    positions: Array
    cell: Array
    forces_direct: Array
    forces_conservative: Array

    @property
    def n_atoms(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class Ended:
    """A start has come to its end: reason one of "steps", "plateau", "closest", "window", "force", "no-gradient", "failed"."""

    start: int
    step: int
    reason: str
    text: str


Event = Origin | Rattled | Step | Ended | None


@dataclass
class _Climber:
    """One start in the present wave."""

    start: int
    parent: int
    structure: Structure
    step: int = 0
    alpha: float = 0.0
    beta: float = 0.0
    best: float = 0.0
    best_step: int = 0
    force_delta: float = 0.0
    gradient: Array | None = None
    energy_gradient: Array | None = None
    strain_gradient: Array | None = None
    energy_strain_gradient: Array | None = None
    ended: bool = False


class Ascent:
    """`starts` copies of the given structures (taken in turn) on their way up. The first copy of each stays as it is, the others are
    displaced at random."""

    def __init__(
        self,
        model: Model,
        structures: Sequence[Structure],
        starts: int,
        settings: Attack,
        seed: int,
        state: tuple[Mapping[str, Any], Arrays] | None = None,
    ) -> None:
        self.model, self.settings, self.seed = model, settings, seed
        self.structures, self.starts = tuple(model.check(s) for s in structures), starts
        self.origins: list[Origin] = []
        self.taken = 0
        self.steps_done = 0
        self._wave: list[_Climber] = []
        if state is not None:
            self._load(*state)

    @property
    def done(self) -> float:
        """Of all steps that may be needed; a start that has ended counts whole."""
        climbing = self.climbing
        return (self.taken - len(climbing)) * self.settings.steps + sum(c.step for c in climbing)

    @property
    def climbing(self) -> list[_Climber]:
        """Members of the present wave that have not ended."""
        return [c for c in self._wave if not c.ended]

    def run(self) -> Iterator[Event]:
        """Climb to the end of every start."""
        while len(self.origins) < len(self.structures):
            yield from self._look_at_origins()
            yield None
        while True:
            while self.climbing:
                yield from self._step()
                yield None
            if self.taken >= self.starts:
                return
            yield from self._begin_wave()
            yield None

    # ---- beginnings ------------------------------------------------------------------------------------------------

    def _look_at_origins(self) -> Iterator[Event]:
        first = len(self.origins)
        part = self._affordable(self.structures[first:])
        for k, found in enumerate(self._gradients(part), first):
            if isinstance(found, FdcoreError):
                nothing = np.zeros((0, 3))
                origin = Origin(k, 0.0, 0.0, 0.0, nothing, nothing, str(found))
            else:
                evaluation = found.evaluation
                share = closest_pair(self.structures[k]).share
                both = (evaluation.forces_direct, evaluation.forces_conservative)
                origin = Origin(k, evaluation.energy, evaluation.force_delta, min(share, 1e3), *both)
            self.origins.append(origin)
            yield origin

    def _affordable(self, structures: Sequence[Structure]) -> list[Structure]:
        """The first of them: so many that one gradient of all takes about a second."""
        card = self.model.card
        per_edge = GRADIENT_COST * guessed_seconds_per_edge(card)
        if self.model.device.startswith("cuda"):
            per_edge /= GPU_SPEED
        out, edges = [], 0.0
        for structure in structures:
            # No measured speed: the waves of a run must not depend on what else the machine does.
            edges += estimated_edges(structure, card.cutoff_A, card.neighbour_cap)
            if out and edges * per_edge > WAVE_SECONDS:
                break
            out.append(structure)
        return out

    def _begin_wave(self) -> Iterator[Event]:
        parents = [k % len(self.structures) for k in range(self.taken, self.starts)]
        wanted = self._affordable([self.structures[p] for p in parents])
        numbers = range(self.taken, self.taken + len(wanted))
        self._wave = [_Climber(n, n % len(self.structures), self.structures[n % len(self.structures)]) for n in numbers]
        self.taken += len(wanted)
        for climber in self._wave:
            problem = self.origins[climber.parent].problem
            if problem:
                yield self._end(climber, "failed", problem)
            elif climber.start >= len(self.structures) and self.settings.rattle_A > 0:
                yield self._rattle(climber, self.settings.rattle_A, "a copy of its own")
        yield from self._arrive(self.climbing)
        # A second look: by symmetry the first copy of a crystal may have nowhere to go.
        still = [c for c in self.climbing if self._is_still(c)]
        for climber in still:
            sigma = max(self.settings.rattle_A, LEAST_RATTLE_A)
            yield self._rattle(climber, sigma, "U_Delta has no gradient there: symmetry, or two forces that agree")
        yield from self._arrive(still)
        for climber in still:
            if not climber.ended and self._is_still(climber):
                yield self._end(
                    climber, "no-gradient", "U_Delta has no gradient there, also after a random displacement."
                )

    def _is_still(self, climber: _Climber) -> bool:
        assert climber.gradient is not None
        flat = float(np.linalg.norm(climber.gradient, axis=1).max()) < NO_GRADIENT
        return flat or climber.force_delta < NO_FORCE_DELTA

    def _rattle(self, climber: _Climber, sigma: float, why: str) -> Rattled:
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, climber.start])))
        shift = generator.normal(0.0, sigma, climber.structure.positions.shape)
        climber.structure = _moved(climber.structure, climber.structure.positions + shift - shift.mean(axis=0))
        return Rattled(climber.start, sigma, why)

    def _arrive(self, climbers: Sequence[_Climber]) -> Iterator[Event]:
        """Evaluate starts where they begin."""
        for climber, found in zip(climbers, self._gradients([c.structure for c in climbers]), strict=True):
            if isinstance(found, FdcoreError):
                yield self._end(climber, "failed", str(found))
                continue
            self._take(climber, found)
            climber.alpha, climber.beta = self._scales(climber)
            climber.best, climber.best_step = found.evaluation.force_delta, 0
            close = closest_pair(climber.structure)
            step = self._seen(climber, found, close)
            guard = broken(self.settings, close, step.fmax, step.above_eV_per_atom)
            if guard is None:
                yield step
                continue
            yield replace(step, broken=guard[0])
            yield self._end(climber, guard[0], f"It begins outside the bounds: {guard[1]}.")

    def _scales(self, climber: _Climber) -> tuple[float, float]:
        """alpha and beta of a start from its first gradients, where they are not given."""
        assert climber.gradient is not None and climber.energy_gradient is not None
        lengths = np.linalg.norm(climber.gradient, axis=1)
        alpha, beta = self.settings.alpha, self.settings.beta
        if alpha is None:
            alpha = self.settings.first_step_A / max(float(lengths.max()), NO_GRADIENT)
        if beta is None:
            slope = max(_rms(climber.energy_gradient), FLAT / np.sqrt(3))
            beta = self.settings.balance * alpha * _rms(climber.gradient) / slope
        return alpha, beta

    # ---- one step --------------------------------------------------------------------------------------------------

    def _step(self) -> Iterator[Event]:
        """One accepted step of every member that still climbs; those that break a guard try again with half the length."""
        waiting = self.climbing
        length = {c.start: 1.0 for c in waiting}
        why: dict[int, tuple[str, str]] = {}
        for _ in range(HALVINGS + 1):
            proposed, evaluated = [], []
            for climber in waiting:
                there = self._proposal(climber, length[climber.start])
                close = closest_pair(there)
                guard = broken(self.settings, close, 0.0, -np.inf)
                if guard is not None:
                    why[climber.start] = guard
                    continue
                proposed.append((climber, there, close))
            again = [c for c in waiting if c.start not in {p[0].start for p in proposed}]
            evaluated = self._gradients([there for _, there, _ in proposed])
            for (climber, there, close), found in zip(proposed, evaluated, strict=True):
                if isinstance(found, FdcoreError):
                    yield self._end(climber, "failed", str(found))
                    continue
                guard = broken(self.settings, close, largest_force(found.evaluation), self._above(climber, found))
                if guard is not None:
                    why[climber.start] = guard
                    again.append(climber)
                    continue
                yield from self._accept(climber, there, close, found)
            waiting = sorted(again, key=lambda c: c.start)
            if not waiting:
                return
            for climber in waiting:
                length[climber.start] *= 0.5
        for climber in waiting:
            name, text = why[climber.start]
            yield self._end(climber, name, f"Stopped: {text}.")

    def _proposal(self, climber: _Climber, length: float) -> Structure:
        settings, structure = self.settings, climber.structure
        assert climber.gradient is not None and climber.energy_gradient is not None
        alpha, beta = length * climber.alpha, length * self._beta(climber)
        shift = alpha * climber.gradient - beta * climber.energy_gradient
        far = np.linalg.norm(shift, axis=1, keepdims=True)
        shift *= np.minimum(1.0, length * settings.max_step_A / np.maximum(far, 1e-30))
        positions, cell = structure.positions + shift - shift.mean(axis=0), structure.cell
        if settings.strain and climber.strain_gradient is not None and climber.energy_strain_gradient is not None:
            # A strain moves atoms by itself times their distance: the cube root of the volume makes it a length.
            size = float(abs(np.linalg.det(cell))) ** (1 / 3)
            strain = (alpha * climber.strain_gradient - beta * climber.energy_strain_gradient) / size**2
            deformation = np.eye(3) + np.clip(strain, -length * settings.max_strain, length * settings.max_strain)
            if self._strained(climber, cell @ deformation) <= MOST_STRAINS * settings.max_strain:
                positions, cell = positions @ deformation, cell @ deformation
        return held_apart(replace(_moved(structure, positions), cell=cell), settings.closest)

    def _strained(self, climber: _Climber, cell: Array) -> float:
        """The largest component by which a cell is deformed against its origin."""
        total = np.linalg.solve(self.structures[climber.parent].cell, cell) - np.eye(3)
        return float(np.abs(0.5 * (total + total.T)).max())

    def _beta(self, climber: _Climber) -> float:
        if self.settings.temperature_K is None:
            return climber.beta
        return climber.alpha * climber.force_delta / (climber.structure.n_atoms * KB * self.settings.temperature_K)

    def _accept(self, climber: _Climber, there: Structure, close: Closest, found: Gradients) -> Iterator[Event]:
        climber.structure = there
        climber.step += 1
        self.steps_done += 1
        self._take(climber, found)
        yield self._seen(climber, found, close)
        if climber.force_delta > RISING * climber.best:
            climber.best, climber.best_step = climber.force_delta, climber.step
        if climber.step >= self.settings.steps:
            yield self._end(climber, "steps", "")
        elif climber.step - climber.best_step >= self.settings.patience:
            yield self._end(
                climber,
                "plateau",
                f"For {climber.step - climber.best_step} steps it has not exceeded the {climber.best:.3g} eV/Å of step {climber.best_step} by more than "
                f"{100 * (RISING - 1):.2g} %. Far out it saturates while the error goes on growing.",
            )

    def _take(self, climber: _Climber, found: Gradients) -> None:
        climber.force_delta = found.evaluation.force_delta
        climber.gradient, climber.energy_gradient = found.force_delta_gradient, found.energy_gradient
        climber.strain_gradient = found.force_delta_strain_gradient
        climber.energy_strain_gradient = found.energy_strain_gradient

    def _above(self, climber: _Climber, found: Gradients) -> float:
        return (found.evaluation.energy - self.origins[climber.parent].energy) / climber.structure.n_atoms

    def _seen(self, climber: _Climber, found: Gradients, close: Closest) -> Step:
        structure, evaluation = climber.structure, found.evaluation
        # The deformation of the cell is not a motion of the atoms in it.
        origin = self.structures[climber.parent]
        base = origin.positions
        if self.settings.strain and origin.periodic:
            base = base @ np.linalg.solve(origin.cell, structure.cell)
        return Step(
            start=climber.start,
            parent=climber.parent,
            step=climber.step,
            energy=evaluation.energy,
            force_delta=evaluation.force_delta,
            above_eV_per_atom=self._above(climber, found),
            closest_A=close.distance_A,
            closest_share=close.share,
            fmax=largest_force(evaluation),
            moved_A=float(np.linalg.norm(structure.positions - base, axis=1).max()),
            alpha=climber.alpha,
            beta=self._beta(climber),
            broken="",
            positions=structure.positions,
            cell=structure.cell,
            forces_direct=evaluation.forces_direct,
            forces_conservative=evaluation.forces_conservative,
        )

    def _end(self, climber: _Climber, reason: str, text: str) -> Ended:
        climber.ended = True
        return Ended(climber.start, climber.step, reason, text)

    def _gradients(self, structures: Sequence[Structure]) -> list[Gradients | FdcoreError]:
        return list(self.model.gradients_each(structures, method=self.settings.gradient, strain=self.settings.strain))

    # ---- saved states ----------------------------------------------------------------------------------------------

    def save(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Plain values and arrays; `state` of another Ascent takes them. Only where None was yielded last."""
        values: dict[str, Any] = {
            "taken": self.taken,
            "steps_done": self.steps_done,
            "origins": [[o.parent, o.energy, o.force_delta, o.closest, o.problem] for o in self.origins],
            "wave": [
                {name: getattr(c, name) for name in ("start", "parent", "step", "ended")}
                | {name: float(getattr(c, name)) for name in ("alpha", "beta", "best", "force_delta")}
                | {"best_step": c.best_step}
                for c in self._wave
            ],
        }
        arrays: dict[str, NDArray[Any]] = {}
        for climber in self._wave:
            if climber.ended:
                continue
            arrays[f"{climber.start}/positions"] = climber.structure.positions
            arrays[f"{climber.start}/cell"] = climber.structure.cell
            for name in GRADIENTS:
                if getattr(climber, name) is not None:
                    arrays[f"{climber.start}/{name}"] = getattr(climber, name)
        return values, arrays

    def _load(self, values: Mapping[str, Any], arrays: Arrays) -> None:
        self.taken, self.steps_done = int(values["taken"]), int(values["steps_done"])
        # Their forces were told when they were seen.
        nothing = np.zeros((0, 3))
        self.origins = [
            Origin(parent, energy, force_delta, closest, nothing, nothing, problem)
            for parent, energy, force_delta, closest, problem in values["origins"]
        ]
        for row in values["wave"]:
            climber = _Climber(structure=self.structures[row["parent"]], **row)
            if not climber.ended:
                here = {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith(f"{climber.start}/")}
                climber.structure = replace(_moved(climber.structure, here["positions"]), cell=here["cell"])
                for name in GRADIENTS:
                    setattr(climber, name, here.get(name))
            self._wave.append(climber)


GRADIENTS = ("gradient", "energy_gradient", "strain_gradient", "energy_strain_gradient")


def _moved(structure: Structure, positions: Array) -> Structure:
    return replace(structure, positions=positions, labels={}, warnings=())


def _rms(array: Array) -> float:
    return float(np.sqrt(np.mean(np.square(array))))
