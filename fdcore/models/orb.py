"""The Orb family (orb-models 0.7): E, F_nc and F_c from one neighbour graph, one forward and one backward pass.

Sources: Neumann et al. 2024 (Orb v2), Rhodes et al. 2025 (Orb v3). The conservative force is the gradient of the energy
with respect to the positions at fixed graph: edge vectors are made a differentiable function of the positions, and the
package's own modules do the rest. The package's `predict` is not used because it evaluates heads nobody asked for.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ase
import numpy as np
import torch
from numpy.typing import NDArray
from orb_models.common.atoms.batch.graph_batch import AtomGraphs
from orb_models.common.models import angular
from orb_models.common.models.nn_util import ChargeSpinConditioner
from orb_models.forcefield.forcefield_adapter import ForcefieldAtomsAdapter

from fdcore.errors import UsageError, WeightsError
from fdcore.models.base import GradientMethod, Model, OutOfMemory, estimated_edges
from fdcore.models.potential import Forces, Potential
from fdcore.models.twice import differentiate_twice
from fdcore.records import Evaluation, Gradients, ModelCard, Structure

# Below this U_Delta (eV/Å) its gradient is numerical noise: a square root has no gradient at zero.
ZERO_FORCE_DELTA = 1e-10
# The longest step (Å) of an atom in the central difference of the low-memory gradient, by precision.
HVP_STEP_A = {torch.float32: 5e-3, torch.float64: 1e-4}
# The same for the one-sided form, whose error grows with it: where rounding and curvature are about as large (measured).
ONE_SIDED_STEP_A = {torch.float32: 3e-4, torch.float64: 1e-5}
# How much wider than the cutoff a neighbour list is made, to be used for several steps. Measured: solids at 300 K keep one
# for 50 to 300 steps of 0.5 fs, and looking through the additional pairs costs 1 % of a step.
SKIN_A = 0.5
# No structure that validation lets through has more within any cutoff here.
MANY_NEIGHBOURS = 1000

if TYPE_CHECKING:
    # Not imported at run time: the conservative module brings electrostatics and with it torch's compiler, 6 s of start.
    from orb_models.forcefield.models.conservative_regressor import ConservativeForcefieldRegressor
    from orb_models.forcefield.models.direct_regressor import DirectForcefieldRegressor

    Regressor = DirectForcefieldRegressor | ConservativeForcefieldRegressor


@dataclass
class TwoForces:
    """Torch tensors of one pass over a batch: energy (S,) float64 eV; forces (A, 3) eV/Å; confidence (A,) eV/Å."""

    positions: torch.Tensor
    energy: torch.Tensor
    forces_direct: torch.Tensor | None
    forces_conservative: torch.Tensor | None
    confidence: torch.Tensor | None = None


class OrbModel(Model):
    """An Orb module with a direct force head behind the contract of `Model`."""

    def __init__(
        self, card: ModelCard, module: Regressor, adapter: ForcefieldAtomsAdapter, device: str, dtype: str
    ) -> None:
        super().__init__(card, device, dtype)
        if "forces" not in module.heads:
            raise WeightsError(
                f"{card.id} has no direct force head, so there is no second force to compare.",
                "U_Delta is defined for direct-force models; choose one whose kind is 'direct'.",
            )
        # Train mode would let one forward pass move the normalisers (measured: F_nc by 1e-2).
        # Any: torch's stubs know nothing of what a module contains.
        self.module: Any = module.eval().requires_grad_(False)
        differentiate_twice(self.module)
        self.adapter = adapter
        self.torch_dtype = getattr(torch, dtype)
        self.conditioned = isinstance(module.model.conditioner, ChargeSpinConditioner)
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
    ) -> TwoForces:
        """The network on a batch whose edge vectors are a function of the leaf `positions`, and the forces asked for."""
        with torch.set_grad_enabled(conservative or create_graph):
            heads = self.module.heads
            node_features = self.module.model(batch)["node_features"]
            energy = heads["energy"].predict(node_features, batch, fp64=True)
            forces_direct = heads["forces"].predict(node_features, batch) if direct else None
            if self.module.pair_repulsion:
                repulsion = self._repulsion(batch)
                energy = energy + repulsion["energy"]
                # Conservative regressors train their direct head on the whole force; direct ones add ZBL to it.
                if forces_direct is not None and "forces" in repulsion:
                    forces_direct = forces_direct + repulsion["forces"]
            expected = None
            if confidence and self._confidence_centres is not None:
                with torch.no_grad():
                    expected = heads["confidence"].predict(node_features, batch) @ self._confidence_centres
            forces_conservative = None
            if conservative:
                (energy_gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=create_graph)
                forces_conservative = -energy_gradient
        return TwoForces(positions, energy, forces_direct, forces_conservative, expected)

    def _repulsion(self, batch: AtomGraphs) -> dict[str, torch.Tensor]:
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

    def _evaluate(self, structures: Sequence[Structure]) -> list[Evaluation]:
        def run() -> list[Evaluation]:
            batch = self.graphs(structures)
            ties = self.graph_tie_A(structures, batch)
            return _records(self.two_forces(batch, confidence=True), batch, ties)

        return _guarded(self.device, run)

    def _displaced(self, structure: Structure, displacements: NDArray[np.float64]) -> list[Evaluation]:
        def run() -> list[Evaluation]:
            one = self.graphs([structure])
            per_batch = max(1, int(self.batch_edges // max(1, len(one.senders))))
            out: list[Evaluation] = []
            for start in range(0, len(displacements), per_batch):
                part = displacements[start : start + per_batch]
                batch = AtomGraphs.batch([one] * len(part)) if len(part) > 1 else one.clone()
                shift = torch.as_tensor(part.reshape(-1, 3), dtype=self.torch_dtype, device=self.device)
                batch.node_features["positions"] = batch.node_features["positions"].detach() + shift
                out += _records(self.two_forces(batch, confidence=True), batch, [None] * len(part))
            return out

        return _guarded(self.device, run)

    def potential(self, structures: Sequence[Structure]) -> Potential:
        return OrbPotential(self, structures)

    # ---- gradients -------------------------------------------------------------------------------------------------

    def _gradients(self, structure: Structure, method: GradientMethod) -> Gradients:
        return self._gradients_of([structure], method, strain=False)[0]

    def _gradients_of(self, structures: Sequence[Structure], method: GradientMethod, strain: bool) -> list[Gradients]:
        if strain and not all(s.periodic for s in structures):
            raise UsageError("Only a crystal has a cell that can be strained.", "Attack a molecule without --strain.")

        def run() -> list[Gradients]:
            batch = self.graphs(structures)
            ties = self.graph_tie_A(structures, batch)
            bent = _Bent(batch, strain)
            way = {"double-backward": _double_backward, "one-sided": _one_sided_difference}.get(
                method, _central_difference
            )
            squares, forces = way(self, batch, bent)
            evaluations = _records(forces, batch, ties)
            ends = np.cumsum([s.n_atoms for s in structures])
            gradients = np.split(_array(squares[0]), ends[:-1])
            deformations = _array(squares[1]) if strain else [None] * len(structures)
            virials = _array(bent.energy_gradient) if bent.energy_gradient is not None else [None] * len(structures)
            out = []
            for evaluation, gradient, deformation, virial in zip(
                evaluations, gradients, deformations, virials, strict=True
            ):
                # U = sqrt(s / 3N), so grad U = grad s / (6 N U): differentiating s keeps U = 0 free of 0/0.
                at_zero = evaluation.force_delta < ZERO_FORCE_DELTA
                scale = 0.0 if at_zero else 1 / (6 * len(gradient) * evaluation.force_delta)
                out.append(
                    Gradients(
                        evaluation,
                        gradient * scale,
                        -evaluation.forces_conservative,
                        at_zero,
                        None if deformation is None else deformation * scale,
                        virial,
                    )
                )
            return out

        return _guarded(self.device, run)

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
        return _guarded(self._model.device, lambda: self._evaluate(positions, direct, conservative))

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
        positions = positions + known.images
        if known.within_cap:
            apart = positions[known.receivers] - positions[known.senders] + known.shifts
            kept = torch.nonzero(apart.square().sum(-1) < self._radius**2).flatten()
            senders, receivers, shifts = known.senders[kept], known.receivers[kept], known.shifts[kept]
        else:
            # The package decides which neighbours a crowded atom keeps.
            exact = self._model.graphs(self._moved(positions))
            senders, receivers = exact.senders, exact.receivers
            shifts = self._shifts(exact)
            positions = self._wrapped(positions)
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
        wrapped = self._wrapped(positions)
        batch = self._model.graphs(self._moved(wrapped), adapter=self._wide if self._uncapped else None)
        crowded = self._uncapped and int(torch.bincount(batch.senders, minlength=1).max()) > self._cap
        return _NeighbourList(
            batch=batch,
            reference=positions.detach().clone(),
            images=wrapped - positions.detach(),
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

    def _wrapped(self, positions: torch.Tensor) -> torch.Tensor:
        atoms = [_wrap(s) for s in self._moved(positions)]
        return torch.as_tensor(np.concatenate(atoms), device=self.device)

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


def _wrap(structure: Structure) -> NDArray[np.float64]:
    return structure.to_atoms().get_positions(wrap=structure.periodic, eps=0.0)


class _Bent:
    """Positions R = r (1 + e) + t and edge vectors as functions of the leaves r (A, 3) and, where strain is asked for, e (S, 3, 3).

    e is made symmetric: an antisymmetric one only turns the crystal. F_c is -dE/dR at any e.
    """

    def __init__(self, batch: AtomGraphs, strain: bool) -> None:
        self.batch = batch
        start = batch.node_features["positions"].detach()
        self.leaf = start.clone().requires_grad_(True)
        self.strain: torch.Tensor | None = None
        self.energy_gradient: torch.Tensor | None = None
        # The vector from sender to receiver with its periodic image; the package knows how.
        vectors, _, _ = batch.compute_differentiable_edge_vectors(use_stress_displacement=False, use_rotation=False)
        self._shifts = vectors.detach() - (start[batch.receivers] - start[batch.senders])
        if strain:
            self.strain = torch.zeros((len(batch.n_node), 3, 3), dtype=start.dtype, device=start.device)
            self.strain.requires_grad_(True)

    @property
    def leaves(self) -> tuple[torch.Tensor, ...]:
        return (self.leaf,) if self.strain is None else (self.leaf, self.strain)

    def positions(self, moved: torch.Tensor | None = None) -> torch.Tensor:
        """R (A, 3), with the edge vectors of the batch made from it; `moved` is t."""
        batch, system = self.batch, self.batch.node_batch_index
        shifts, positions = self._shifts, self.leaf
        if self.strain is not None:
            deformation = 0.5 * (self.strain + self.strain.transpose(1, 2))
            positions = positions + torch.einsum("ai,aij->aj", positions, deformation[system])
            shifts = shifts + torch.einsum("ei,eij->ej", shifts, deformation[system[batch.senders]])
        else:
            # Not the leaf itself, so that dE/dR is that of R in both cases.
            positions = positions.view_as(positions)
        if moved is not None:
            positions = positions + moved
        batch.edge_features["vectors"] = positions[batch.receivers] - positions[batch.senders] + shifts
        # The force head takes the net torque out of a molecule's forces, by these.
        batch.node_features["positions"] = positions
        return positions


def _double_backward(
    model: OrbModel, batch: AtomGraphs, bent: _Bent | None = None
) -> tuple[tuple[torch.Tensor, ...], TwoForces]:
    """grad of s = sum |F_nc - F_c|^2 by differentiating through F_c = -dE/dR."""
    bent = bent or _Bent(batch, strain=False)
    with torch.enable_grad():
        positions = bent.positions()
        forces = model.heads_of(batch, positions, direct=True, conservative=False, confidence=True, create_graph=True)
        wanted = (positions,) if bent.strain is None else (positions, bent.strain)
        slopes = torch.autograd.grad(forces.energy.sum(), wanted, create_graph=True)
        assert forces.forces_direct is not None
        forces.forces_conservative = -slopes[0]
        squares = (forces.forces_direct - forces.forces_conservative).square().sum()
        gradients = torch.autograd.grad(squares, bent.leaves)
    bent.energy_gradient = None if bent.strain is None else slopes[1].detach()
    return gradients, forces


def _central_difference(
    model: OrbModel, batch: AtomGraphs, bent: _Bent | None = None
) -> tuple[tuple[torch.Tensor, ...], TwoForces]:
    """grad s = 2 (J_nc^T d + H d) with d = F_nc - F_c: the first term by one more backward pass, the second, the Hessian of
    the energy times d, by a central difference of dE/dR along d at fixed graph. No graph of a graph is ever kept.

    With strain the same holds for e: d/de of d . dE/dR is the difference along d of dE/de, the deformation leaving the
    displacement as it is.
    """
    bent = bent or _Bent(batch, strain=False)
    with torch.enable_grad():
        positions = bent.positions()
        # create_graph keeps the forward graph for J_nc^T d; the energy's backward graph is not built.
        forces = model.heads_of(batch, positions, direct=True, conservative=False, confidence=True, create_graph=True)
        assert forces.forces_direct is not None
        wanted = (positions,) if bent.strain is None else (positions, bent.strain)
        slopes = torch.autograd.grad(forces.energy.sum(), wanted, retain_graph=True)
        difference = (forces.forces_direct + slopes[0]).detach()
        direct_terms = torch.autograd.grad((forces.forces_direct * difference).sum(), bent.leaves)
    bent.energy_gradient = None if bent.strain is None else slopes[1]
    forces.forces_conservative = -slopes[0]
    forces.forces_direct = forces.forces_direct.detach()
    step = _step(batch, difference, HVP_STEP_A[model.torch_dtype])
    system = batch.node_batch_index
    ends = []
    for sign in (1.0, -1.0):
        with torch.enable_grad():
            moved = bent.positions(sign * step[system, None] * difference)
            end = model.heads_of(batch, moved, direct=False, conservative=False, create_graph=True)
            ends.append(torch.autograd.grad(end.energy.sum(), bent.leaves))
    width = [2 * step[system, None], 2 * step[:, None, None]]
    return tuple(
        2 * (term + (plus - minus) / w)
        for term, plus, minus, w in zip(direct_terms, *ends, width[: len(direct_terms)], strict=True)
    ), forces


def _one_sided_difference(
    model: OrbModel, batch: AtomGraphs, bent: _Bent | None = None
) -> tuple[tuple[torch.Tensor, ...], TwoForces]:
    """As `_central_difference`, with one pass more instead of three: the gradient of F_nc . d + E / h at R + h d, less dE/dR / h, is
    J_nc^T d + H d to first order in h."""
    bent = bent or _Bent(batch, strain=False)
    with torch.enable_grad():
        positions = bent.positions()
        forces = model.heads_of(batch, positions, direct=True, conservative=False, confidence=True, create_graph=True)
        assert forces.forces_direct is not None
        wanted = (positions,) if bent.strain is None else (positions, bent.strain)
        slopes = torch.autograd.grad(forces.energy.sum(), wanted)
    bent.energy_gradient = None if bent.strain is None else slopes[1]
    forces.forces_conservative, forces.forces_direct = -slopes[0], forces.forces_direct.detach()
    difference = forces.forces_direct + slopes[0]
    step = _step(batch, difference, ONE_SIDED_STEP_A[model.torch_dtype])
    system = batch.node_batch_index
    with torch.enable_grad():
        moved = bent.positions(step[system, None] * difference)
        end = model.heads_of(batch, moved, direct=True, conservative=False, create_graph=True)
        assert end.forces_direct is not None
        both = (end.forces_direct * difference).sum() + (end.energy.reshape(-1) / step).sum()
        found = torch.autograd.grad(both, bent.leaves)
    widths = (step[system, None], step[:, None, None])
    return tuple(2 * (f - s / w) for f, s, w in zip(found, slopes, widths, strict=False)), forces


def _step(batch: AtomGraphs, difference: torch.Tensor, longest_A: float) -> torch.Tensor:
    """The h (S,) by which h d moves the farthest atom of each structure by longest_A; of every structure its own, so that the partners in
    a batch change nothing."""
    longest = torch.zeros(len(batch.n_node), dtype=difference.dtype, device=difference.device)
    longest = longest.scatter_reduce(0, batch.node_batch_index, difference.norm(dim=-1), "amax")
    return longest_A / longest.clamp(min=1e-12)


def _records(forces: TwoForces, batch: AtomGraphs, ties: Sequence[float | None]) -> list[Evaluation]:
    assert forces.forces_direct is not None and forces.forces_conservative is not None
    counts = batch.n_node.tolist()
    ends = np.cumsum(counts)
    energy = _array(forces.energy).reshape(-1)
    direct, conservative = _array(forces.forces_direct), _array(forces.forces_conservative)
    confidence = None if forces.confidence is None else _array(forces.confidence)
    out = []
    for index, (count, end) in enumerate(zip(counts, ends, strict=True)):
        rows = slice(end - count, end)
        out.append(
            Evaluation(
                energy=float(energy[index]),
                forces_direct=direct[rows],
                forces_conservative=conservative[rows],
                confidence=None if confidence is None else confidence[rows],
                graph_tie_A=ties[index],
            )
        )
    return out


def _array(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.detach().to("cpu", torch.float64).numpy()


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
    """The same numbers to the last bit every time, on a CPU: by default torch adds up gradients of shared rows in whatever
    order its threads come (2e-7 eV/Å from call to call). It costs nothing that can be measured. CUDA is left as it is."""
    if torch.are_deterministic_algorithms_enabled():
        yield
        return
    filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filling


def _plain_harmonics() -> None:
    """Let the package call its spherical harmonics as the Python that they are written in. As TorchScript they are compiled anew on their
    second call in a process, whoever makes it: the last bit of F_c would depend on what the process did before (2e-9 eV/Å), and a run taken
    up by another one would not go on in the same bits. Both are as fast (measured in turn)."""
    scripted = angular._spherical_harmonics
    if isinstance(scripted, torch.jit.ScriptFunction):
        # Where torch keeps what was scripted, for its own compiler.
        angular._spherical_harmonics = scripted._torchdynamo_inline


_plain_harmonics()


def _guarded[T](device: str, run: Callable[[], T]) -> T:
    """Repeatable on a CPU; the backend's out-of-memory errors become the one that the base class acts on."""
    try:
        with _repeatable() if device == "cpu" else contextlib.nullcontext():
            return run()
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfMemory from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise OutOfMemory from error
        raise
