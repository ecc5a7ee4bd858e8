"""Constant temperature: Nosé-Hoover chain of three (Martyna et al. 1996), by torch-sim. Deterministic.

    dp_i/dt   = F_i - (p_xi1 / Q_1) p_i
    dp_xi1/dt = 2 K - N_f kT - (p_xi2 / Q_2) p_xi1        and so on along the chain
    Q_1 = N_f kT tau^2,  Q_j = kT tau^2

split symmetrically around a velocity Verlet step, the chain by Suzuki-Yoshida in three parts.

Conserved: E + K + sum_j p_xij^2 / 2 Q_j + N_f kT xi_1 + kT sum_(j>1) xi_j.
"""

from __future__ import annotations

from typing import cast

import torch
from torch_sim.integrators.md import MDState
from torch_sim.integrators.nvt import (
    NVTNoseHooverState,
    nvt_nose_hoover_init,
    nvt_nose_hoover_invariant,
    nvt_nose_hoover_step,
)

from fdcore.dynamics.driver import Driver, replay
from fdcore.dynamics.observables import kinetic_energy
from fdcore.dynamics.settings import Leg
from fdcore.units import FS, KB

FIXED_DOF = 3


def init(state: MDState, leg: Leg) -> MDState:
    return nvt_nose_hoover_init(
        state,
        replay,  # type: ignore[arg-type]  # only called
        kT=leg.temperature_K * KB,
        dt=leg.timestep_fs * FS,
        tau=leg.relaxation_time_fs * FS,
        chain_length=3,
        chain_steps=1,
        sy_steps=3,
        momenta=state.momenta,
    )


def step(state: MDState, driver: Driver, leg: Leg) -> MDState:
    known = cast(NVTNoseHooverState, state)
    # torch-sim lets the chain carry it along; between two steps, multiple time stepping changes the momenta.
    known.chain.kinetic_energy = kinetic_energy(known)
    return nvt_nose_hoover_step(known, driver, dt=leg.timestep_fs * FS, kT=leg.temperature_K * KB)


def conserved(state: MDState, leg: Leg) -> torch.Tensor:
    """(S,) eV."""
    kT = torch.as_tensor(leg.temperature_K * KB, dtype=state.dtype, device=state.device)
    return nvt_nose_hoover_invariant(cast(NVTNoseHooverState, state), kT)


def memory(state: MDState) -> dict[str, torch.Tensor]:
    """Positions and momenta of the chain (S, 3)."""
    chain = cast(NVTNoseHooverState, state).chain
    return {"chain_positions": chain.positions, "chain_momenta": chain.momenta}


def recall(state: MDState, kept: dict[str, torch.Tensor]) -> None:
    chain = cast(NVTNoseHooverState, state).chain
    chain.positions, chain.momenta = kept["chain_positions"], kept["chain_momenta"]
