"""SiLU and RMSNorm with their second derivatives written out.

grad U_Delta and the training of F_c differentiate F_c = -dE/dR once more. Autograd then takes the derivative of a derivative operation by operation: for
these two that is a dozen passes over arrays of (edges, width), most of the time of a double backward. As closed formulas they
are three or four. Values and first derivatives come from torch's own kernels, to the last bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Above zero while only gradients with respect to positions are wanted: autograd tells its own operations so, but not ours. For all
# threads, because those of a GPU's backward pass are not the caller's.
_inputs_only = 0


@contextlib.contextmanager
def inputs_only() -> Iterator[None]:
    """Inside, no gradient with respect to the weight of a norm is computed."""
    global _inputs_only
    _inputs_only += 1
    try:
        yield
    finally:
        _inputs_only -= 1


class _Silu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return functional.silu(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return _SiluSlope.apply(grads[0], *ctx.saved_tensors)


class _SiluSlope(torch.autograd.Function):
    """g s'(x)."""

    @staticmethod
    def forward(ctx: Any, g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(g, x)
        return torch.ops.aten.silu_backward(g, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (w,) = grads
        g, x = ctx.saved_tensors
        needs_g, needs_x = ctx.needs_input_grad
        to_x = None
        if needs_x:
            # s'' = p (1 - p) (2 + x (1 - 2 p)) with p the logistic function.
            p = torch.sigmoid(x)
            to_x = torch.rsub(p, 1, alpha=2).mul_(x).add_(2).mul_(p).mul_(p.neg_().add_(1)).mul_(g).mul_(w)
        return torch.ops.aten.silu_backward(w, x) if needs_g else None, to_x


class _Norm(torch.autograd.Function):
    """y = w x r, r = (mean x^2 + eps)^(-1/2) over the last axis."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return functional.rms_norm(x, (x.shape[-1],), weight, eps)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        to_weight = None
        if ctx.needs_input_grad[1] and not _inputs_only:
            # As torch operations, which autograd can differentiate once more.
            r = torch.rsqrt(x.square().mean(-1, keepdim=True) + ctx.eps)
            to_weight = (grads[0] * x * r).sum(tuple(range(x.ndim - 1)))
        return _NormSlope.apply(grads[0], x, weight, ctx.eps), to_weight, None


class _NormSlope(torch.autograd.Function):
    """J(w g) with J(a) = r a - r^3 x mean(a x), the symmetric Jacobian of x r; linear in g and in w."""

    @staticmethod
    def forward(ctx: Any, g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        r = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(g, x, weight, r)
        return _jacobian(g * weight, x, r)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (v,) = grads
        g, x, weight, r = ctx.saved_tensors
        a = g * weight
        mean_v, mean_a, mean_va = _mean(v, x), _mean(a, x), _mean(v, a)
        cube = r**3
        # d/dx of v . J(a): -r^3 (mean(v a) x + mean(a x) v + mean(v x) a) + 3 r^5 mean(v x) mean(a x) x
        to_x = x * (3 * cube * r * r * mean_v * mean_a - cube * mean_va)
        to_x.addcmul_(v, cube * mean_a, value=-1).addcmul_(a, cube * mean_v, value=-1)
        bent = _jacobian(v, x, r, mean_v)
        to_weight = (g * bent).sum(tuple(range(x.ndim - 1))) if ctx.needs_input_grad[2] else None
        return bent.mul_(weight), to_x, to_weight, None


def _jacobian(a: torch.Tensor, x: torch.Tensor, r: torch.Tensor, mean: torch.Tensor | None = None) -> torch.Tensor:
    mean = _mean(a, x) if mean is None else mean
    return (a * r).addcmul_(x, r**3 * mean, value=-1)


def _mean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vecdot(a, b).unsqueeze(-1) / a.shape[-1]


class TwiceSilu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Silu.apply(x) if torch.is_grad_enabled() else functional.silu(x)


class TwiceRMSNorm(nn.Module):
    """Takes over the weight of the norm that it replaces."""

    def __init__(self, old: nn.RMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = old.weight, old.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        return _Norm.apply(x, self.weight, self.smallest(x))

    def smallest(self, x: torch.Tensor) -> float:
        """What is added to the mean square, for values of this precision."""
        return torch.finfo(x.dtype).eps if self.eps is None else self.eps


def differentiate_twice(module: nn.Module) -> None:
    """Replace every SiLU and RMSNorm in `module`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.SiLU):
                setattr(parent, name, TwiceSilu())
            elif isinstance(child, nn.RMSNorm) and child.weight is not None and len(child.normalized_shape) == 1:
                setattr(parent, name, TwiceRMSNorm(child))
