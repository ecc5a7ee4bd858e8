"""Relaxation as a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fdcore.dynamics.settings import Optimiser, Relaxation
from fdcore.spec import Spec
from fdcore.store.series import Tables
from fdcore.tasks.base import Job, Parameters, Run
from fdcore.tasks.motion import carry_out, motion_tables

if TYPE_CHECKING:
    from fdcore.records import Structure


@dataclass(frozen=True)
class RelaxParameters(Parameters):
    """As `Relaxation`."""

    driver: Literal["direct", "conservative"] = "direct"
    optimiser: Optimiser = "fire"
    fmax_eV_per_A: float = 0.05
    steps: int = 500
    monitor_every: int = 1

    def __post_init__(self) -> None:
        self.relaxation()

    def relaxation(self) -> Relaxation:
        return Relaxation(self.driver, self.optimiser, self.fmax_eV_per_A, self.steps, self.monitor_every)


class RelaxTask:
    name = "relax"
    unit = "iteration"

    def check(self, spec: Spec) -> None:
        RelaxParameters.of(spec)

    def tables(self, spec: Spec, structures: Sequence[Structure]) -> Tables:
        return motion_tables(structures)

    def run(self, job: Job) -> Run:
        from fdcore.course import Plan

        return (yield from carry_out(job, job.structures, Plan((), RelaxParameters.of(job.spec).relaxation())))
