"""Constant temperature: Langevin dynamics, split as BAOAB (Leimkuhler & Matthews 2013), from torch-sim's parts. Stochastic.

    B  p <- p + dt/2 F
    A  r <- r + dt/2 p / m
    O  p <- c p + sqrt(kT m (1 - c^2)) R,   c = exp(-dt / tau),  R ~ N(0, 1)
    A, B

torch-sim's own step is these parts in this order (a test compares them bit for bit); they are called one by one because the
energy that O puts in has to be counted.

Conserved: E + K - sum of that energy (Bussi & Parrinello 2007).
"""

from __future__ import annotations

from typing import cast

import torch
from torch_sim.integrators.md import MDState, momentum_step, position_step
from torch_sim.integrators.nvt import _ou_step

from fdcore.dynamics.driver import Driver
from fdcore.dynamics.heat import HeatedState
from fdcore.dynamics.observables import kinetic_energy
from fdcore.dynamics.settings import Leg
from fdcore.units import FS, KB

# Noise moves the centre of mass, too.
FIXED_DOF = 0


def init(state: MDState, leg: Leg) -> MDState:
    del leg
    return HeatedState.from_state(
        state, momenta=state.momenta, energy=state.energy, forces=state.forces, heat=torch.zeros_like(state.energy)
    )


def step(state: MDState, driver: Driver, leg: Leg) -> MDState:
    known = cast(HeatedState, state)
    dt = torch.as_tensor(leg.timestep_fs * FS, dtype=state.dtype, device=state.device)
    kT = torch.as_tensor(leg.temperature_K * KB, dtype=state.dtype, device=state.device)
    known = position_step(momentum_step(known, dt / 2), dt / 2)
    before = kinetic_energy(known)
    known = cast(HeatedState, _ou_step(known, dt, kT, 1 / (leg.relaxation_time_fs * FS)))
    known.heat = known.heat + kinetic_energy(known) - before
    known = position_step(known, dt / 2)
    found = driver(known)
    known.energy, known.forces = found["energy"], found["forces"]
    return momentum_step(known, dt / 2)


def conserved(state: MDState, leg: Leg) -> torch.Tensor:
    """(S,) eV."""
    del leg
    return state.energy + kinetic_energy(state) - cast(HeatedState, state).heat


def memory(state: MDState) -> dict[str, torch.Tensor]:
    return {"heat": cast(HeatedState, state).heat}


def recall(state: MDState, kept: dict[str, torch.Tensor]) -> None:
    cast(HeatedState, state).heat = kept["heat"]
