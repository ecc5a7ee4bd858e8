"""An Orb model whose weights may change: graphs with targets, and the losses of one batch with their gradients.

Everything is done in eval mode: in train mode a forward pass moves the normalisers (F_nc by 1e-2 in one pass). The losses are those
that Orb was trained by (Rhodes et al. 2025): a Huber loss (0.01) of the energy per atom and the conditional Huber loss of forces, each
divided by the model's own frozen normaliser; the gradient loss treats F_c as the direct loss treats F_nc, with the same normaliser, so
that one weight means the same for both.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from orb_models.common.atoms.batch.graph_batch import AtomGraphs
from orb_models.forcefield.models.loss import forces_loss_function
from torch import nn
from torch.nn.utils import parametrize

from fdcore.errors import UsageError
from fdcore.models.orb import OrbModel
from fdcore.models.torch_calls import guarded
from fdcore.records import Structure

Array = NDArray[np.float64]
ENERGY, DIRECT, CONSERVATIVE = "energy", "direct", "conservative"
# The heads that answer what is trained; others (stress) stay as they are.
TRAINED_HEADS = ("energy", "forces", "confidence")
HUBER_DELTA = 0.01
# Graphs with at most so many edges in all are kept between epochs.
KEPT_EDGES = 3_000_000


@dataclass(frozen=True)
class Example:
    """A structure with what it is trained towards: energy in eV, forces_reference (N, 3) in eV/Å."""

    structure: Structure
    energy: float
    forces_reference: Array


@dataclass(frozen=True)
class Weights:
    """Of the three losses in the sum that is minimised; a loss of weight zero is not computed."""

    energy: float
    direct: float
    conservative: float


class LowRank(nn.Module):
    """W + B A with B (out, rank) zero and A (rank, in) random at first: a matrix that may only change by rank `rank` (Hu et al. 2021)."""

    def __init__(self, weight: torch.Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        drawn = torch.randn((rank, columns), generator=generator, dtype=torch.float64) / math.sqrt(columns)
        self.down = nn.Parameter(drawn.to(weight))
        self.up = nn.Parameter(torch.zeros((rows, rank), dtype=weight.dtype, device=weight.device))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.up @ self.down


class OrbTraining:
    """A copy of an Orb model that is being trained. `parameters` are what changes, by name."""

    def __init__(self, base: OrbModel, parts: str, rank: int, seed: int) -> None:
        """parts: "all", "heads" or "low-rank" (of every matrix of the backbone; the heads whole)."""
        self._plain = base.module
        module = copy.deepcopy(base.module)
        self._low_rank: list[str] = []
        self.model = OrbModel(base.card, module, base.adapter, base.device, base.dtype)
        heads = [module.heads[name] for name in TRAINED_HEADS if name in module.heads]
        for head in heads:
            head.requires_grad_(True)
            for name, parameter in head.named_parameters():
                # What the labels' zero of energy and unit are is no matter of training.
                if name.startswith(("normalizer.", "reference.")):
                    parameter.requires_grad_(False)
        if parts == "all":
            module.model.requires_grad_(True)
        elif parts == "low-rank":
            generator = torch.Generator().manual_seed(seed)
            for path, layer in [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear)]:
                if not path.startswith("model."):
                    continue
                self._low_rank.append(path)
                parametrize.register_parametrization(
                    layer, "weight", LowRank(layer.weight, min(rank, *layer.weight.shape), generator)
                )
        elif parts != "heads":
            raise UsageError(f"There are no parts {parts!r}.", "Train all, heads or low-rank.")
        self.parameters: dict[str, nn.Parameter] = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._graphs: dict[int, AtomGraphs] = {}
        self._kept = 0

    # ---- the zero of energy ----------------------------------------------------------------------------------------

    def shift_reference_energies(self, examples: Sequence[Example], energies: Sequence[float]) -> Mapping[int, float]:
        """Add to the model's reference energies what, per element, brings `energies` (its own, eV) nearest to those of the examples; the
        elements and what was added to each (eV)."""
        numbers = np.unique(np.concatenate([e.structure.numbers for e in examples]))
        counts = np.array([[np.count_nonzero(e.structure.numbers == z) for z in numbers] for e in examples], float)
        residual = np.array([e.energy for e in examples]) - np.asarray(energies, float)
        # The smallest shifts that do it, where the compositions do not tell the elements apart.
        shifts, *_ = np.linalg.lstsq(counts, residual, rcond=None)
        weight = self.model.module.heads["energy"].reference.linear.weight
        with torch.no_grad():
            flat = weight.view(-1)
            flat[torch.as_tensor(numbers, device=flat.device)] += torch.as_tensor(shifts, dtype=flat.dtype).to(flat)
        return {int(z): float(s) for z, s in zip(numbers, shifts, strict=True)}

    # ---- one batch -------------------------------------------------------------------------------------------------

    def losses(
        self, examples: Mapping[int, Example], weights: Weights, turns: Array, share: float = 1.0
    ) -> dict[str, float]:
        """The losses of these examples (by their number), each turned by its rotation in `turns` (S, 3, 3), and their weighted sum under
        "loss". Its gradient times `share` is added to the gradients of the parameters."""

        def run() -> dict[str, float]:
            batch = self._batch(examples, turns)
            both = weights.conservative > 0
            found = self.model.two_forces(batch, conservative=both, create_graph=True, direct=True)
            heads = self.model.module.heads
            losses: dict[str, torch.Tensor] = {}
            if weights.energy > 0:
                per_atom = batch.n_node.to(found.energy.dtype)
                error = (found.energy.reshape(-1) - batch.system_targets["energy"].reshape(-1)) / per_atom
                scale = heads["energy"].normalizer.bn.running_var.double().sqrt()
                losses[ENERGY] = nn.functional.huber_loss(error / scale, torch.zeros_like(error), delta=HUBER_DELTA).to(
                    self.model.torch_dtype
                )
            forces = {DIRECT: found.forces_direct, CONSERVATIVE: found.forces_conservative}
            for name, weight in ((DIRECT, weights.direct), (CONSERVATIVE, weights.conservative)):
                if weight > 0:
                    losses[name] = self._force_loss(forces[name], batch)
            total = sum(getattr(weights, name) * loss for name, loss in losses.items())
            assert isinstance(total, torch.Tensor)
            learnt = total
            if "confidence" in heads:
                # The errors that it expects are changing. It reads the rest of the network without pulling at it.
                assert found.node_features is not None and found.forces_direct is not None
                logits = heads["confidence"](found.node_features.detach(), batch)
                errors = (found.forces_direct.detach() - batch.node_targets["forces"]).abs().mean(-1)
                learnt = total + heads["confidence"].loss(logits, errors, batch).loss
            (learnt * share).backward()
            return {"loss": float(total.detach()), **{name: float(loss.detach()) for name, loss in losses.items()}}

        return guarded(self.model.device, run)

    def _force_loss(self, predicted: Any, batch: AtomGraphs) -> torch.Tensor:
        target = batch.node_targets["forces"]
        head = self.model.module.heads["forces"]
        return forces_loss_function(
            raw_pred=predicted,
            raw_target=target,
            raw_gold_target=target,
            name="forces",
            normalizer=head.normalizer,
            n_node=batch.n_node,
            fix_atoms=None,
            loss_type=head.loss_type,
            training=False,
        ).loss

    def _batch(self, examples: Mapping[int, Example], turns: Array) -> AtomGraphs:
        graphs = [self._graph(number, example) for number, example in examples.items()]
        batch = AtomGraphs.batch(graphs)
        matrix = torch.as_tensor(turns, dtype=self.model.torch_dtype, device=self.model.device)
        of_atom = matrix[batch.node_batch_index]

        def turned(vectors: torch.Tensor) -> torch.Tensor:
            return torch.bmm(vectors.unsqueeze(1), of_atom).squeeze(1)

        # Edge vectors are made from positions and cells, so these are all there is to turn.
        batch.node_features = {**batch.node_features, "positions": turned(batch.node_features["positions"].detach())}
        batch.system_features = {**batch.system_features, "cell": torch.bmm(batch.system_features["cell"], matrix)}
        batch.node_targets = {"forces": turned(batch.node_targets["forces"])}
        return batch

    def _graph(self, number: int, example: Example) -> AtomGraphs:
        if number in self._graphs:
            return self._graphs[number]
        graph = self.model.graphs([example.structure])
        dtype, device = self.model.torch_dtype, self.model.device
        graph.system_targets = {"energy": torch.tensor([example.energy], dtype=torch.float64, device=device)}
        graph.node_targets = {"forces": torch.tensor(example.forces_reference, dtype=dtype, device=device)}
        if self._kept + len(graph.senders) <= KEPT_EDGES:
            self._kept += len(graph.senders)
            self._graphs[number] = graph
        return graph

    # ---- what comes out --------------------------------------------------------------------------------------------

    def trained(self, values: Mapping[str, torch.Tensor]) -> OrbModel:
        """A model of its own, frozen, with these values of the parameters; low-rank changes are added to their matrices."""
        # Not a copy of what is trained: parametrized layers of a copy share their class with the originals.
        module = copy.deepcopy(self._plain)
        now = {**{n: p.detach() for n, p in self.parameters.items()}, **values}
        targets = dict(module.named_parameters())
        with torch.no_grad():
            for name, value in now.items():
                if name in targets:
                    targets[name].copy_(value)
            for path in self._low_rank:
                change = now[f"{path}.parametrizations.weight.0.up"] @ now[f"{path}.parametrizations.weight.0.down"]
                targets[f"{path}.weight"].add_(change)
            module.heads["energy"].reference.load_state_dict(self.model.module.heads["energy"].reference.state_dict())
        return OrbModel(self.model.card, module, self.model.adapter, self.model.device, self.model.dtype)
