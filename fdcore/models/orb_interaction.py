"""The interaction networks of Orb with their first product divided, as often differentiable as the package's own.

An edge network begins with W [e_ij, n_i, n_j]. That is W_e e_ij + W_s n_i + W_r n_j, and the last two can be taken of each atom once instead of
of each of its edges: with 50 edges to an atom two thirds of the largest product are gone, and the array of (edges, 3 width) with them.
"""

from __future__ import annotations

from typing import Any

import torch
from orb_models.common.models import segment_ops
from orb_models.common.models.gns import AttentionInteractionNetwork
from torch import nn
from torch.nn import functional


def edge_layers(network: Any) -> list[Any]:
    """The layers of an MLP with a norm in their order, without those that do nothing."""
    return [layer for layer in network.mlp if not isinstance(layer, nn.Identity)] + [network.layer_norm]


class FactoredInteraction(AttentionInteractionNetwork):
    """Takes over the layers and settings of an interaction network; the same values up to the order of sums."""

    def __init__(self, old: AttentionInteractionNetwork) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(old.__dict__)

    @property
    def edge_layers(self) -> list[Any]:
        """Those of the edge network in their order, its norm last."""
        return edge_layers(self._edge_mlp)

    def conditioned(
        self, nodes: torch.Tensor, edges: torch.Tensor, of_nodes: torch.Tensor | None, of_edges: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Nodes and edges with what is said about the system as a whole (charge and spin)."""
        return (
            self._with(nodes, self._node_cond, of_nodes, "_cond_node_proj"),
            self._with(edges, self._edge_cond, of_edges, "_cond_edge_proj"),
        )

    def _with(self, features: torch.Tensor, how: str, told: torch.Tensor | None, name: str) -> torch.Tensor:
        if how == "none" or told is None:
            return features
        said = getattr(self, name)(told)
        return features + said if how == "additive" else torch.cat([features, said], dim=-1)

    def _gates(
        self, edges: torch.Tensor, atoms: int, senders: torch.Tensor, receivers: torch.Tensor, cutoff: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """How much of an edge its sender and its receiver take, each (E, 1)."""
        of_sender, of_receiver = self._send_attn(edges), self._receive_attn(edges)
        if self._attention_gate == "softmax":
            weights = cutoff if self._distance_cutoff else None
            sent = segment_ops.segment_softmax(of_sender, senders, atoms, weights=weights)
            received = segment_ops.segment_softmax(of_receiver, receivers, atoms, weights=weights)
        else:
            sent, received = torch.sigmoid(of_sender), torch.sigmoid(of_receiver)
        return (sent * cutoff, received * cutoff) if self._distance_cutoff else (sent, received)

    def divided(self, nodes: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The first product: (A, hidden) of atoms as senders, with the bias; (A, hidden) as receivers; its weight (hidden, width) for edges."""
        first = self.edge_layers[0]
        of_edges, of_sent, of_received = first.weight.split([width, nodes.shape[1], nodes.shape[1]], dim=1)
        return functional.linear(nodes, of_sent, first.bias), functional.linear(nodes, of_received), of_edges

    def forward(
        self,
        nodes: torch.Tensor,
        edges: torch.Tensor,
        senders: torch.Tensor,
        receivers: torch.Tensor,
        cutoff: torch.Tensor,
        cond_nodes: torch.Tensor | None = None,
        cond_edges: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Nodes (A, width) and edges (E, width) of the next layer; `cutoff` (E, 1)."""
        nodes, edges = self.conditioned(nodes, edges, cond_nodes, cond_edges)
        sent_gate, received_gate = self._gates(edges, len(nodes), senders, receivers, cutoff)
        sending, receiving, weight = self.divided(nodes, edges.shape[1])
        hidden = sending.index_select(0, senders) + receiving.index_select(0, receivers)
        updated = torch.addmm(hidden, edges, weight.T)
        for layer in self.edge_layers[1:]:
            updated = layer(updated)
        nothing = updated.new_zeros(len(nodes), updated.shape[1])
        sent = nothing.index_add(0, senders, updated * sent_gate)
        received = nothing.index_add(0, receivers, updated * received_gate)
        moved = self._node_mlp(torch.cat([nodes, received, sent], dim=1))
        # What was appended as a condition is not handed on.
        return nodes[:, : self.latent_dim] + moved, edges[:, : self.latent_dim] + updated


def factor(module: Any) -> None:
    """Replace every interaction network of an Orb module by its factored form; those with dropout stay as they are."""
    stacks = module.model.gnn_stacks
    for index, old in enumerate(stacks):
        if type(old) is AttentionInteractionNetwork and isinstance(edge_layers(old._edge_mlp)[0], nn.Linear):
            stacks[index] = FactoredInteraction(old)
