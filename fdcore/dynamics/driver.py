"""What torch-sim's integrators and optimisers call: the force that drives, and the other one when it is wanted."""

from __future__ import annotations

from typing import Any

import torch
from torch_sim.models.interface import ModelInterface
from torch_sim.state import SimState

from fdcore.dynamics.settings import DriverName
from fdcore.models.potential import Forces, Potential


class Driver(ModelInterface):
    """One potential as torch-sim sees it, in float64.

    `both`: the next evaluation computes both forces (of the one forward pass); `latest` is the last evaluation, and
    `correction` (A, 3) eV/Å the last F_c - F_nc that was computed.
    """

    def __init__(self, potential: Potential, name: DriverName) -> None:
        super().__init__()
        self._device, self._dtype = potential.device, torch.float64
        self._compute_stress, self._compute_forces = False, True
        self.potential = potential
        self.name: DriverName = name
        self.both = False
        self.latest: Forces | None = None
        self.correction: torch.Tensor | None = None

    def forward(self, state: SimState, **_: Any) -> dict[str, torch.Tensor]:
        """energy (S,) eV and the driving force (A, 3) eV/Å at the positions of the state."""
        conservative = self.name == "conservative"
        found = self.potential.evaluate(
            state.positions, direct=self.both or not conservative, conservative=self.both or conservative
        )
        self.latest = found
        if self.both:
            self.correction = found.difference
        driving = found.forces_conservative if conservative else found.forces_direct
        assert driving is not None
        return {"energy": found.energy, "forces": driving}


def replay(state: Any) -> dict[str, torch.Tensor]:
    """For torch-sim's init functions, which evaluate what is already known."""
    return {"energy": state.energy, "forces": state.forces}
