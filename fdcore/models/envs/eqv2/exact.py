"""The exact gradient of EquiformerV2's energy.

The network sees the direction of an edge only through the Wigner matrix D that turns features into the frame of the edge, and
fairchem-core detaches D: plain backpropagation loses the angular part of the force. Attaching D as the package computes it does not
help, because its angles have no derivative for edges along y. Here the frame at a displaced edge is the present one after the smallest
rotation that takes the present direction n0 to the displaced n. Its rotation vector is theta = n0 x n to second order, and with
A = sum_k theta_k X_k, X_k the generators of SO(3) in the basis of real spherical harmonics,

    D(n) = D0 (1 - A + A^2 / 2).

At n = n0 the value is D0 to the last bit; first and second derivatives are those of D. There are no singular directions.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from e3nn.o3._wigner import so3_generators


def make_exact(backbone: Any) -> None:
    """Let D depend on the edge vectors that the backbone is given, and make its frames, which are random in the package, a function of
    the direction alone: results are the same every time, and of a structure alone and in a batch."""
    rotations = list(backbone.SO3_rotation)

    def frames(self: Any, data: Any, edge_index: torch.Tensor, edge_vectors: torch.Tensor) -> torch.Tensor:
        for rotation in rotations:
            rotation.edge_vectors = edge_vectors
        return edge_frames(edge_vectors.detach())

    backbone._init_edge_rot_mat = types.MethodType(frames, backbone)
    for rotation in rotations:
        rotation.set_wigner = types.MethodType(_set_wigner, rotation)


def edge_frames(vectors: torch.Tensor) -> torch.Tensor:
    """(E, 3, 3) float64, rows z', n, z' x n with n the direction of each edge (E, 3): as the package's, with z' made by the coordinate axis
    that n is farthest from."""
    n = torch.nn.functional.normalize(vectors.double(), dim=-1)
    axis = torch.nn.functional.one_hot(n.abs().argmin(dim=-1), 3).to(n.dtype)
    z = torch.nn.functional.normalize(torch.linalg.cross(n, axis, dim=-1), dim=-1)
    return torch.stack([z, n, torch.linalg.cross(z, n, dim=-1)], dim=1)


def _set_wigner(self: Any, frames: torch.Tensor) -> None:
    vectors = self.edge_vectors
    self.edge_vectors = None
    self.device, self.dtype = vectors.device, vectors.dtype
    # From float64 frames: the package's angles lose half of their digits near the y axis in single precision.
    wigner = self.RotationToWignerDMatrix(frames, 0, self.lmax).to(vectors.dtype)
    if torch.is_grad_enabled() and vectors.requires_grad:
        n = vectors / vectors.norm(dim=-1, keepdim=True)
        theta = torch.linalg.cross(n.detach(), n, dim=-1)
        generators = _generators(self.lmax).to(vectors)
        turn = torch.einsum("ek,kij->eij", theta, generators)
        turned = torch.bmm(wigner, turn)
        wigner = wigner - turned + 0.5 * torch.bmm(turned, turn)
    self.wigner = wigner
    self.wigner_inv = wigner.transpose(1, 2).contiguous()


@functools.cache
def _generators(lmax: int) -> torch.Tensor:
    """X_k, block diagonal in l = 0..lmax: (3, (lmax + 1)^2, (lmax + 1)^2)."""
    size = (lmax + 1) ** 2
    out = torch.zeros(3, size, size, dtype=torch.float64)
    for degree in range(lmax + 1):
        block = slice(degree**2, (degree + 1) ** 2)
        out[:, block, block] = so3_generators(degree).to(torch.float64)
    return out
