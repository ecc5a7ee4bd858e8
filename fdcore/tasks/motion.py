"""What relaxation, dynamics and the advisor have in common: one course of relaxation and legs, recorded in the same tables.

series      one row per structure and recorded step of a leg; NaN in the columns of U_Delta at steps where it was not due
relaxation  one row per structure and iteration
frames      one row per kept frame (leg -1: the relaxed structure); says which rows of `atoms` are its own
atoms       positions, velocities and both forces of the frames

Notes say which structure ended before its time and why, and where a relaxation ended. The result says how many steps were done.
Everything else is a pure function of these (fdcore/motion.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fdcore.dynamics.settings import default_timestep_fs
from fdcore.store.series import Checkpoint, Column, Tables
from fdcore.tasks.base import Job, Note, Progress, Record, Rows, Run, Savable

if TYPE_CHECKING:
    from fdcore.course import Course, Plan
    from fdcore.dynamics.simulation import Frame, Sample
    from fdcore.records import Structure
    from fdcore.relax import Relaxed

RELAXATION = -1


def systems_of(structures: Sequence[Structure], replicas: int) -> tuple[Structure, ...]:
    """Every structure `replicas` times, one after the other: system k is structure k // replicas."""
    return tuple(s for s in structures for _ in range(replicas))


def elements_of(structures: Sequence[Structure]) -> np.ndarray:
    """Atomic numbers in the run, ascending: the columns of `temperature_by_element_K`."""
    return np.unique(np.concatenate([s.numbers for s in structures])) if structures else np.zeros(0, np.int64)


def motion_tables(structures: Sequence[Structure]) -> Tables:
    """See above."""
    return {
        "series": {
            "leg": Column("<i2"),
            "system": Column("<i4"),
            "step": Column("<i8"),
            "time_ps": Column(),
            "energy_potential_eV": Column(),
            "energy_kinetic_eV": Column(),
            "conserved_eV": Column(),
            "temperature_K": Column(),
            "temperature_by_element_K": Column("<f8", (len(elements_of(structures)),)),
            # sqrt(amu eV)
            "net_momentum": Column(),
            # Infinite where no two atoms are within the reach of the model.
            "closest_A": Column(),
            "force_delta_eV_per_A": Column(),
            "worst_atom": Column("<i4"),
            "worst_atom_eV_per_A": Column(),
        },
        "relaxation": {
            "system": Column("<i4"),
            "iteration": Column("<i8"),
            "energy_eV": Column(),
            "fmax_eV_per_A": Column(),
            "fmax_other_eV_per_A": Column(),
            "force_delta_eV_per_A": Column(),
        },
        "frames": {
            "leg": Column("<i2"),
            "system": Column("<i4"),
            "step": Column("<i8"),
            "time_ps": Column(),
            "first_atom": Column("<i8"),
            "n_atoms": Column("<i8"),
        },
        "atoms": {
            "position_A": Column("<f8", (3,)),
            "velocity_A_per_fs": Column("<f8", (3,)),
            "forces_direct_eV_per_A": Column("<f4", (3,)),
            "forces_conservative_eV_per_A": Column("<f4", (3,)),
        },
    }


def carry_out(job: Job, structures: Sequence[Structure], plan: Plan) -> Run:
    """Do what is left of a plan; a task's `run` is this with its own plan."""
    from fdcore.course import Course

    model = job.needs_model()
    state = None if job.state is None else (job.state.values, job.state.arrays)
    course = Course(model, structures, plan, job.spec.seed, state)
    recorder = _Recorder(len(plan.legs) - 1, {} if job.state is None else job.state.values)
    total = plan.steps
    yield Progress(course.done, total, _text(course, plan))
    for leg, event in course.run():
        yield from recorder.records(leg, event)
        if event is None:
            yield Progress(course.done, total, _text(course, plan))
            yield Savable(lambda: _checkpoint(course, recorder))
    yield Progress(total, total, _text(course, plan))
    return {
        "steps_done": course.steps_done,
        "steps_asked": [leg.steps for leg in plan.legs],
        # What a list of runs says of them, without reading what was recorded.
        "systems": len(structures),
        "relaxed": list(course.relaxed.values()),
        "ended": sorted(e.reason for e in course.ended.values()),
        "force_delta_mean_eV_per_A": recorder.mean,
        # The relaxation first, then the legs.
        "seconds": course.seconds,
        "processor_seconds": course.work,
        "device": model.device,
        "weights_sha256": model.weights_sha256,
    }


def _checkpoint(course: Course, recorder: _Recorder) -> Checkpoint:
    values, arrays = course.save()
    return Checkpoint({**values, **recorder.save()}, arrays)


def _text(course: Course, plan: Plan) -> str:
    if course.stage == RELAXATION:
        return f"relaxing, iteration {course.done} of at most {plan.relaxation.steps if plan.relaxation else 0}"
    if course.stage >= len(plan.legs):
        return "done"
    leg = plan.legs[course.stage]
    before = sum(other.steps for other in plan.legs[: course.stage])
    step = course.done - before - (plan.relaxation.steps if plan.relaxation else 0)
    return f"{leg.name}: {step * leg.timestep_fs * 1e-3:.3g} of {leg.length_ps:.3g} ps"


class _Recorder:
    """Turns what happens into rows; knows how many rows of `atoms` there are, and the mean U_Delta of the last leg."""

    def __init__(self, last: int, state: Mapping[str, Any]) -> None:
        self._last = last
        self.atoms = int(state.get("atoms", 0))
        self._sum, self._count = float(state.get("force_delta_sum", 0.0)), int(state.get("force_delta_count", 0))

    def save(self) -> dict[str, Any]:
        return {"atoms": self.atoms, "force_delta_sum": self._sum, "force_delta_count": self._count}

    @property
    def mean(self) -> float | None:
        """eV/Å, over all structures and monitored steps."""
        return self._sum / self._count if self._count else None

    def records(self, leg: int, event: Any) -> Iterator[Record]:
        kind = type(event).__name__
        if kind == "Sample":
            yield from self._sample(leg, event)
        elif kind == "Frame":
            yield from self._frame(leg, event)
        elif kind == "Ended":
            yield Note(
                {"leg": leg, "system": event.system, "step": event.step, "ended": event.reason, "text": event.text}
            )
        elif kind == "Point" and np.isfinite(event.energy):
            yield Rows(
                "relaxation",
                {
                    "system": [event.system],
                    "iteration": [event.iteration],
                    "energy_eV": [event.energy],
                    "fmax_eV_per_A": [event.fmax],
                    "fmax_other_eV_per_A": [_or_nan(event.fmax_other)],
                    "force_delta_eV_per_A": [_or_nan(event.force_delta)],
                },
            )
        elif kind == "Relaxed":
            yield from self._relaxed(event)

    def _sample(self, leg: int, sample: Sample) -> Iterator[Record]:
        # What has blown up is said in a note, not drawn.
        kept = np.flatnonzero(sample.finite)
        n = len(kept)
        if not n:
            return
        seen = sample.force_delta[kept]
        if leg == self._last and np.isfinite(seen).any():
            self._sum += float(np.nansum(seen))
            self._count += int(np.isfinite(seen).sum())
        yield Rows(
            "series",
            {
                "leg": np.full(n, leg, np.int16),
                "system": sample.systems[kept].astype(np.int32),
                "step": np.full(n, sample.step),
                "time_ps": np.full(n, sample.time_ps),
                "energy_potential_eV": sample.energy_potential[kept],
                "energy_kinetic_eV": sample.energy_kinetic[kept],
                "conserved_eV": sample.conserved[kept],
                "temperature_K": sample.temperature_K[kept],
                "temperature_by_element_K": sample.temperature_by_element_K[kept],
                "net_momentum": sample.net_momentum[kept],
                "closest_A": sample.closest_A[kept],
                "force_delta_eV_per_A": seen,
                "worst_atom": sample.worst_atom[kept].astype(np.int32),
                "worst_atom_eV_per_A": sample.worst[kept],
            },
        )

    def _frame(self, leg: int, frame: Frame) -> Iterator[Record]:
        if not np.isfinite(frame.positions).all():
            return
        yield from self._atoms(frame.positions, frame.velocities, frame.forces_direct, frame.forces_conservative)
        yield self._frame_row(leg, frame.system, frame.step, frame.time_ps, len(frame.positions))

    def _relaxed(self, relaxed: Relaxed) -> Iterator[Record]:
        yield Note(
            {
                "leg": RELAXATION,
                "system": relaxed.system,
                "step": relaxed.iteration,
                "converged": relaxed.converged,
                "text": relaxed.note,
            }
        )
        if relaxed.finite:
            still = np.zeros_like(relaxed.positions)
            yield from self._atoms(relaxed.positions, still, relaxed.forces_direct, relaxed.forces_conservative)
            yield self._frame_row(RELAXATION, relaxed.system, relaxed.iteration, 0.0, len(relaxed.positions))

    def _atoms(self, positions: Any, velocities: Any, direct: Any, conservative: Any) -> Iterator[Record]:
        # Atoms first: a row of `frames` that can be read promises that its atoms can be, too.
        yield Rows(
            "atoms",
            {
                "position_A": positions,
                "velocity_A_per_fs": velocities,
                "forces_direct_eV_per_A": np.asarray(direct, np.float32),
                "forces_conservative_eV_per_A": np.asarray(conservative, np.float32),
            },
        )

    def _frame_row(self, leg: int, system: int, step: int, time_ps: float, n_atoms: int) -> Rows:
        first, self.atoms = self.atoms, self.atoms + n_atoms
        return Rows(
            "frames",
            {
                "leg": np.array([leg], np.int16),
                "system": np.array([system], np.int32),
                "step": [step],
                "time_ps": [time_ps],
                "first_atom": [first],
                "n_atoms": [n_atoms],
            },
        )


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def leg_timestep(structures: Sequence[Structure], asked: float | None) -> float:
    """The time step asked for, or the one that the lightest atom of the run needs."""
    return default_timestep_fs(elements_of(structures)) if asked is None else asked
