"""What both kinds of Orb models share (orb-models 0.7): the neighbour graph, and one pass of the network over it.

Sources: Neumann et al. 2024 (Orb v2), Rhodes et al. 2025 (Orb v3). The conservative force is the gradient of the energy
with respect to the positions at fixed graph: edge vectors are made a differentiable function of the positions, and the
package's own modules do the rest. The package's `predict` is not used because it evaluates heads nobody asked for.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ase
import numpy as np
import torch
from orb_models.common.atoms.batch.graph_batch import AtomGraphs
from orb_models.common.models import angular
from orb_models.common.models.nn_util import ChargeSpinConditioner
from orb_models.forcefield.forcefield_adapter import ForcefieldAtomsAdapter

from fdcore.errors import UsageError
from fdcore.models.base import Predictor, estimated_edges
from fdcore.models.orb_interaction import factor
from fdcore.models.orb_tiles import tiled
from fdcore.models.twice import differentiate_twice, inputs_only
from fdcore.records import ModelCard, Structure

if TYPE_CHECKING:
    # Not imported at run time: the conservative module brings electrostatics and with it torch's compiler, 6 s of start.
    from orb_models.forcefield.models.conservative_regressor import ConservativeForcefieldRegressor
    from orb_models.forcefield.models.direct_regressor import DirectForcefieldRegressor

    Regressor = DirectForcefieldRegressor | ConservativeForcefieldRegressor


@dataclass
class TwoForces:
    """Torch tensors of one pass over a batch: energy (S,) float64 eV; forces (A, 3) eV/Å; confidence (A,) eV/Å; node_features (A, width),
    what the heads read, where a graph was asked for."""

    positions: torch.Tensor
    energy: torch.Tensor
    forces_direct: torch.Tensor | None
    forces_conservative: torch.Tensor | None
    confidence: torch.Tensor | None = None
    node_features: torch.Tensor | None = None


class OrbNetwork(Predictor):
    """An Orb module with its adapter; frozen."""

    def __init__(
        self, card: ModelCard, module: Regressor, adapter: ForcefieldAtomsAdapter, device: str, dtype: str
    ) -> None:
        super().__init__(card, device, dtype)
        # Train mode would let one forward pass move the normalisers (measured: F_nc by 1e-2).
        # Any: torch's stubs know nothing of what a module contains.
        self.module: Any = module.eval().requires_grad_(False)
        factor(self.module)
        differentiate_twice(self.module)
        self._tiled = tiled(self.module.model) if device == "cpu" else None
        self.adapter = adapter
        self.torch_dtype = getattr(torch, dtype)
        self.conditioned = isinstance(module.model.conditioner, ChargeSpinConditioner)
        self._compiled: Any = None
        self._confidence_centres = None
        if "confidence" in module.heads:
            edges = self.module.heads["confidence"].bin_edges
            self._confidence_centres = 0.5 * (edges[1:] + edges[:-1]).to(device=device, dtype=self.torch_dtype)

    # ---- graphs ----------------------------------------------------------------------------------------------------

    def graphs(
        self,
        structures: Sequence[Structure],
        max_num_neighbors: int | None = None,
        adapter: ForcefieldAtomsAdapter | None = None,
    ) -> AtomGraphs:
        """One batch, in the order given; `adapter` replaces the model's own cutoff.

        Models that cap their neighbours get each graph built alone: in a perfect crystal the cap splits a shell, and which
        neighbours survive must not depend on the partners in the batch. The others use the package's batched builder;
        crystals and molecules are built apart because it takes only one kind at a time.
        """
        atoms = [self._atoms(s) for s in structures]
        options: dict[str, Any] = {
            "device": self.device,
            "output_dtype": self.torch_dtype,
            "max_num_neighbors": max_num_neighbors,
        }
        one_kind = len({s.periodic for s in structures}) == 1
        adapter = adapter or self.adapter
        if len(atoms) > 1 and one_kind and self.card.neighbour_cap is None:
            return adapter.from_ase_atoms_list(atoms, **options)
        parts = [adapter.from_ase_atoms(a, **options) for a in atoms]
        return parts[0] if len(parts) == 1 else AtomGraphs.batch(parts)

    def _atoms(self, structure: Structure) -> ase.Atoms:
        # The package decides by `cell == 0` whether to remove the net torque, so a molecule's cell must be zero.
        cell = structure.cell if structure.periodic else np.zeros((3, 3))
        atoms = ase.Atoms(numbers=structure.numbers, positions=structure.positions, cell=cell, pbc=structure.pbc)
        if self.conditioned:
            atoms.info = {"charge": structure.charge, "spin": structure.spin}
        return atoms

    def graph_tie_A(self, structures: Sequence[Structure], batch: AtomGraphs) -> list[float | None]:
        """Per structure the smallest gap (Å) between the last neighbour kept and the first one dropped, None without a cut."""
        cap = int(self.adapter.max_num_neighbors or 0)
        per_node = torch.bincount(batch.senders, minlength=len(batch.node_batch_index))
        full = torch.zeros(len(structures), dtype=torch.bool, device=per_node.device)
        full[batch.node_batch_index[per_node >= cap]] = True
        out: list[float | None] = [None] * len(structures)
        for index in torch.nonzero(full).flatten().tolist():
            wide = self.graphs([structures[index]], max_num_neighbors=4 * cap)
            lengths = wide.edge_features["vectors"].norm(dim=-1)
            order = torch.argsort(lengths, stable=True)
            order = order[torch.argsort(wide.senders[order], stable=True)]
            counts = torch.bincount(wide.senders, minlength=structures[index].n_atoms)
            starts = torch.cumsum(counts, 0) - counts
            cut = starts[counts > cap]
            if len(cut):
                sorted_lengths = lengths[order]
                out[index] = float((sorted_lengths[cut + cap] - sorted_lengths[cut + cap - 1]).min())
        return out

    def compile(self) -> None:
        """By torch.compile, for graphs of any size. Measured on an H200: 1.7 to 2.6 times; forces move by 3e-6 of their size."""
        if self._tiled is not None:
            raise UsageError(
                f"On a CPU {self.card.id} is as fast without --compile: it goes through in tiles, which torch's compiler does not better.",
                "Leave --compile out; it pays on a GPU.",
            )
        if self.device == "cpu" and not any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++"))):
            raise UsageError(
                "A C++ compiler is needed for --compile, and there is none.", "Install g++, or leave --compile out."
            )
        self._compiled = torch.compile(self.module.model, dynamic=True)

    # ---- one pass --------------------------------------------------------------------------------------------------

    def two_forces(
        self,
        batch: AtomGraphs,
        *,
        direct: bool = True,
        conservative: bool = True,
        confidence: bool = False,
        create_graph: bool = False,
    ) -> TwoForces:
        """The pass itself; `direct=True, conservative=False` is the plain F_nc evaluation that direct MD runs.

        The batch's positions become a leaf of the graph; senders, receivers and periodic shifts stay as they are.
        """
        positions = batch.node_features["positions"].detach().clone()
        batch.node_features["positions"] = positions
        with torch.set_grad_enabled(conservative or create_graph):
            vectors, _, _ = batch.compute_differentiable_edge_vectors(use_stress_displacement=False, use_rotation=False)
            batch.edge_features["vectors"] = vectors
            return self.heads_of(
                batch,
                positions,
                direct=direct,
                conservative=conservative,
                confidence=confidence,
                create_graph=create_graph,
            )

    def heads_of(
        self,
        batch: AtomGraphs,
        positions: torch.Tensor,
        *,
        direct: bool,
        conservative: bool,
        confidence: bool = False,
        create_graph: bool = False,
        twice: bool | None = None,
        repulsion: bool = True,
    ) -> TwoForces:
        """The network on a batch whose edge vectors are a function of the leaf `positions`, and the forces asked for; without
        `repulsion` its own share of them. `twice`: whether something will be differentiated a second time; as `create_graph` where
        nothing is said."""
        with torch.set_grad_enabled(conservative or create_graph):
            heads = self.module.heads
            node_features = self._node_features(batch, once=not (create_graph if twice is None else twice))
            energy = heads["energy"].predict(node_features, batch, fp64=True)
            forces_direct = heads["forces"].predict(node_features, batch) if direct else None
            if repulsion and self.module.pair_repulsion:
                near = self.repulsion(batch)
                energy = energy + near["energy"]
                # Conservative regressors train their direct head on the whole force; direct ones add ZBL to it.
                if forces_direct is not None and "forces" in near:
                    forces_direct = forces_direct + near["forces"]
            expected = None
            if confidence and self._confidence_centres is not None:
                with torch.no_grad():
                    expected = heads["confidence"].predict(node_features, batch) @ self._confidence_centres
            forces_conservative = None
            if conservative:
                with inputs_only():
                    (energy_gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=create_graph)
                forces_conservative = -energy_gradient
        features = node_features if create_graph else None
        return TwoForces(positions, energy, forces_direct, forces_conservative, expected, features)

    def _node_features(self, batch: AtomGraphs, *, once: bool) -> torch.Tensor:
        """What the heads read. What is differentiated twice is neither compiled nor in tiles."""
        if once and self._compiled is None and self._tiled is not None:
            return self._tiled.node_features(batch)
        network = self._compiled if once and self._compiled is not None else self.module.model
        return network(batch)["node_features"]

    @property
    def repulsion_cancels(self) -> bool:
        """Whether there is a repulsion, and F_nc holds the slope of its energy as F_c does."""
        return bool(self.module.pair_repulsion) and bool(self.module.pair_repulsion_fn.compute_gradients)

    def repulsion(self, batch: AtomGraphs) -> dict[str, torch.Tensor]:
        """The package's ZBL, looking only at pairs within the sum of their covalent radii: its envelope is exactly zero beyond, where
        most pairs are (measured: 5 % of a step of the embedded model)."""
        function = self.module.pair_repulsion_fn
        reach = function.covalent_radii[batch.node_features["atomic_numbers"]]
        lengths = batch.edge_features["vectors"].detach().norm(dim=-1)
        near = torch.nonzero(lengths < reach[batch.senders] + reach[batch.receivers]).flatten()
        close = copy.copy(batch)
        close.senders, close.receivers = batch.senders[near], batch.receivers[near]
        close.n_edge = torch.bincount(batch.node_batch_index[close.senders], minlength=len(batch.n_node))
        close.edge_features = {"vectors": batch.edge_features["vectors"][near]}
        return function(close)

    # ---- memory ----------------------------------------------------------------------------------------------------

    @property
    def bytes_per_edge(self) -> float:
        """Activations of the edge networks that one forward pass saves: 65 kB for the full Orb v3 in float32 (measured: 64)."""
        stacks = self.module.model.gnn_stacks
        layers = [p for name, p in stacks[0].named_parameters() if "_edge_mlp" in name and p.ndim == 2]
        width = layers[0].shape[1] + sum(layer.shape[0] for layer in layers)
        return 1.05 * len(stacks) * width * self.torch_dtype.itemsize

    def _edge_count(self, structure: Structure) -> float:
        return estimated_edges(structure, float(self.adapter.radius or 0), self.adapter.max_num_neighbors)


def _plain_harmonics() -> None:
    """Let the package call its spherical harmonics as the Python that they are written in. As TorchScript they are compiled anew on their
    second call in a process, whoever makes it: the last bit of F_c would depend on what the process did before (2e-9 eV/Å), and a run taken
    up by another one would not go on in the same bits. Both are as fast (measured in turn)."""
    scripted = angular._spherical_harmonics
    if isinstance(scripted, torch.jit.ScriptFunction):
        # Where torch keeps what was scripted, for its own compiler.
        angular._spherical_harmonics = scripted._torchdynamo_inline


_plain_harmonics()
