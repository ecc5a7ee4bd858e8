"""What is seen of a state: sums per structure and per element. Pure functions of tensors; A atoms in S structures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fdcore.units import KB

if TYPE_CHECKING:
    from torch_sim.integrators.md import MDState


def kinetic_energy(state: MDState) -> torch.Tensor:
    """K = sum p^2 / 2m of each structure, (S,) eV."""
    return per_system(kinetic_per_atom(state.momenta, state.masses), state.system_idx, len(state.cell))


def kinetic_per_atom(momenta: torch.Tensor, masses: torch.Tensor) -> torch.Tensor:
    """p^2 / 2m, (A,) eV; momenta (A, 3) and masses (A,) in amu."""
    return momenta.square().sum(-1) / (2 * masses)


def per_system(values: torch.Tensor, system: torch.Tensor, count: int) -> torch.Tensor:
    """Sums of `values` (A, ...) over the atoms of each structure, (S, ...)."""
    return torch.zeros((count, *values.shape[1:]), dtype=values.dtype, device=values.device).index_add_(
        0, system, values
    )


def degrees_of_freedom(
    masses: torch.Tensor, group: torch.Tensor, groups: int, system: torch.Tensor, systems: int, fixed: int
) -> torch.Tensor:
    """Kinetic degrees of freedom of each group of atoms (an element in a structure), (G,).

    Where the total momentum is fixed (`fixed` 3), atom i has 3 (1 - m_i / M) of them: a mean kinetic energy of
    3/2 kT (1 - m_i / M) in equilibrium. So the temperatures of all elements are equal then, in small cells as well.
    """
    total = per_system(masses, system, systems)[system]
    return torch.zeros(groups, dtype=masses.dtype, device=masses.device).index_add_(
        0, group, 3 - fixed * masses / total
    )


def temperature(kinetic: torch.Tensor, dof: torch.Tensor) -> torch.Tensor:
    """2 K / (N_f k_B) in K; NaN where there is nothing to move."""
    return torch.where(dof > 0, 2 * kinetic / (dof.clamp(min=1e-12) * KB), torch.nan)


def smallest(values: torch.Tensor, system: torch.Tensor, count: int) -> torch.Tensor:
    """The smallest of `values` (E,) in each structure, (S,); infinite where there is none."""
    start = torch.full((count,), torch.inf, dtype=values.dtype, device=values.device)
    return start.scatter_reduce(0, system, values, "amin")
