"""States of stochastic thermostats, which count the energy they put in: what is left over is conserved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch_sim.integrators import nvt
from torch_sim.integrators.md import MDState


@dataclass(kw_only=True)
class HeatedState(MDState):
    """`heat` (S,) eV: what the thermostat has put into each structure since its start."""

    heat: torch.Tensor
    _system_attributes = MDState._system_attributes | {"heat"}


@dataclass(kw_only=True)
class HeatedRescaleState(nvt.NVTVRescaleState):
    """The same for velocity rescaling, where the total momentum is not a degree of freedom."""

    heat: torch.Tensor
    _system_attributes = MDState._system_attributes | {"heat"}
