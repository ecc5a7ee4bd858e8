"""Orb models behind the contracts: E, F_nc and F_c from one neighbour graph, one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from orb_models.common.atoms.batch.graph_batch import AtomGraphs
from orb_models.forcefield.forcefield_adapter import ForcefieldAtomsAdapter

from fdcore.errors import UsageError, WeightsError
from fdcore.models.base import ForceName, GradientMethod, Model
from fdcore.models.orb_gradients import WAYS, Bent, jacobian_product
from fdcore.models.orb_network import OrbNetwork, TwoForces
from fdcore.models.orb_potential import OrbPotential
from fdcore.models.potential import Potential
from fdcore.models.torch_calls import array, guarded
from fdcore.records import Evaluation, Gradients, ModelCard, Prediction, Structure

if TYPE_CHECKING:
    from fdcore.models.orb_network import Regressor

# Below this U_Delta (eV/Å) its gradient is numerical noise: a square root has no gradient at zero.
ZERO_FORCE_DELTA = 1e-10


class OrbModel(OrbNetwork, Model):
    """An Orb module with a direct force head behind the contract of `Model`."""

    pulls_back = True

    def __init__(
        self, card: ModelCard, module: Regressor, adapter: ForcefieldAtomsAdapter, device: str, dtype: str
    ) -> None:
        super().__init__(card, module, adapter, device, dtype)
        if "forces" not in module.heads:
            raise WeightsError(
                f"{card.id} has no direct force head, so there is no second force to compare.",
                "U_Delta is defined for direct-force models; choose one whose kind is 'direct'.",
            )

    def _evaluate(self, structures: Sequence[Structure]) -> list[Evaluation]:
        return self._evaluate_graph(structures, None)

    def _graph(self, structures: Sequence[Structure]) -> AtomGraphs:
        return guarded(self.device, lambda: self.graphs(structures))

    def _evaluate_graph(self, structures: Sequence[Structure], graph: AtomGraphs | None) -> list[Evaluation]:
        def run() -> list[Evaluation]:
            batch = self.graphs(structures) if graph is None else graph
            ties = self.graph_tie_A(structures, batch)
            return _records(self.two_forces(batch, confidence=True), batch, ties)

        return guarded(self.device, run)

    def _predict(self, structures: Sequence[Structure]) -> list[Prediction]:
        def run() -> list[Prediction]:
            batch = self.graphs(structures)
            found = self.two_forces(batch, conservative=False)
            assert found.forces_direct is not None
            return _predictions(found.energy, found.forces_direct, structures)

        return guarded(self.device, run)

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

        return guarded(self.device, run)

    def _pull_back(self, structure: Structure, vectors: NDArray[np.float64], force: ForceName) -> NDArray[np.float64]:
        """Copies of the structure side by side, one for each vector: one backward pass for all of them."""

        def run() -> NDArray[np.float64]:
            one = self.graphs([structure])
            per_batch = max(1, int(self.gradient_batch_edges // max(1, len(one.senders))))
            out = []
            for start in range(0, len(vectors), per_batch):
                part = vectors[start : start + per_batch]
                batch = AtomGraphs.batch([one] * len(part)) if len(part) > 1 else one.clone()
                along = torch.as_tensor(part.reshape(-1, 3), dtype=self.torch_dtype, device=self.device)
                out.append(array(jacobian_product(self, batch, along, force)).reshape(part.shape))
            return np.concatenate(out)

        return guarded(self.device, run)

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
            bent = Bent(batch, strain)
            squares, forces = WAYS[method](self, batch, bent)
            evaluations = _records(forces, batch, ties)
            ends = np.cumsum([s.n_atoms for s in structures])
            gradients = np.split(array(squares[0]), ends[:-1])
            deformations = array(squares[1]) if strain else [None] * len(structures)
            virials = array(bent.energy_gradient) if bent.energy_gradient is not None else [None] * len(structures)
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

        return guarded(self.device, run)


class OrbConservative(OrbNetwork):
    """An Orb module whose force is the gradient of its energy, as a member of an ensemble."""

    def _predict(self, structures: Sequence[Structure]) -> list[Prediction]:
        def run() -> list[Prediction]:
            batch = self.graphs(structures)
            found = self.two_forces(batch, direct=False)
            assert found.forces_conservative is not None
            return _predictions(found.energy, found.forces_conservative, structures)

        return guarded(self.device, run)


def _predictions(
    energy: torch.Tensor, forces_driving: torch.Tensor, structures: Sequence[Structure]
) -> list[Prediction]:
    ends = np.cumsum([s.n_atoms for s in structures])
    parts = np.split(array(forces_driving), ends[:-1])
    return [Prediction(float(e), f) for e, f in zip(array(energy).reshape(-1), parts, strict=True)]


def _records(forces: TwoForces, batch: AtomGraphs, ties: Sequence[float | None]) -> list[Evaluation]:
    assert forces.forces_direct is not None and forces.forces_conservative is not None
    counts = batch.n_node.tolist()
    ends = np.cumsum(counts)
    energy = array(forces.energy).reshape(-1)
    direct, conservative = array(forces.forces_direct), array(forces.forces_conservative)
    confidence = None if forces.confidence is None else array(forces.confidence)
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
