"""Both forces of an Orb model at positions that move: a neighbour list that is made with a skin and used for several steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from orb_models.common.atoms.batch.graph_batch import AtomGraphs
from orb_models.forcefield.forcefield_adapter import ForcefieldAtomsAdapter

from fdcore.models.orb_network import TwoForces
from fdcore.models.potential import Forces, Potential
from fdcore.models.torch_calls import guarded
from fdcore.records import Structure

if TYPE_CHECKING:
    from fdcore.models.orb import OrbModel

# How much wider than the cutoff a neighbour list is made, to be used for several steps. Measured: solids at 300 K keep one
# for 50 to 300 steps of 0.5 fs, and looking through the additional pairs costs 1 % of a step.
SKIN_A = 0.5
# No structure that validation lets through has more within any cutoff here.
MANY_NEIGHBOURS = 1000


class OrbPotential(Potential):
    """Both forces at changing positions, with the neighbour list of an earlier step where that changes nothing.

    Without a neighbour cap the graph is every pair within the cutoff: a list made with a wider one, SKIN_A, holds them all
    until some atom has moved half of the difference (Verlet 1967). Edge vectors are taken in float64 from unwrapped
    positions, so that an atom far from where it began loses no digits. Capped models get a new graph every step.
    """

    def __init__(self, model: OrbModel, structures: Sequence[Structure]) -> None:
        super().__init__(structures, model.device)
        self._model = model
        self._radius = float(model.adapter.radius or 0)
        self._cap = int(model.adapter.max_num_neighbors or 0)
        self._list: _NeighbourList | None = None
        cells = [s.cell if s.periodic else np.zeros((3, 3)) for s in self.structures]
        self._cells = torch.as_tensor(np.stack(cells), device=self.device)
        self._ends = np.cumsum([s.n_atoms for s in self.structures])
        self._wide = ForcefieldAtomsAdapter(radius=self._radius + SKIN_A, max_num_neighbors=MANY_NEIGHBOURS)

    @property
    def reference(self) -> torch.Tensor | None:
        return None if self._list is None else self._list.reference

    def start_at(self, reference: torch.Tensor | None) -> None:
        self._list = None if reference is None else self._new_list(reference)

    def evaluate(self, positions: torch.Tensor, *, direct: bool, conservative: bool) -> Forces:
        return guarded(self._model.device, lambda: self._evaluate(positions, direct, conservative))

    def _evaluate(self, positions: torch.Tensor, direct: bool, conservative: bool) -> Forces:
        if not torch.isfinite(positions).all():
            return self._not_a_number(positions, direct, conservative)
        if self._list is None or not self._list.holds(positions):
            self._list = self._new_list(positions)
        # Where nothing is differentiated, torch need not remember how: 3 % of a step of a small model.
        with torch.inference_mode(not conservative):
            found, edges, lengths = self._pass(self._list, positions.detach(), direct, conservative)
        # Integrators change in place what they are given, which the tensors of that mode forbid.
        return Forces(
            energy=found.energy.detach().double().reshape(-1).clone(),
            forces_direct=None if found.forces_direct is None else found.forces_direct.detach().double().clone(),
            forces_conservative=found.forces_conservative,
            edges=edges,
            lengths=lengths,
        )

    def _pass(
        self, known: _NeighbourList, positions: torch.Tensor, direct: bool, conservative: bool
    ) -> tuple[TwoForces, torch.Tensor, torch.Tensor]:
        """What the model says, the pairs that it saw, and their distances."""
        if known.within_cap:
            positions = positions + known.images
            apart = positions[known.receivers] - positions[known.senders] + known.shifts
            kept = torch.nonzero(apart.square().sum(-1) < self._radius**2).flatten()
            senders, receivers, shifts = known.senders[kept], known.receivers[kept], known.shifts[kept]
        else:
            # The package decides which neighbours a crowded atom keeps.
            exact = self._model.graphs(self._moved(positions))
            senders, receivers = exact.senders, exact.receivers
            shifts = self._shifts(exact)
            positions = positions + self._images(exact, positions)
        positions.requires_grad_(conservative)
        with torch.set_grad_enabled(conservative):
            vectors = positions[receivers] - positions[senders] + shifts
            batch = copy.copy(known.batch)
            batch.senders, batch.receivers = senders, receivers
            batch.n_edge = torch.bincount(batch.node_batch_index[senders], minlength=len(self.structures))
            batch.edge_features = {"vectors": vectors.to(self._model.torch_dtype)}
            single = positions.detach().to(self._model.torch_dtype)
            batch.node_features = {**batch.node_features, "positions": single}
            with self._model._lock:
                found = self._model.heads_of(batch, positions, direct=direct, conservative=conservative)
        return found, torch.stack([senders, receivers]), vectors.detach().norm(dim=-1)

    def _new_list(self, positions: torch.Tensor) -> _NeighbourList:
        batch = self._model.graphs(self._moved(positions), adapter=self._wide if self._uncapped else None)
        crowded = self._uncapped and int(torch.bincount(batch.senders, minlength=1).max()) > self._cap
        return _NeighbourList(
            batch=batch,
            reference=positions.detach().clone(),
            images=self._images(batch, positions.detach()),
            senders=batch.senders,
            receivers=batch.receivers,
            shifts=self._shifts(batch),
            within_cap=self._uncapped and not crowded,
        )

    @property
    def _uncapped(self) -> bool:
        return self._model.card.neighbour_cap is None

    def _moved(self, positions: torch.Tensor) -> list[Structure]:
        parts = np.split(positions.detach().cpu().numpy(), self._ends[:-1])
        return [replace(s, positions=p) for s, p in zip(self.structures, parts, strict=True)]

    def _images(self, batch: AtomGraphs, positions: torch.Tensor) -> torch.Tensor:
        """The lattice vectors (A, 3) from these positions to the images that the package has put into the cell, and counts its shifts from.
        Not wrapped once more by ourselves: an atom on a face of the cell, up to rounding, may go to either side."""
        cells = self._cells[batch.node_batch_index]
        # A molecule has no lattice, and stays where it is.
        periodic = (torch.linalg.det(cells) != 0)[:, None, None]
        lattice = torch.where(periodic, cells, torch.eye(3, dtype=cells.dtype, device=cells.device))
        apart = batch.node_features["positions"].detach().to(positions) - positions
        steps = torch.linalg.solve(lattice.transpose(1, 2), apart.unsqueeze(-1)).round()
        return torch.where(periodic[:, 0], (lattice.transpose(1, 2) @ steps).squeeze(-1), torch.zeros_like(positions))

    def _shifts(self, batch: AtomGraphs) -> torch.Tensor:
        cells = self._cells[batch.node_batch_index[batch.senders]]
        return torch.einsum("ei,eij->ej", batch.edge_features["unit_shifts"].double(), cells)

    def _not_a_number(self, positions: torch.Tensor, direct: bool, conservative: bool) -> Forces:
        """What a simulation that has blown up gets: nothing but NaN, in the right shape."""
        nothing = torch.full_like(positions, torch.nan)
        pairs = torch.zeros((2, 0), dtype=torch.long, device=self.device)
        energy = torch.full((len(self.structures),), torch.nan, dtype=torch.float64, device=self.device)
        return Forces(energy, nothing if direct else None, nothing if conservative else None, pairs, energy[:0])


@dataclass
class _NeighbourList:
    """Pairs within the cutoff and a skin of it, made at `reference` (A, 3); `images` (A, 3) brings positions to the images
    that `shifts` (E, 3) belong to; all float64 Å. Not `within_cap`: some atom has more neighbours than the model takes."""

    batch: AtomGraphs
    reference: torch.Tensor
    images: torch.Tensor
    senders: torch.Tensor
    receivers: torch.Tensor
    shifts: torch.Tensor
    within_cap: bool

    def holds(self, positions: torch.Tensor) -> bool:
        farthest = (positions.detach() - self.reference).square().sum(-1).max()
        return self.within_cap and bool(farthest < (SKIN_A / 2) ** 2)
