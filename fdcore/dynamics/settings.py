"""What a simulation is asked to do: frozen records without torch, so that whoever submits a run can check them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fdcore.errors import UnsupportedStructureError, UsageError

# The command line shows these names before anybody needs arrays.
if TYPE_CHECKING:
    from collections.abc import Container

    from fdcore.records import Structure

Ensemble = Literal["nve", "nvt"]
Thermostat = Literal["nose-hoover", "langevin", "vrescale"]
DriverName = Literal["direct", "conservative", "mts"]
Optimiser = Literal["fire", "lbfgs"]
ENSEMBLES: tuple[Ensemble, ...] = ("nve", "nvt")
THERMOSTATS: tuple[Thermostat, ...] = ("nose-hoover", "langevin", "vrescale")
DRIVERS: tuple[DriverName, ...] = ("direct", "conservative", "mts")
OPTIMISERS: tuple[Optimiser, ...] = ("fire", "lbfgs")

# Half a femtosecond follows the vibrations of hydrogen (10 fs); without it they are at least twice as slow.
TIMESTEP_WITH_HYDROGEN_FS = 0.5
TIMESTEP_FS = 1.0
# Relaxation times (fs): a gentle one for deterministic and rescaling thermostats, a gentler one for friction.
THERMOSTAT_TIME_FS: dict[Thermostat, float] = {"nose-hoover": 100.0, "vrescale": 100.0, "langevin": 500.0}
MOST_STEPS = 100_000_000
# A simulation with so many rows is drawn and downloaded well; beyond it rows are recorded less often by default.
ROWS_WANTED = 20_000
FRAMES_WANTED = 400


@dataclass(frozen=True)
class Relaxation:
    """Move the atoms downhill along one force until no atom feels more than fmax (eV/Å) of it, cell fixed.

    U_Delta is computed every `monitor_every` iterations and at the end.
    """

    driver: Literal["direct", "conservative"] = "direct"
    optimiser: Optimiser = "fire"
    fmax_eV_per_A: float = 0.05
    steps: int = 500
    monitor_every: int = 5
    name: str = "relaxation"

    def __post_init__(self) -> None:
        one_of("driver of a relaxation", self.driver, ("direct", "conservative"))
        one_of("optimiser", self.optimiser, OPTIMISERS)
        between("fmax", self.fmax_eV_per_A, 1e-6, 10.0, "eV/Å")
        whole("steps of a relaxation", self.steps, 1, 100_000)
        whole("monitor-every", self.monitor_every, 1, 100_000)


@dataclass(frozen=True)
class Leg:
    """So many steps in one ensemble under one driver, cell fixed.

    driver : "direct" F_nc, "conservative" F_c, "mts" F_nc corrected by F_c - F_nc every mts_stride steps.
    monitor_every, record_every, frame_every : steps between evaluations of U_Delta, rows of the series, frames (0: none);
        raised to whole multiples of the stride, where the state is complete.
    start : index of the leg at whose end this one starts; None: the one before it.
    """

    steps: int
    timestep_fs: float
    temperature_K: float = 300.0
    ensemble: Ensemble = "nve"
    driver: DriverName = "direct"
    thermostat: Thermostat = "nose-hoover"
    thermostat_time_fs: float | None = None
    mts_stride: int = 8
    monitor_every: int = 10
    record_every: int | None = None
    frame_every: int | None = None
    name: str = "production"
    start: int | None = None

    def __post_init__(self) -> None:
        one_of("ensemble", self.ensemble, ENSEMBLES)
        one_of("driver", self.driver, DRIVERS)
        one_of("thermostat", self.thermostat, THERMOSTATS)
        whole("steps", self.steps, 1, MOST_STEPS)
        between("timestep", self.timestep_fs, 1e-3, 20.0, "fs")
        between("temperature", self.temperature_K, 1e-3, 100_000.0, "K")
        if self.thermostat_time_fs is not None:
            between("thermostat time", self.thermostat_time_fs, self.timestep_fs, 1e6, "fs")
        whole("mts-stride", self.mts_stride, 1, 64)
        whole("monitor-every", self.monitor_every, 1, MOST_STEPS)
        for what, value in (("record-every", self.record_every), ("frame-every", self.frame_every)):
            if value is not None:
                whole(what, value, 0 if what == "frame-every" else 1, MOST_STEPS)
        if self.steps % self.stride:
            raise UsageError(
                f"{self.steps} steps cannot be done in strides of {self.stride}.",
                f"Take {self.stride * math.ceil(self.steps / self.stride)} steps, or another --mts-stride.",
            )

    @property
    def stride(self) -> int:
        """Steps between two complete states."""
        return self.mts_stride if self.driver == "mts" else 1

    @property
    def integrator(self) -> str:
        """Its name in `fdcore.dynamics.INTEGRATORS`."""
        return "nve" if self.ensemble == "nve" else self.thermostat

    @property
    def relaxation_time_fs(self) -> float:
        """Of the thermostat."""
        return self.thermostat_time_fs or max(THERMOSTAT_TIME_FS[self.thermostat], 10 * self.timestep_fs)

    @property
    def length_ps(self) -> float:
        return self.steps * self.timestep_fs * 1e-3

    def cadence(self) -> tuple[int, int, int]:
        """Steps between rows, evaluations of U_Delta, and frames (0: none), each a multiple of the stride."""
        record = self.record_every or max(1, self.steps // ROWS_WANTED)
        frame = max(self.monitor_every, self.steps // FRAMES_WANTED) if self.frame_every is None else self.frame_every
        return self._complete(record), self._complete(self.monitor_every), self._complete(frame) if frame else 0

    def _complete(self, steps: int) -> int:
        return self.stride * math.ceil(steps / self.stride)


@dataclass(frozen=True)
class Bounds:
    """When a structure's simulation ends by itself. None, or 0 for the distance: not asked for.

    above, above_atom : U_Delta and the largest u_i in eV/Å. temperature_K : of the whole structure.
    closest : shortest distance between two atoms as a share of the sum of their covalent radii.
    wall_seconds : of computing, for all structures together, over all attempts.
    """

    above: float | None = None
    above_atom: float | None = None
    temperature_K: float | None = 10_000.0
    closest: float = 0.4
    wall_seconds: float | None = None

    def __post_init__(self) -> None:
        for what, value in (
            ("stop-above", self.above),
            ("stop-above-atom", self.above_atom),
            ("stop-temperature", self.temperature_K),
            ("wall-seconds", self.wall_seconds),
        ):
            if value is not None:
                between(what, value, 0.0, math.inf, "")
        between("stop-closest", self.closest, 0.0, 2.0, "of the sum of covalent radii")


def default_timestep_fs(numbers: Container[int]) -> float:
    """0.5 fs where there is hydrogen, else 1 fs; `numbers` are atomic numbers."""
    return TIMESTEP_WITH_HYDROGEN_FS if 1 in numbers else TIMESTEP_FS


def check_can_move(structure: Structure) -> None:
    """UnsupportedStructureError for what cannot be simulated."""
    if structure.n_atoms < 2:
        raise UnsupportedStructureError(
            f"{structure.formula} is a single atom: it has no motion against others.",
            "Simulate at least two atoms, or a supercell.",
        )


def one_of(what: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"There is no {what} {value!r}.", f"Use {', '.join(allowed)}.")


def whole(what: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"{what} is {value!r}; a whole number from {low:,} to {high:,} is needed.")


def between(what: str, value: object, low: float, high: float, unit: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        top = f" to {high:g}" if math.isfinite(high) else " on"
        raise UsageError(f"{what} is {value!r}; a number from {low:g}{top} {unit}".rstrip() + " is needed.")
