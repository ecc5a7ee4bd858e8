"""Multiple time steps: F_nc drives, F_c corrects (r-RESPA, Tuckerman et al. 1992; with a direct force: Bigi et al. 2025).

    p <- p + M dt/2 (F_c - F_nc)
    M times the inner step with F_nc, thermostat included
    p <- p + M dt/2 (F_c - F_nc)

The correction is a small, smooth force, so it may act as rarely as every M steps; what is conserved is what the conservative
force conserves, to order (M dt)^2. With a thermostat inside this is the XI-RESPA of Martyna et al. 1996. Each round costs M - 1
evaluations of F_nc and one of both forces: 1 + (F - 1) / M of direct dynamics where both cost F times as much as F_nc.
"""

from __future__ import annotations

from collections.abc import Callable

from torch_sim.integrators.md import MDState

from fdcore.dynamics.driver import Driver
from fdcore.dynamics.settings import Leg
from fdcore.units import FS

InnerStep = Callable[[MDState, Driver, Leg], MDState]


def step(state: MDState, driver: Driver, leg: Leg, inner: InnerStep) -> MDState:
    """One round of leg.mts_stride steps; before the first one `driver` has evaluated both forces."""
    state = _kick(state, driver, leg)
    for left in reversed(range(leg.mts_stride)):
        driver.both = left == 0
        state = inner(state, driver, leg)
    driver.both = False
    return _kick(state, driver, leg)


def _kick(state: MDState, driver: Driver, leg: Leg) -> MDState:
    assert driver.correction is not None
    half = 0.5 * leg.mts_stride * leg.timestep_fs * FS
    state.set_constrained_momenta(state.momenta + half * driver.correction)
    return state
