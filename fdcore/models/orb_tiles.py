"""The backbone of Orb v3 on a processor, differentiated once, in tiles of edges that stay in its cache.

An edge network is three matrix products with passes over arrays of (edges, width) between them, and a batch has far more edges than a cache
holds: as single operations of torch the passes wait for memory. Here a tile of some hundred edges goes through a whole layer, forwards and
backwards, before the next one is begun (fusing by tiles, as FlashAttention does: Dao et al. 2022), with the derivatives written out.

The first product of an interaction is divided as in `orb_interaction`. Values and derivatives are those of the package's modules up to the
order of sums (tests/unit/test_orb_tiles.py). What is differentiated twice goes through the modules themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from orb_models.common.models.gns import MoleculeGNS
from orb_models.common.models.nn_util import get_cutoff
from torch import nn

from fdcore.models.orb_interaction import FactoredInteraction, edge_layers
from fdcore.models.twice import TwiceRMSNorm, TwiceSilu

# What the widest array of a tile takes on one thread. Measured with 2 MB of second cache to a core: 0.5 to 2 MB are alike, less is slower because
# every operation on a tile has a cost of its own.
TILE_BYTES = 2**20


@dataclass(frozen=True)
class _Layers:
    """Linear, SiLU, linear, ..., linear, RMSNorm. `weights` and `biases`: of the linear ones, (out, in) and (out,); `scale` (width,), `eps`: of the norm."""

    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor, ...]
    scale: torch.Tensor
    eps: float

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths between the products."""
        return tuple(w.shape[0] for w in self.weights[:-1])

    @property
    def rows(self) -> int:
        """Edges of a tile."""
        return max(256, TILE_BYTES // (max(self.hidden) * self.scale.element_size()) * torch.get_num_threads())


@dataclass(frozen=True)
class _InteractionWeights:
    """`of_edges` (hidden, width): of the first product, the rest of which is divided; `gates` (2, width), `gate_biases` (2,): of senders and of receivers."""

    layers: _Layers
    of_edges: torch.Tensor
    gates: torch.Tensor
    gate_biases: torch.Tensor


class TiledBackbone:
    """What `MoleculeGNS.forward` says of the atoms, on a CPU."""

    def __init__(self, gns: MoleculeGNS) -> None:
        self._gns: Any = gns

    def node_features(self, batch: Any) -> torch.Tensor:
        """(A, width), differentiable once with respect to the batch's edge vectors."""
        gns = self._gns
        vectors = batch.edge_features["vectors"] * getattr(gns, "scale", 1.0)
        lengths = vectors.norm(dim=-1)
        cutoff = get_cutoff(lengths)
        radial = gns.rbf_transform(lengths) * cutoff
        edges = _Encode.apply(radial, gns.angular_transform(vectors), _layers(_encoder(gns)))
        nodes = gns._encoder._node_fn(gns.featurize_nodes(batch))
        of_nodes, of_edges = (None, None) if gns.conditioner is None else gns.conditioner(batch)
        for number, interaction in enumerate(gns.gnn_stacks, start=1):
            nodes, edges = interaction.conditioned(nodes, edges, of_nodes, of_edges)
            sending, receiving, weight = interaction.divided(nodes, edges.shape[1])
            send, receive = interaction._send_attn, interaction._receive_attn
            weights = _InteractionWeights(
                _layers(interaction.edge_layers),
                weight,
                torch.cat([send.weight, receive.weight]),
                torch.cat([send.bias, receive.bias]),
            )
            edges, sent, received = _Interact.apply(
                edges,
                sending,
                receiving,
                cutoff,
                batch.senders,
                batch.receivers,
                weights,
                number == len(gns.gnn_stacks),
            )
            nodes = nodes + interaction._node_mlp(torch.cat([nodes, received, sent], dim=1))
        return nodes


def tiled(gns: Any) -> TiledBackbone | None:
    """None where a network is not of the kind that is written out here: edges that are made of something else than lengths times directions,
    other activations, norms or gates."""
    written_out = (
        isinstance(gns, MoleculeGNS)
        and gns.outer_product_with_cutoff
        and all(name == "feat" for name in gns.edge_feature_names)
        and _known(_encoder(gns))
        and all(
            isinstance(stack, FactoredInteraction)
            and stack._attention_gate == "sigmoid"
            and stack._distance_cutoff
            and "concatenative" not in stack.conditioning_type
            and _known(stack.edge_layers)
            for stack in gns.gnn_stacks
        )
    )
    return TiledBackbone(gns) if written_out else None


def _encoder(gns: Any) -> list[nn.Module]:
    return edge_layers(gns._encoder._edge_fn)


def _known(layers: list[nn.Module]) -> bool:
    """Whether they are linear, SiLU, linear, ..., linear, RMSNorm, and two linear ones at least."""
    *between, norm = layers
    return (
        isinstance(norm, TwiceRMSNorm)
        and len(between) > 2
        and len(between) % 2 == 1
        and all(isinstance(layer, nn.Linear) for layer in between[::2])
        and all(isinstance(layer, TwiceSilu) for layer in between[1::2])
    )


def _layers(layers: list[Any]) -> _Layers:
    """Read anew for every pass: a fine-tuning changes them."""
    *between, norm = layers
    linear = between[::2]
    return _Layers(
        tuple(x.weight for x in linear), tuple(x.bias for x in linear), norm.weight, norm.smallest(norm.weight)
    )


class _Work:
    """The layers over all edges, tile by tile. What the way back needs is kept where it is needed: before each activation what goes into it
    (E, hidden); the last product over its root mean square, `normed` (E, width), and one over that, `inverse` (E, 1). All else uses the
    same few arrays again."""

    def __init__(self, layers: _Layers, edges: int, *, keep: bool) -> None:
        self.layers, self.edges = layers, edges
        self.rows = max(1, min(layers.rows, edges))
        self._buffers: dict[tuple[str, int], torch.Tensor] = {}
        width = len(layers.scale)
        self._kept = [self._new(edges, n) for n in (*layers.hidden, width, 1)] if keep else None

    def _new(self, rows: int, width: int) -> torch.Tensor:
        return torch.empty((rows, width), dtype=self.layers.scale.dtype)

    def divided(self, *arrays: torch.Tensor) -> Iterator[tuple[_Tile, tuple[torch.Tensor, ...]]]:
        """Every tile with its rows of these arrays (E, ...)."""
        kept = None if self._kept is None else [a.split(self.rows) for a in self._kept]
        for number, parts in enumerate(zip(*(a.split(self.rows) for a in arrays), strict=True)):
            tile = _Tile(self, len(parts[0]), None if kept is None else [k[number] for k in kept])
            yield tile, parts
        self._buffers.clear()

    def buffer(self, name: str, rows: int, width: int) -> torch.Tensor:
        """(rows, width), with whatever was left in it."""
        found = self._buffers.get((name, width))
        if found is None:
            found = self._buffers[name, width] = self._new(self.rows, width)
        return found if rows == self.rows else found[:rows]


class _Tile:
    """Some edges on their way through the layers and back."""

    def __init__(self, work: _Work, rows: int, kept: list[torch.Tensor] | None) -> None:
        self._layers, self._work, self.rows = work.layers, work, rows
        if kept is None:
            hidden = enumerate(work.layers.hidden)
            kept = [self.buffer(f"hidden {k}", n) for k, n in hidden]
            kept += [self.buffer("normed", len(work.layers.scale)), self.buffer("inverse", 1)]
        *self.hidden, self.normed, self.inverse = kept

    def buffer(self, name: str, width: int) -> torch.Tensor:
        return self._work.buffer(name, self.rows, width)

    def through(self) -> torch.Tensor:
        """From the first product, which stands in `hidden[0]`, to the last, normed (T, width), not yet scaled."""
        layers = self._layers
        ends = [*self.hidden[1:], self.normed]
        for weight, bias, start, end in zip(layers.weights[1:], layers.biases[1:], self.hidden, ends, strict=True):
            active = _silu(start, out=self.buffer("active", start.shape[1]))
            torch.addmm(bias, active, weight.T, out=end)
        torch.linalg.vecdot(self.normed, self.normed, out=self.inverse[:, 0])
        self.inverse.div_(self.normed.shape[1]).add_(layers.eps).rsqrt_()
        return self.normed.mul_(self.inverse)

    def back(self, slope: torch.Tensor) -> torch.Tensor:
        """From the derivative by what is normed, (T, width), which is used up, to that by the first product, (T, hidden)."""
        along = self.buffer("along", 1)
        torch.linalg.vecdot(slope, self.normed, out=along[:, 0])
        slope.addcmul_(self.normed, along, value=-1 / slope.shape[1]).mul_(self.inverse)
        for k in reversed(range(len(self.hidden))):
            weight = self._layers.weights[k + 1]
            product = torch.mm(slope, weight, out=self.buffer(f"back {k}", weight.shape[1]))
            slope = _silu_slope(product, self.hidden[k], grad_input=product)
        return slope


_silu = torch.ops.aten.silu.out
_silu_slope = torch.ops.aten.silu_backward.grad_input


def _once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """torch's own decorator lets a second derivative through where the first one came from a constant, and it would lack a part."""

    @functools.wraps(backward)
    def run(ctx: Any, *grads: torch.Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("Tiles can be differentiated once; ask the network itself with create_graph=True.")
        return backward(ctx, *grads)

    return run


class _Encode(torch.autograd.Function):
    """Edge features of the outer products of `radial` (E, K) and `angular` (E, L)."""

    @staticmethod
    def forward(ctx: Any, radial: torch.Tensor, angular: torch.Tensor, layers: _Layers) -> torch.Tensor:
        work = _Work(layers, len(radial), keep=any(ctx.needs_input_grad))
        encoded = radial.new_empty(len(radial), len(layers.scale))
        into = layers.weights[0].T
        for tile, (lengths, directions, out) in work.divided(radial, angular, encoded):
            product = _outer(tile, lengths, directions)
            torch.mul(lengths[:, :, None], directions[:, None, :], out=product)
            torch.addmm(layers.biases[0], product.flatten(1), into, out=tile.hidden[0])
            torch.mul(tile.through(), layers.scale, out=out)
        ctx.save_for_backward(radial, angular)
        ctx.work = work
        return encoded

    @staticmethod
    @_once
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        radial, angular = ctx.saved_tensors
        work: _Work = ctx.work
        layers = work.layers
        to_radial, to_angular = torch.empty_like(radial), torch.empty_like(angular)
        arrays = (grads[0], radial, angular, to_radial, to_angular)
        for tile, (by_encoded, lengths, directions, to_lengths, to_directions) in work.divided(*arrays):
            slope = torch.mul(by_encoded, layers.scale, out=tile.buffer("slope", by_encoded.shape[1]))
            product = _outer(tile, lengths, directions)
            torch.mm(tile.back(slope), layers.weights[0], out=product.flatten(1))
            torch.bmm(product, directions.unsqueeze(2), out=to_lengths.unsqueeze(2))
            torch.bmm(lengths.unsqueeze(1), product, out=to_directions.unsqueeze(1))
        return to_radial, to_angular, None


def _outer(tile: _Tile, lengths: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Room for (T, K, L)."""
    bases, harmonics = lengths.shape[1], directions.shape[1]
    return tile.buffer("outer", bases * harmonics).view(-1, bases, harmonics)


class _Interact(torch.autograd.Function):
    """One interaction: edges (E, width) and the divided first product (A, hidden) of senders and receivers to the next edges, and
    to what each atom has sent and received, (A, width) each. `cutoff` (E, 1) weighs what is taken of an edge."""

    @staticmethod
    def forward(
        ctx: Any,
        edges: torch.Tensor,
        sending: torch.Tensor,
        receiving: torch.Tensor,
        cutoff: torch.Tensor,
        senders: torch.Tensor,
        receivers: torch.Tensor,
        weights: _InteractionWeights,
        last: bool,
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
        keep = any(ctx.needs_input_grad)
        layers = weights.layers
        work = _Work(layers, len(edges), keep=keep)
        width, hidden = len(layers.scale), layers.hidden[0]
        gates = torch.addmm(weights.gate_biases, edges, weights.gates.T).sigmoid_()
        # Nobody asks for the edges behind the last interaction.
        updated = None if last else torch.empty_like(edges)
        sent, received = edges.new_zeros(2, len(sending), width)
        into = weights.of_edges.T
        arrays = (edges, edges if updated is None else updated, senders, receivers, *(gates * cutoff).split(1, dim=1))
        for tile, (old, new, s, r, taken_by_s, taken_by_r) in work.divided(*arrays):
            first = torch.index_select(sending, 0, s, out=tile.hidden[0])
            first.add_(torch.index_select(receiving, 0, r, out=tile.buffer("active", hidden))).addmm_(old, into)
            normed = tile.through()
            if not last:
                torch.addcmul(old, normed, layers.scale, out=new)
            share = tile.buffer("share", width)
            sent.index_add_(0, s, torch.mul(normed, taken_by_s, out=share))
            received.index_add_(0, r, torch.mul(normed, taken_by_r, out=share))
        if keep:
            ctx.save_for_backward(gates, cutoff, senders, receivers)
            ctx.weights, ctx.work, ctx.atoms, ctx.last = weights, work, len(sending), last
        return updated, sent.mul_(layers.scale), received.mul_(layers.scale)

    @staticmethod
    @_once
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        gates, cutoff, senders, receivers = ctx.saved_tensors
        work: _Work = ctx.work
        weights: _InteractionWeights = ctx.weights
        layers = weights.layers
        width, hidden = len(layers.scale), layers.hidden[0]
        by_sent, by_received = grads[1] * layers.scale, grads[2] * layers.scale
        to_edges, to_taken = gates.new_empty(len(gates), width), torch.empty_like(gates)
        to_sending, to_receiving = gates.new_zeros(2, ctx.atoms, hidden)
        by_updated = to_edges if ctx.last else grads[0]
        arrays = (by_updated, to_edges, senders, receivers, *(gates * cutoff).split(1, dim=1), *to_taken.unbind(1))
        for tile, (by_new, to_old, s, r, taken_by_s, taken_by_r, to_s, to_r) in work.divided(*arrays):
            slope = tile.buffer("slope", width)
            if ctx.last:
                slope.zero_()
            else:
                torch.mul(by_new, layers.scale, out=slope)
            for by_atoms, atoms, taken, to in ((by_sent, s, taken_by_s, to_s), (by_received, r, taken_by_r, to_r)):
                share = torch.index_select(by_atoms, 0, atoms, out=tile.buffer("share", width))
                torch.linalg.vecdot(share, tile.normed, out=to)
                slope.addcmul_(share, taken)
            first = tile.back(slope)
            to_sending.index_add_(0, s, first)
            to_receiving.index_add_(0, r, first)
            if ctx.last:
                torch.mm(first, weights.of_edges, out=to_old)
            else:
                torch.addmm(by_new, first, weights.of_edges, out=to_old)
        to_cutoff = torch.linalg.vecdot(to_taken, gates).unsqueeze(1)
        through_gates = to_taken.mul_(cutoff).mul_(gates).mul_(1 - gates)
        to_edges.addmm_(through_gates, weights.gates)
        return to_edges, to_sending, to_receiving, to_cutoff, None, None, None, None
