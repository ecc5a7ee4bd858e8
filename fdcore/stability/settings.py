"""What is measured of every model: a frozen record without arrays, so that whoever submits a run can check it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fdcore.dynamics.settings import Bounds, Leg, Relaxation, between, whole
from fdcore.errors import UsageError

MOST_SIGMAS, MOST_SEEDS = 20, 64


@dataclass(frozen=True)
class Stability:
    """NVE driven by F_nc from the structures as they are given, `seeds` times each, all models with the same momenta; a relaxation along
    F_nc; and U_Delta and both errors on displaced copies.

    picoseconds : of every NVE run. timestep_fs None: 0.5 with hydrogen, else 1. temperature_K : of the first momenta (a crystal at
        its minimum then settles at about half of it).
    sigmas_A : standard deviations of the displacements, per component: the bands; per_sigma copies of every structure in each.
    relax_fmax_eV_per_A, relax_steps : of the relaxation along F_nc.
    """

    picoseconds: float = 10.0
    timestep_fs: float | None = None
    temperature_K: float = 300.0
    seeds: int = 5
    sigmas_A: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.3)
    per_sigma: int = 10
    relax_fmax_eV_per_A: float = 0.05
    relax_steps: int = 300

    def __post_init__(self) -> None:
        between("picoseconds", self.picoseconds, 1e-3, 1e5, "ps")
        whole("seeds", self.seeds, 1, MOST_SEEDS)
        whole("per-sigma", self.per_sigma, 1, 1000)
        if (
            isinstance(self.sigmas_A, str)
            or not isinstance(self.sigmas_A, (list, tuple))
            or len(self.sigmas_A) > MOST_SIGMAS
        ):
            raise UsageError(f"sigmas are {self.sigmas_A!r}; at most {MOST_SIGMAS} numbers are needed.")
        object.__setattr__(self, "sigmas_A", tuple(float(s) if isinstance(s, int) else s for s in self.sigmas_A))
        for sigma in self.sigmas_A:
            between("sigma", sigma, 0.0, 2.0, "Å")
        # The rest are the rules of the records that they become.
        self.leg(1.0)
        self.relaxation()

    def leg(self, timestep_fs: float) -> Leg:
        """With this time step where none is given. Twenty rows per picosecond, and U_Delta in every tenth of them."""
        step = timestep_fs if self.timestep_fs is None else self.timestep_fs
        steps = max(1, math.ceil(1000 * self.picoseconds / step - 1e-9))
        record = max(1, min(steps, round(50 / step)))
        return Leg(
            steps=steps,
            ensemble="nve",
            driver="direct",
            timestep_fs=step,
            temperature_K=self.temperature_K,
            record_every=record,
            monitor_every=min(steps, 10 * record),
            frame_every=0,
            name="stability",
        )

    def relaxation(self) -> Relaxation:
        return Relaxation("direct", "fire", self.relax_fmax_eV_per_A, self.relax_steps, 10)

    @staticmethod
    def bounds() -> Bounds:
        """A run that has blown up says no more."""
        return Bounds(temperature_K=10_000.0, closest=0.4)
