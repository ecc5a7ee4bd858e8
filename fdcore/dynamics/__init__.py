"""Dynamics under either force of a model, or both: integrators in one table, everything seeded, every state savable.

An integrator is one file with `init` and `step`, the equations above the code, `conserved`, what its thermostat must remember
(`memory`, `recall`), the number of degrees of freedom that stand still, and one row here. The contract tests run over the table.
`settings` and this module are light; torch and torch-sim come with `simulation`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    import torch
    from torch_sim.integrators.md import MDState

    from fdcore.dynamics.driver import Driver
    from fdcore.dynamics.settings import Leg

INTEGRATORS: dict[str, str] = {
    "nve": "fdcore.dynamics.nve",
    "nose-hoover": "fdcore.dynamics.nose_hoover",
    "langevin": "fdcore.dynamics.langevin",
    "vrescale": "fdcore.dynamics.vrescale",
}


class Integrator(Protocol):
    """One file of this package. States are batches of S structures; energies in eV."""

    FIXED_DOF: int

    def init(self, state: MDState, leg: Leg) -> MDState:
        """The integrator's own state, from one that has momenta, energy and force."""
        ...

    def step(self, state: MDState, driver: Driver, leg: Leg) -> MDState:
        """One time step; calls `driver` exactly once, at the new positions."""
        ...

    def conserved(self, state: MDState, leg: Leg) -> torch.Tensor:
        """The conserved quantity, (S,)."""
        ...

    def memory(self, state: MDState) -> dict[str, torch.Tensor]:
        """What the thermostat must not forget, each (S, ...)."""
        ...

    def recall(self, state: MDState, kept: dict[str, torch.Tensor]) -> None: ...


def integrator(name: str) -> Integrator:
    """The integrator of that name."""
    return cast(Integrator, import_module(INTEGRATORS[name]))
