"""F_c and grad U_Delta of any model whose energy and direct force are torch functions of the positions at fixed graph.

A family gives a `Pass`; what is differentiated, and how, stands here once. Orb has its own, faster forms of the same formulas
(`orb.py`), because its edge vectors can be strained with the cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fdcore.models.base import ForceName, GradientMethod
from fdcore.models.torch_calls import array
from fdcore.records import Evaluation, Gradients

# Positions (A, 3) of a batch to its energies (S,) in eV and F_nc (A, 3) in eV/Å, differentiable in the positions.
Pass = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

# Below this U_Delta (eV/Å) its gradient is numerical noise: a square root has no gradient at zero.
ZERO_FORCE_DELTA = 1e-10
# The longest step (Å) of an atom in the central difference of the low-memory gradient, by precision.
HVP_STEP_A = {torch.float32: 5e-3, torch.float64: 1e-4}
# The same for the one-sided form.
ONE_SIDED_STEP_A = {torch.float32: 3e-4, torch.float64: 1e-5}


@dataclass(frozen=True)
class Both:
    """Detached tensors of one pass: energy (S,) in eV, both forces (A, 3) in eV/Å."""

    energy: torch.Tensor
    forces_direct: torch.Tensor
    forces_conservative: torch.Tensor


def two_forces(run: Pass, positions: torch.Tensor) -> Both:
    """One forward and one backward pass."""
    leaf = positions.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        energy, direct = run(leaf)
        (slope,) = torch.autograd.grad(energy.sum(), leaf)
    return Both(energy.detach(), direct.detach(), -slope)


def gradient_of_squares(
    run: Pass, positions: torch.Tensor, system: torch.Tensor, method: GradientMethod
) -> tuple[torch.Tensor, Both]:
    """grad of s = sum |F_nc - F_c|^2 (A, 3), with the evaluation at `positions`; `system` (A,) says which structure of the batch an
    atom belongs to.

    With d = F_nc - F_c and H the Hessian of the energy it is 2 (J_nc^T d + H d): by differentiating through F_c
    ("double-backward"), with H d as a central difference of dE/dR along d ("finite-difference"), or with both terms from one
    more pass at R + h d ("one-sided").
    """
    way = {"double-backward": _double_backward, "one-sided": _one_sided}.get(method, _central)
    return way(run, positions.detach().clone().requires_grad_(True), system)


def _double_backward(run: Pass, leaf: torch.Tensor, system: torch.Tensor) -> tuple[torch.Tensor, Both]:
    del system
    with torch.enable_grad():
        energy, direct = run(leaf)
        (slope,) = torch.autograd.grad(energy.sum(), leaf, create_graph=True)
        (found,) = torch.autograd.grad((direct + slope).square().sum(), leaf)
    return found, Both(energy.detach(), direct.detach(), -slope.detach())


def _central(run: Pass, leaf: torch.Tensor, system: torch.Tensor) -> tuple[torch.Tensor, Both]:
    with torch.enable_grad():
        energy, direct = run(leaf)
        (slope,) = torch.autograd.grad(energy.sum(), leaf, retain_graph=True)
        difference = (direct + slope).detach()
        (first,) = torch.autograd.grad((direct * difference).sum(), leaf)
    step = _step(difference, system, HVP_STEP_A[leaf.dtype])[system, None]
    ends = []
    for sign in (1.0, -1.0):
        moved = (leaf.detach() + sign * step * difference).requires_grad_(True)
        with torch.enable_grad():
            ends.append(torch.autograd.grad(run(moved)[0].sum(), moved)[0])
    return 2 * (first + (ends[0] - ends[1]) / (2 * step)), Both(energy.detach(), direct.detach(), -slope)


def _one_sided(run: Pass, leaf: torch.Tensor, system: torch.Tensor) -> tuple[torch.Tensor, Both]:
    """The gradient of F_nc . d + E / h at R + h d, less dE/dR / h, is J_nc^T d + H d to first order in h."""
    with torch.enable_grad():
        energy, direct = run(leaf)
        (slope,) = torch.autograd.grad(energy.sum(), leaf)
    direct = direct.detach()
    difference = direct + slope
    step = _step(difference, system, ONE_SIDED_STEP_A[leaf.dtype])
    moved = (leaf.detach() + step[system, None] * difference).requires_grad_(True)
    with torch.enable_grad():
        end, end_direct = run(moved)
        (found,) = torch.autograd.grad((end_direct * difference).sum() + (end / step).sum(), moved)
    return 2 * (found - slope / step[system, None]), Both(energy.detach(), direct, -slope)


def _step(difference: torch.Tensor, system: torch.Tensor, longest_A: float) -> torch.Tensor:
    """The h (S,) by which h d moves the farthest atom of each structure by longest_A."""
    longest = difference.new_zeros(int(system.max()) + 1)
    longest = longest.scatter_reduce(0, system, difference.norm(dim=-1), "amax")
    return longest_A / longest.clamp(min=1e-12)


def pull_back(
    run: Pass, positions: torch.Tensor, vectors: NDArray[np.float64], force: ForceName
) -> NDArray[np.float64]:
    """v J (M, A, 3) of one of the forces for vectors (M, A, 3): one forward pass, and a backward pass for each."""
    leaf = positions.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        energy, value = run(leaf)
        if force == "conservative":
            (slope,) = torch.autograd.grad(energy.sum(), leaf, create_graph=True)
            value = -slope
        out = []
        for k, vector in enumerate(vectors):
            along = (value * torch.as_tensor(vector, dtype=value.dtype, device=value.device)).sum()
            out.append(array(torch.autograd.grad(along, leaf, retain_graph=k + 1 < len(vectors))[0]))
    return np.stack(out)


def evaluations(both: Both, counts: Sequence[int], ties: Sequence[float | None]) -> list[Evaluation]:
    """Records of a batch whose structures have `counts` atoms; `ties` as `Evaluation.graph_tie_A`."""
    ends = np.cumsum(counts)[:-1]
    parts = zip(
        array(both.energy).reshape(-1),
        np.split(array(both.forces_direct), ends),
        np.split(array(both.forces_conservative), ends),
        ties,
        strict=True,
    )
    return [
        Evaluation(float(energy), direct, conservative, graph_tie_A=tie) for energy, direct, conservative, tie in parts
    ]


def gradients(squares: torch.Tensor, found: Sequence[Evaluation]) -> list[Gradients]:
    """Records of grad U = grad s / (6 N U), from `gradient_of_squares` of the same batch: differentiating s keeps U = 0 free of 0/0."""
    parts = np.split(array(squares), np.cumsum([len(e.forces_direct) for e in found])[:-1])
    out = []
    for evaluation, part in zip(found, parts, strict=True):
        at_zero = evaluation.force_delta < ZERO_FORCE_DELTA
        scale = 0.0 if at_zero else 1 / (6 * len(part) * evaluation.force_delta)
        out.append(Gradients(evaluation, part * scale, -evaluation.forces_conservative, at_zero))
    return out
