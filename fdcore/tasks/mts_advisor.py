"""How rarely may the conservative force correct? The same start, driven once by F_c, once by F_nc, and by several strides.

All arms begin at the last state of one equilibration under F_c, with the same velocities, and run NVE; what is compared is then
the driver alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fdcore.dynamics.settings import Bounds, Leg, Relaxation, Thermostat, between, whole
from fdcore.errors import UsageError
from fdcore.spec import Spec
from fdcore.store.series import Tables
from fdcore.tasks.base import Job, Parameters, Run
from fdcore.tasks.motion import carry_out, leg_timestep, motion_tables, systems_of

if TYPE_CHECKING:
    from fdcore.course import Plan
    from fdcore.records import Structure

# The first leg, at whose end all arms begin.
EQUILIBRATION = 0


@dataclass(frozen=True)
class AdvisorParameters(Parameters):
    """steps per arm, raised to a whole number of its strides; equilibrate_steps before them; tolerance: what the drift of an arm may
    differ from that of the conservative one, in meV/atom/ps."""

    steps: int = 2000
    strides: tuple[int, ...] = (1, 2, 4, 8, 16)
    timestep_fs: float | None = None
    temperature_K: float = 300.0
    thermostat: Thermostat = "nose-hoover"
    equilibrate_steps: int = 500
    relax_fmax_eV_per_A: float | None = 0.05
    relax_steps: int = 200
    replicas: int = 1
    tolerance_meV_per_atom_per_ps: float = 0.5

    def __post_init__(self) -> None:
        given = self.strides
        if not isinstance(given, list | tuple) or not 1 <= len(given) <= 12:
            raise UsageError(f"strides are {given!r}; one to twelve whole numbers are needed.")
        for stride in given:
            whole("a stride", stride, 1, 64)
        object.__setattr__(self, "strides", tuple(sorted(set(given))))
        whole("replicas", self.replicas, 1, 1024)
        whole("steps", self.steps, 1, 100_000_000)
        between("tolerance", self.tolerance_meV_per_atom_per_ps, 1e-6, 1e6, "meV/atom/ps")
        self.plan_parts(1.0)

    def arms(self) -> list[str]:
        """Names of the legs after the equilibration, in their order."""
        return ["conservative", *(f"M = {m}" for m in self.strides), "direct"]

    def plan_parts(self, timestep_fs: float) -> tuple[tuple[Leg, ...], Relaxation | None]:
        step = timestep_fs if self.timestep_fs is None else self.timestep_fs
        rarest = max(self.strides)
        shared = {"timestep_fs": step, "temperature_K": self.temperature_K, "frame_every": 0}
        # Every arm records as rarely as the one with the longest stride must: what is compared is what drives.
        monitor = {"monitor_every": max(rarest, self.steps // 50), "record_every": rarest}
        legs = [
            Leg(
                **shared,
                **monitor,
                steps=self.equilibrate_steps,
                ensemble="nvt",
                driver="conservative",
                thermostat=self.thermostat,
                name="equilibration",
            )
        ]
        arm = {**shared, **monitor, "ensemble": "nve", "start": EQUILIBRATION}
        legs.append(Leg(**arm, steps=self.steps, driver="conservative", name="conservative"))
        for m in self.strides:
            steps = m * math.ceil(self.steps / m)
            legs.append(Leg(**arm, steps=steps, driver="mts", mts_stride=m, name=f"M = {m}"))
        legs.append(Leg(**arm, steps=self.steps, driver="direct", name="direct"))
        relaxation = None
        if self.relax_fmax_eV_per_A is not None:
            relaxation = Relaxation("conservative", "fire", self.relax_fmax_eV_per_A, self.relax_steps)
        return tuple(legs), relaxation


class MtsAdvisorTask:
    name = "mts-advisor"
    unit = "step"

    def check(self, spec: Spec) -> None:
        AdvisorParameters.of(spec)
        if spec.n_structures > 1:
            raise UsageError("The advisor looks at one structure at a time.", "Give one file with one structure.")

    def tables(self, spec: Spec, structures: Sequence[Structure]) -> Tables:
        return motion_tables(structures)

    def run(self, job: Job) -> Run:
        parameters = AdvisorParameters.of(job.spec)
        structures = systems_of(job.structures, parameters.replicas)
        return (yield from carry_out(job, structures, plan_of(parameters, job.structures)))


def plan_of(parameters: AdvisorParameters, structures: Sequence[Structure]) -> Plan:
    """What is done for this structure."""
    from fdcore.course import Plan

    legs, relaxation = parameters.plan_parts(leg_timestep(structures, parameters.timestep_fs))
    return Plan(legs, relaxation, Bounds())
