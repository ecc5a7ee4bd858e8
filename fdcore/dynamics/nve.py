"""Constant energy: velocity Verlet (Swope et al. 1982), by torch-sim.

    p(t + dt/2) = p(t) + dt/2 F(t)
    r(t + dt)   = r(t) + dt p(t + dt/2) / m
    p(t + dt)   = p(t + dt/2) + dt/2 F(t + dt)

Conserved: E(r) + sum p^2 / 2m, to order dt^2 where F = -dE/dr.
"""

from __future__ import annotations

import torch
from torch_sim.integrators.md import MDState
from torch_sim.integrators.nve import nve_step

from fdcore.dynamics.driver import Driver
from fdcore.dynamics.observables import kinetic_energy
from fdcore.dynamics.settings import Leg
from fdcore.units import FS

# Momentum is conserved: three degrees of freedom do not move.
FIXED_DOF = 3


def init(state: MDState, leg: Leg) -> MDState:
    """Nothing is needed beyond momenta, energy and force."""
    del leg
    return state


def step(state: MDState, driver: Driver, leg: Leg) -> MDState:
    return nve_step(state, driver, dt=leg.timestep_fs * FS)


def conserved(state: MDState, leg: Leg) -> torch.Tensor:
    """(S,) eV."""
    del leg
    return state.energy + kinetic_energy(state)


def memory(state: MDState) -> dict[str, torch.Tensor]:
    del state
    return {}


def recall(state: MDState, kept: dict[str, torch.Tensor]) -> None:
    del state, kept
