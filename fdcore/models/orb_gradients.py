"""grad U_Delta of the Orb family, three ways: exact, with less memory, and with less time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from orb_models.common.atoms.batch.graph_batch import AtomGraphs

from fdcore.models.base import ForceName, GradientMethod
from fdcore.models.orb_network import OrbNetwork, TwoForces

# The longest step (Å) of an atom in the central difference of the low-memory gradient, by precision.
HVP_STEP_A = {torch.float32: 5e-3, torch.float64: 1e-4}
# The same for the one-sided form, whose error grows with it: where rounding and curvature are about as large (measured).
ONE_SIDED_STEP_A = {torch.float32: 3e-4, torch.float64: 1e-5}


class Bent:
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


def _both_forces(
    model: OrbNetwork, batch: AtomGraphs, bent: Bent, *, create_graph: bool = False, retain_graph: bool = False
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], TwoForces]:
    """F_nc and the slopes of E along the leaves as the network alone has them, with their graphs where asked for; and both whole forces.

    The repulsion of close atoms stands in both forces alike and does nothing to their difference, but its curvature is steep: in a
    finite difference it would drown the network's, and in a double backward it would cost time.
    """
    apart = model.repulsion_cancels
    with torch.enable_grad():
        positions = bent.positions()
        own = model.heads_of(
            batch,
            positions,
            direct=True,
            conservative=False,
            confidence=True,
            create_graph=True,
            twice=create_graph,
            repulsion=not apart,
        )
        assert own.forces_direct is not None
        wanted = (positions,) if bent.strain is None else (positions, bent.strain)
        near = model.repulsion(batch) if apart else {}
        pushes = torch.autograd.grad(near["energy"].sum(), wanted, retain_graph=True) if apart else None
        slopes = torch.autograd.grad(
            own.energy.sum(), wanted, create_graph=create_graph, retain_graph=create_graph or retain_graph
        )
    whole, energy, direct = [s.detach() for s in slopes], own.energy.detach(), own.forces_direct.detach()
    if pushes is not None:
        whole = [s + p for s, p in zip(whole, pushes, strict=True)]
        energy, direct = energy + near["energy"].detach(), direct + near["forces"].detach()
    bent.energy_gradient = None if bent.strain is None else whole[1]
    return own.forces_direct, slopes, TwoForces(positions, energy, direct, -whole[0], own.confidence)


def _double_backward(model: OrbNetwork, batch: AtomGraphs, bent: Bent) -> tuple[tuple[torch.Tensor, ...], TwoForces]:
    """grad of s = sum |F_nc - F_c|^2 by differentiating through F_c = -dE/dR: one backward pass through both graphs at once."""
    direct, slopes, forces = _both_forces(model, batch, bent, create_graph=True)
    with torch.enable_grad():
        squares = (direct + slopes[0]).square().sum()
        gradients = torch.autograd.grad(squares, bent.leaves)
    return gradients, forces


def _central_difference(model: OrbNetwork, batch: AtomGraphs, bent: Bent) -> tuple[tuple[torch.Tensor, ...], TwoForces]:
    """grad s = 2 (J_nc^T d + H d) with d = F_nc - F_c: the first term by one more backward pass, the second, the Hessian of
    the energy times d, by a central difference of dE/dR along d at fixed graph. No graph of a graph is ever kept.

    With strain the same holds for e: d/de of d . dE/dR is the difference along d of dE/de, the deformation leaving the
    displacement as it is.
    """
    # The forward graph is kept for J_nc^T d; the energy's backward graph is not built.
    direct, slopes, forces = _both_forces(model, batch, bent, retain_graph=True)
    difference = (direct + slopes[0]).detach()
    with torch.enable_grad():
        direct_terms = torch.autograd.grad((direct * difference).sum(), bent.leaves)
    step = _step(batch, difference, HVP_STEP_A[model.torch_dtype])
    ends = []
    for sign in (1.0, -1.0):
        # One after the other: each graph is gone before the next is built.
        end = _beside(model, batch, bent, sign * step, difference, direct=False)
        ends.append(torch.autograd.grad(end.energy.sum(), bent.leaves))
        del end
    widths = (2 * step[batch.node_batch_index, None], 2 * step[:, None, None])
    return tuple(
        2 * (term + (plus - minus) / w)
        for term, plus, minus, w in zip(direct_terms, *ends, widths[: len(direct_terms)], strict=True)
    ), forces


def _one_sided_difference(
    model: OrbNetwork, batch: AtomGraphs, bent: Bent
) -> tuple[tuple[torch.Tensor, ...], TwoForces]:
    """As `_central_difference`, with one pass more instead of three: the gradient of F_nc . d + E / h at R + h d, less dE/dR / h, is
    J_nc^T d + H d to first order in h."""
    direct, slopes, forces = _both_forces(model, batch, bent)
    difference = direct.detach() + slopes[0]
    step = _step(batch, difference, ONE_SIDED_STEP_A[model.torch_dtype])
    end = _beside(model, batch, bent, step, difference, direct=True)
    with torch.enable_grad():
        assert end.forces_direct is not None
        both = (end.forces_direct * difference).sum() + (end.energy.reshape(-1) / step).sum()
        found = torch.autograd.grad(both, bent.leaves)
    widths = (step[batch.node_batch_index, None], step[:, None, None])
    return tuple(2 * (f - s / w) for f, s, w in zip(found, slopes, widths, strict=False)), forces


def _beside(
    model: OrbNetwork, batch: AtomGraphs, bent: Bent, step: torch.Tensor, difference: torch.Tensor, *, direct: bool
) -> TwoForces:
    """The network at R + h d, h (S,) being of every structure its own, with its graph."""
    with torch.enable_grad():
        moved = bent.positions(step[batch.node_batch_index, None] * difference)
        return model.heads_of(
            batch,
            moved,
            direct=direct,
            conservative=False,
            create_graph=True,
            twice=False,
            repulsion=not model.repulsion_cancels,
        )


def _step(batch: AtomGraphs, difference: torch.Tensor, longest_A: float) -> torch.Tensor:
    """The h (S,) by which h d moves the farthest atom of each structure by longest_A; of every structure its own, so that the partners in
    a batch change nothing."""
    longest = torch.zeros(len(batch.n_node), dtype=difference.dtype, device=difference.device)
    longest = longest.scatter_reduce(0, batch.node_batch_index, difference.norm(dim=-1), "amax")
    return longest_A / longest.clamp(min=1e-12)


def jacobian_product(model: OrbNetwork, batch: AtomGraphs, along: torch.Tensor, force: ForceName) -> torch.Tensor:
    """v J (A, 3) for v = `along` (A, 3) and the Jacobian of one of the whole forces, repulsion included."""
    bent = Bent(batch, strain=False)
    with torch.enable_grad():
        positions = bent.positions()
        found = model.heads_of(batch, positions, direct=force == "direct", conservative=False, create_graph=True)
        value = found.forces_direct
        if value is None:
            (slope,) = torch.autograd.grad(found.energy.sum(), positions, create_graph=True)
            value = -slope
        (product,) = torch.autograd.grad((value * along).sum(), bent.leaf)
    return product


# What each returns: the gradients of s = sum |F_nc - F_c|^2 with respect to the leaves, and the forces.
WAYS: Mapping[GradientMethod, Callable[[OrbNetwork, AtomGraphs, Bent], tuple[tuple[torch.Tensor, ...], TwoForces]]] = {
    "double-backward": _double_backward,
    "finite-difference": _central_difference,
    "one-sided": _one_sided_difference,
}
