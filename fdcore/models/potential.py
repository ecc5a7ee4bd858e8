"""A model bound to one set of atoms that move: what dynamics and relaxation evaluate, step after step.

Between steps only positions change, so whatever depends on numbers, cells and (for a while) neighbours is kept. Energies and
forces come back in float64 whatever the precision of the model: integrators add up small differences.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from fdcore.errors import FdcoreError
from fdcore.records import Structure

if TYPE_CHECKING:
    from fdcore.models.base import Model


@dataclass(frozen=True)
class Forces:
    """One evaluation of a batch of S structures with A atoms: energy (S,) eV, forces (A, 3) eV/Å (None: not asked for),
    `edges` and `lengths` the neighbour pairs (2, E) and their distances (E,) in Å that the model saw; all float64."""

    energy: torch.Tensor
    forces_direct: torch.Tensor | None
    forces_conservative: torch.Tensor | None
    edges: torch.Tensor
    lengths: torch.Tensor

    @property
    def difference(self) -> torch.Tensor:
        """F_c - F_nc (A, 3) in eV/Å: what multiple time stepping corrects by, and what U_Delta is made of."""
        if self.forces_direct is None or self.forces_conservative is None:
            raise ValueError("Only an evaluation of both forces has a difference.")
        return self.forces_conservative - self.forces_direct


class Potential(ABC):
    """`evaluate` at any positions (A, 3) of the structures it was made for, in their order."""

    def __init__(self, structures: Sequence[Structure], device: str) -> None:
        self.structures = tuple(structures)
        self.device = torch.device(device)

    @abstractmethod
    def evaluate(self, positions: torch.Tensor, *, direct: bool, conservative: bool) -> Forces:
        """Energy and the forces asked for, of one forward pass; `positions` float64 on `device`, not wrapped."""

    @property
    def reference(self) -> torch.Tensor | None:
        """The positions (A, 3) that the present neighbour list was made at, None where none is kept. Part of the state of a
        run: the order of a sum depends on it, and with that the last bit of every number."""
        return None

    def start_at(self, reference: torch.Tensor | None) -> None:
        """Take up the neighbour list that belongs to `reference`."""
        del reference


class PlainPotential(Potential):
    """Any model through `Model.evaluate_each`: both forces every time, a new graph every time."""

    def __init__(self, model: Model, structures: Sequence[Structure]) -> None:
        super().__init__(structures, "cpu")
        self._model = model
        self._ends = np.cumsum([s.n_atoms for s in self.structures])

    def evaluate(self, positions: torch.Tensor, *, direct: bool, conservative: bool) -> Forces:
        del direct, conservative
        parts = np.split(positions.detach().cpu().numpy(), self._ends[:-1])
        moved = [replace(s, positions=p) for s, p in zip(self.structures, parts, strict=True)]
        found = []
        for item in self._model.evaluate_each(moved):
            if isinstance(item, FdcoreError):
                raise item
            found.append(item)
        edges, lengths = _close_pairs(moved)
        return Forces(
            energy=torch.tensor([e.energy for e in found], dtype=torch.float64),
            forces_direct=torch.tensor(np.concatenate([e.forces_direct for e in found])),
            forces_conservative=torch.tensor(np.concatenate([e.forces_conservative for e in found])),
            edges=edges,
            lengths=lengths,
        )


# Pairs that matter for "too close": no two atoms bond over a longer distance (Å).
CLOSE_A = 3.0


def _close_pairs(structures: Sequence[Structure]) -> tuple[torch.Tensor, torch.Tensor]:
    from ase.neighborlist import primitive_neighbor_list

    pairs, lengths, first = [], [], 0
    for s in structures:
        i, j, d = primitive_neighbor_list("ijd", s.pbc, s.cell, s.positions, CLOSE_A, self_interaction=False)
        pairs.append(np.stack([i, j]) + first)
        lengths.append(d)
        first += s.n_atoms
    return torch.tensor(np.concatenate(pairs, axis=1)), torch.tensor(np.concatenate(lengths))
