"""Root-mean-square norms (arXiv 1910.07467), plain and gated.

n numbers of a token
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPS = 1e-5


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-5) * weight over the last dimension, computed and returned in at least float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] -> [..., n]."""
        return F.rms_norm(_at_least_float32(x), self.weight.shape, self.weight, eps=EPS)


class GatedRMSNorm(RMSNorm):
    """RMSNorm of y * silu(z): the gate first, then the norm over all channels."""

    def forward(self, y: Tensor, z: Tensor) -> Tensor:  # type: ignore[override]
        """y, z [..., n] -> [..., n]."""
        if torch.compiler.is_compiling() or y.device.type != "cpu":
            return super().forward(y * F.silu(z))
        return _GatedRMSNorm.apply(y, z, self.weight)


class _GatedRMSNorm(torch.autograd.Function):
    """For CPUs, where autograd of the formula passes over the data three times as often."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        gated = _at_least_float32(F.silu(z).mul_(y))
        scale = _inverse_rms(gated)
        ctx.save_for_backward(y, z, weight, gated, scale)
        return (gated * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, z, weight, gated, scale = ctx.saved_tensors
        along = dout * gated
        dweight = scale.flatten() @ along.flatten(0, -2)
        # d/dgated of scale * gated . (weight dout): once directly, once through the scale
        through_scale = (along @ weight)[..., None] * scale.pow(3) / -gated.shape[-1]
        dgated = (dout * weight).mul_(scale).addcmul_(gated, through_scale).to(y.dtype)
        dz = torch.ops.aten.silu_backward(dgated * y, z)
        return dgated.mul_(F.silu(z)), dz, dweight


def _inverse_rms(x: Tensor) -> Tensor:
    return (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1] + EPS).rsqrt()


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
