"""Constant temperature: stochastic velocity rescaling (Bussi, Donadio & Parrinello 2007), from torch-sim's parts. Stochastic.

    p <- alpha p,   alpha^2 = c + (1 - c) Kbar / (N_f K) sum_i R_i^2 + 2 R_1 sqrt(c (1 - c) Kbar / (N_f K))
    c = exp(-dt / tau),  Kbar = N_f kT / 2,  R ~ N(0, 1)

before a velocity Verlet step. Conserved: E + K - the energy that the rescaling put in (their eq. 15).
"""

from __future__ import annotations

from typing import cast

import torch
from torch_sim.integrators.md import MDState, velocity_verlet_step
from torch_sim.integrators.nvt import _vrescale_update

from fdcore.dynamics.driver import Driver
from fdcore.dynamics.heat import HeatedRescaleState
from fdcore.dynamics.observables import kinetic_energy
from fdcore.dynamics.settings import Leg
from fdcore.units import FS, KB

FIXED_DOF = 3


def init(state: MDState, leg: Leg) -> MDState:
    del leg
    return HeatedRescaleState.from_state(
        state, momenta=state.momenta, energy=state.energy, forces=state.forces, heat=torch.zeros_like(state.energy)
    )


def step(state: MDState, driver: Driver, leg: Leg) -> MDState:
    known = cast(HeatedRescaleState, state)
    dt = leg.timestep_fs * FS
    before = kinetic_energy(known)
    known = _vrescale_update(known, leg.relaxation_time_fs * FS, leg.temperature_K * KB, dt)
    known.heat = known.heat + kinetic_energy(known) - before
    return velocity_verlet_step(known, dt, driver)


def conserved(state: MDState, leg: Leg) -> torch.Tensor:
    """(S,) eV."""
    del leg
    return state.energy + kinetic_energy(state) - cast(HeatedRescaleState, state).heat


def memory(state: MDState) -> dict[str, torch.Tensor]:
    return {"heat": cast(HeatedRescaleState, state).heat}


def recall(state: MDState, kept: dict[str, torch.Tensor]) -> None:
    cast(HeatedRescaleState, state).heat = kept["heat"]
