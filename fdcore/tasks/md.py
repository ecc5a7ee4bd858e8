"""Molecular dynamics as a task: an optional relaxation, an optional equilibration, and a production run, for a batch of replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fdcore.dynamics.settings import Bounds, DriverName, Ensemble, Leg, Optimiser, Relaxation, Thermostat, whole
from fdcore.spec import Spec
from fdcore.store.series import Tables
from fdcore.tasks.base import Job, Parameters, Run
from fdcore.tasks.motion import carry_out, leg_timestep, motion_tables, systems_of

if TYPE_CHECKING:
    from fdcore.course import Plan
    from fdcore.records import Structure

MOST_REPLICAS = 1024


@dataclass(frozen=True)
class MdParameters(Parameters):
    """`Leg`, `Relaxation` and `Bounds` say what each means.

    timestep_fs None: 0.5 with hydrogen, else 1. replicas: as many runs of each structure, with momenta of their own.
    relax_fmax_eV_per_A None: no relaxation; it follows F_nc for the driver "direct", else F_c.
    equilibrate_steps: before production, with the thermostat at the same temperature and the same driver; 0: none.
    """

    steps: int = 1000
    ensemble: Ensemble = "nve"
    driver: DriverName = "direct"
    timestep_fs: float | None = None
    temperature_K: float = 300.0
    thermostat: Thermostat = "nose-hoover"
    thermostat_time_fs: float | None = None
    mts_stride: int = 8
    monitor_every: int = 10
    record_every: int | None = None
    frame_every: int | None = None
    replicas: int = 1
    relax_fmax_eV_per_A: float | None = None
    relax_optimiser: Optimiser = "fire"
    relax_steps: int = 500
    equilibrate_steps: int = 0
    stop_above: float | None = None
    stop_above_atom: float | None = None
    stop_temperature_K: float | None = 10_000.0
    stop_closest: float = 0.4
    wall_seconds: float | None = None

    def __post_init__(self) -> None:
        whole("replicas", self.replicas, 1, MOST_REPLICAS)
        whole("equilibrate-steps", self.equilibrate_steps, 0, 100_000_000)
        # Every other rule is that of the records it becomes; any time step that is allowed shows them.
        self.plan_parts(1.0)

    def plan_parts(self, timestep_fs: float) -> tuple[tuple[Leg, ...], Relaxation | None, Bounds]:
        """Legs, relaxation and bounds with this time step where none is given."""
        shared = {
            "timestep_fs": timestep_fs if self.timestep_fs is None else self.timestep_fs,
            "temperature_K": self.temperature_K,
            "driver": self.driver,
            "thermostat": self.thermostat,
            "thermostat_time_fs": self.thermostat_time_fs,
            "mts_stride": self.mts_stride,
            "monitor_every": self.monitor_every,
            "record_every": self.record_every,
        }
        legs = [Leg(**shared, steps=self.steps, ensemble=self.ensemble, frame_every=self.frame_every)]
        if self.equilibrate_steps:
            legs.insert(
                0, Leg(**shared, steps=self.equilibrate_steps, ensemble="nvt", frame_every=0, name="equilibration")
            )
        relaxation = None
        if self.relax_fmax_eV_per_A is not None:
            relaxation = Relaxation(
                driver="direct" if self.driver == "direct" else "conservative",
                optimiser=self.relax_optimiser,
                fmax_eV_per_A=self.relax_fmax_eV_per_A,
                steps=self.relax_steps,
            )
        bounds = Bounds(
            above=self.stop_above,
            above_atom=self.stop_above_atom,
            temperature_K=self.stop_temperature_K,
            closest=self.stop_closest,
            wall_seconds=self.wall_seconds,
        )
        return tuple(legs), relaxation, bounds


class MdTask:
    name = "md"
    unit = "step"

    def check(self, spec: Spec) -> None:
        MdParameters.of(spec)

    def tables(self, spec: Spec, structures: Sequence[Structure]) -> Tables:
        return motion_tables(structures)

    def run(self, job: Job) -> Run:
        parameters = MdParameters.of(job.spec)
        structures = systems_of(job.structures, parameters.replicas)
        return (yield from carry_out(job, structures, plan_of(parameters, job.structures)))


def plan_of(parameters: MdParameters, structures: Sequence[Structure]) -> Plan:
    """What is done for these structures."""
    from fdcore.course import Plan

    legs, relaxation, bounds = parameters.plan_parts(leg_timestep(structures, parameters.timestep_fs))
    return Plan(legs, relaxation, bounds)
