"""A whole run: an optional relaxation and then leg after leg, as one generator that can be interrupted anywhere.

What is yielded is (leg, record): leg -1 is the relaxation; a record is what relaxation and simulation yield, with None where the
state is complete and `save` may be called. Taken up from a saved state, everything that follows is the same to the last bit on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdcore.dynamics import integrator
from fdcore.dynamics.settings import Bounds, Leg, Relaxation, check_can_move
from fdcore.dynamics.simulation import Ended, Frame, Sample, Simulation, Snapshot, at_rest, new_generator, run
from fdcore.errors import ComputeError
from fdcore.models.base import MEMORY_SHARE, Model
from fdcore.records import Structure
from fdcore.relax import Descent, Point, Relaxed
from fdcore.relax import Snapshot as DescentSnapshot

RELAXATION = -1
Event = Sample | Frame | Ended | Point | Relaxed | None
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Plan:
    """What is done, in order; the bounds hold for all legs."""

    legs: tuple[Leg, ...]
    relaxation: Relaxation | None = None
    bounds: Bounds = field(default_factory=Bounds)

    @property
    def steps(self) -> int:
        """Of all legs, and of the relaxation if it needs all it may take."""
        return sum(leg.steps for leg in self.legs) + (self.relaxation.steps if self.relaxation else 0)


class Course:
    """Carries out a plan for a batch of structures."""

    def __init__(
        self,
        model: Model,
        structures: Sequence[Structure],
        plan: Plan,
        seed: int,
        state: tuple[Mapping[str, Any], Arrays] | None = None,
    ) -> None:
        self.model, self.structures, self.plan = model, tuple(structures), plan
        self._check()
        self._seed = seed
        # Who ended before its time, by stage and structure; seconds of computing per leg (the relaxation first), where the present stage stands.
        self.ended: dict[tuple[int, int], Ended] = {}
        self.seconds = [0.0] * (len(plan.legs) + 1)
        # The same of the processor on a CPU: what it cost, however many others wanted the machine meanwhile.
        self.work = [0.0] * (len(plan.legs) + 1)
        self.steps_done = [0] * len(plan.legs)
        self.stage = RELAXATION if plan.relaxation is not None else 0
        # Where relaxations ended, by structure: whether they converged, and after how many iterations.
        self.relaxed: dict[int, tuple[bool, int]] = {}
        self._positions: dict[int, NDArray[np.float64]] = {}
        # Where legs ended that a later one starts from.
        self._kept: dict[int, Snapshot] = {}
        self._now: Simulation | Descent | None = None
        self._last: Snapshot | None = None
        self._resume: Snapshot | DescentSnapshot | None = None
        if state is not None:
            self._load(*state)

    def _check(self) -> None:
        checked = [self.model.check(s) for s in self.structures]
        for structure in checked:
            check_can_move(structure)
        need, free = sum(map(self.model.memory_bytes, checked)), self.model.available_bytes()
        if need > MEMORY_SHARE * free:
            raise ComputeError(
                f"{len(checked)} structures at once need about {need / 1e9:.1f} GB with {self.model.card.id}; {free / 1e9:.1f} GB are free.",
                "Simulate fewer replicas or structures at once, or a smaller cell.",
            )

    @property
    def done(self) -> int:
        """Steps done of `plan.steps`; a finished stage counts whole."""
        relaxation = self.plan.relaxation.steps if self.plan.relaxation else 0
        # Before `run` is called, a saved state says where it goes on.
        now = self._now or self._resume
        here = 0 if now is None else now.iteration if isinstance(now, Descent | DescentSnapshot) else now.step
        if self.stage == RELAXATION:
            return min(here, relaxation)
        return relaxation + sum(leg.steps for leg in self.plan.legs[: self.stage]) + here

    def run(self) -> Iterator[tuple[int, Event]]:
        """Do what is left of the plan."""
        if self.stage == RELAXATION:
            yield from self._relax()
            self.stage, self._resume = 0, None
        while self.stage < len(self.plan.legs):
            leg = self.plan.legs[self.stage]
            simulation = self._begin(leg)
            if simulation is not None:
                yield from self._follow(simulation)
            self._now, self._resume = None, None
            self.stage += 1

    # ---- stages ----------------------------------------------------------------------------------------------------

    def _relax(self) -> Iterator[tuple[int, Event]]:
        assert self.plan.relaxation is not None
        resume = self._resume
        assert resume is None or isinstance(resume, DescentSnapshot)
        if resume is not None and not resume.active:
            return
        descent = Descent(self.model, self.structures, self.plan.relaxation, resume)
        self._now = descent
        clock = self._clock()
        for event in descent.run():
            if isinstance(event, Relaxed):
                self._positions[event.system] = event.positions
                self.relaxed[event.system] = (event.converged, event.iteration)
                if not event.finite:
                    self._end(RELAXATION, Ended(event.system, event.iteration, "not-a-number", event.note))
            if event is None:
                clock = self._count(0, clock)
            yield RELAXATION, event
        self._now = None

    def _begin(self, leg: Leg) -> Simulation | None:
        if isinstance(self._resume, Snapshot):
            if not self._resume.active:
                self._keep(self._resume)
                return None
            return Simulation(self.model, self.structures, leg, self._resume)
        before = self._last if leg.start is None else self._kept[leg.start]
        if before is not None:
            if not before.active:
                return None
            atoms = {name: before.atoms[name] for name in ("positions", "momenta")}
            if integrator(leg.integrator).FIXED_DOF:
                # Noise (Langevin) leaves the whole moving; here that is no degree of freedom, and would be taken for heat.
                atoms["momenta"] = at_rest([self.structures[k] for k in before.active], atoms["momenta"])
            # The step, the thermostat and the neighbour list begin anew.
            start = Snapshot(0, before.active, atoms, {}, before.generator, None)
            return Simulation(self.model, self.structures, leg, start)
        active = [k for k in range(len(self.structures)) if (RELAXATION, k) not in self.ended]
        if not active:
            return None
        positions = np.concatenate([self._positions.get(k, self.structures[k].positions) for k in active])
        generator = new_generator(self._seed, self.model.device)
        return Simulation.start(self.model, self.structures, leg, generator, active=active, positions=positions)

    def _follow(self, simulation: Simulation) -> Iterator[tuple[int, Event]]:
        self._now = simulation
        clock = self._clock()
        for event in run(simulation, self.plan.bounds):
            if isinstance(event, Ended):
                self._end(self.stage, event)
            if event is None:
                clock = self._count(self.stage + 1, clock)
                self.steps_done[self.stage] = simulation.step
            yield self.stage, event
            if event is None and self._out_of_time() and not simulation.done:
                for system in simulation.active:
                    ended = Ended(system, simulation.step, "wall-time", self._time_is_up())
                    self._end(self.stage, ended)
                    yield self.stage, ended
                simulation.active = ()
                break
        # With nobody left there is nothing to go on from, and the arrays of the last ones stay as they were.
        self._keep(simulation.snapshot())

    def _keep(self, snapshot: Snapshot) -> None:
        self._last = snapshot
        if any(leg.start == self.stage for leg in self.plan.legs):
            self._kept[self.stage] = snapshot

    def _end(self, stage: int, ended: Ended) -> None:
        self.ended[stage, ended.system] = ended

    def _clock(self) -> tuple[float, float]:
        wall = time.perf_counter()
        return wall, time.process_time() if self.model.device == "cpu" else wall

    def _count(self, slot: int, since: tuple[float, float]) -> tuple[float, float]:
        now = self._clock()
        self.seconds[slot] += now[0] - since[0]
        self.work[slot] += now[1] - since[1]
        return now

    def _out_of_time(self) -> bool:
        limit = self.plan.bounds.wall_seconds
        return limit is not None and sum(self.seconds) > limit

    def _time_is_up(self) -> str:
        return f"The limit of {self.plan.bounds.wall_seconds:g} s of computing was reached."

    # ---- saved states ----------------------------------------------------------------------------------------------

    def save(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Plain values and arrays; `state` of another Course takes them. Only where None was yielded last."""
        values: dict[str, Any] = {
            "stage": self.stage,
            "seconds": self.seconds,
            "work": self.work,
            "steps_done": self.steps_done,
            "ended": [{"stage": stage, **asdict(e)} for (stage, _), e in self.ended.items()],
            "relaxed": [[system, *how] for system, how in self.relaxed.items()],
            "kept": {},
        }
        arrays = {f"relaxed/{k}": v for k, v in self._positions.items()}
        for stage, snapshot in self._kept.items():
            values["kept"][str(stage)] = _put(arrays, f"kept{stage}", snapshot)
        if isinstance(self._now, Descent):
            now = self._now.snapshot()
            values["descent"] = {"iteration": now.iteration, "active": now.active}
            arrays |= {f"descent/{k}": v for k, v in now.tensors.items()}
            if now.reference is not None:
                arrays["descent.reference"] = now.reference
        elif self._now is not None:
            values["now"] = _put(arrays, "now", self._now.snapshot())
        return values, arrays

    def _load(self, values: Mapping[str, Any], arrays: Arrays) -> None:
        self.stage = int(values["stage"])
        self.seconds, self.work = list(values["seconds"]), list(values["work"])
        self.steps_done = list(values["steps_done"])
        for row in values["ended"]:
            ended = Ended(row["system"], row["step"], row["reason"], row["text"])
            self.ended[row["stage"], ended.system] = ended
        self.relaxed = {system: (converged, iteration) for system, converged, iteration in values.get("relaxed", [])}
        self._positions = {int(k[8:]): v for k, v in arrays.items() if k.startswith("relaxed/")}
        self._kept = {int(k): _take(arrays, f"kept{k}", v) for k, v in values["kept"].items()}
        if "descent" in values:
            saved = values["descent"]
            tensors = {k[8:]: v for k, v in arrays.items() if k.startswith("descent/")}
            reference = arrays.get("descent.reference")
            self._resume = DescentSnapshot(saved["iteration"], tuple(saved["active"]), tensors, reference)
        elif "now" in values:
            self._resume = _take(arrays, "now", values["now"])


def _put(arrays: dict[str, NDArray[Any]], name: str, snapshot: Snapshot) -> dict[str, Any]:
    arrays |= {f"{name}/atoms/{k}": v for k, v in snapshot.atoms.items()}
    arrays |= {f"{name}/systems/{k}": v for k, v in snapshot.systems.items()}
    arrays[f"{name}/generator"] = snapshot.generator
    if snapshot.reference is not None:
        arrays[f"{name}/reference"] = snapshot.reference
    return {"step": snapshot.step, "active": snapshot.active}


def _take(arrays: Arrays, name: str, values: Mapping[str, Any]) -> Snapshot:
    def under(prefix: str) -> dict[str, NDArray[Any]]:
        return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}

    return Snapshot(
        step=int(values["step"]),
        active=tuple(values["active"]),
        atoms=under(f"{name}/atoms/"),
        systems=under(f"{name}/systems/"),
        generator=arrays[f"{name}/generator"],
        reference=arrays.get(f"{name}/reference"),
    )
