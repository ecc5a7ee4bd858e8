"""A model that can be solved by hand: atoms on a lattice, joined by springs that are linear in the displacements.

F_c = -dE/dR exactly; F_nc is F_c plus a force that has no potential: it turns where the other pulls, `swirl` times as strongly.
"""

from __future__ import annotations

import numpy as np
import torch
from ase.build import bulk
from ase.neighborlist import primitive_neighbor_list

from fdcore import services
from fdcore.models.potential import Forces, Potential
from fdcore.records import Structure
from fdcore.units import KB
from tests.doubles import Double

STIFFNESS = 1.5  # eV/Å^2
TURN = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)


def crystal(repeat: int = 2) -> Structure:
    """NaCl, 8 atoms times repeat^3, at rest."""
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True).repeat(repeat)
    return Structure.from_atoms(atoms, file="springs.xyz")


def laplacian(structure: Structure) -> np.ndarray:
    """(N, N): which atoms are joined, their nearest neighbours; its rows sum to zero."""
    i, j = primitive_neighbor_list("ij", structure.pbc, structure.cell, structure.positions, 2.9)
    joined = np.zeros((structure.n_atoms, structure.n_atoms))
    np.add.at(joined, (i, j), 1.0)
    return np.diag(joined.sum(1)) - joined


def thermal_displacements(structure: Structure, temperature_K: float, generator: np.random.Generator) -> np.ndarray:
    """Displacements (N, 3) in Å of the canonical ensemble, the mean at rest."""
    stiffness, modes = np.linalg.eigh(STIFFNESS * laplacian(structure))
    amplitude = np.where(stiffness > 1e-9, np.sqrt(KB * temperature_K / np.maximum(stiffness, 1e-9)), 0.0)
    return modes @ (amplitude[:, None] * generator.standard_normal((structure.n_atoms, 3)))


class Springs(Potential):
    """Nearest neighbours are joined: E = k/2 sum over pairs |u_i - u_j|^2, the same for any shift of all. All structures alike."""

    def __init__(self, structures, swirl: float) -> None:
        super().__init__(structures, "cpu")
        self.swirl = swirl
        self.rest = torch.tensor(np.stack([crystal_like(s).positions for s in structures]))
        self.matrix = torch.tensor(laplacian(crystal_like(structures[0])))

    def evaluate(self, positions, *, direct, conservative) -> Forces:
        away = positions.reshape(self.rest.shape) - self.rest
        pulled = self.matrix @ away
        downhill = (-STIFFNESS * pulled).reshape(-1, 3)
        turned = (self.swirl * pulled @ TURN).reshape(-1, 3)
        apart = positions[0] - positions[1]
        return Forces(
            energy=0.5 * STIFFNESS * (away * pulled).sum((1, 2)),
            forces_direct=downhill + turned if direct else None,
            forces_conservative=downhill if conservative else None,
            edges=torch.tensor([[0], [1]]),
            lengths=apart.norm().reshape(1),
        )


def crystal_like(structure: Structure) -> Structure:
    """The lattice at rest that a structure is a displaced copy of."""
    return crystal(round((structure.n_atoms / 8) ** (1 / 3)))


class SpringModel(Double):
    """`Springs` behind the contract of a model."""

    bytes_per_edge = 1.0

    def __init__(self, swirl: float = 0.0) -> None:
        super().__init__(services.card(services.default_model_id()), "cpu", "float64")
        self.swirl = swirl

    def potential(self, structures) -> Springs:
        return Springs(structures, self.swirl)
