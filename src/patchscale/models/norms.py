"""Root-mean-square norms (arXiv 1910.07467), plain and gated, computed and returned in at least float32."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from patchscale.models.autocast import without_autocast

EPS = 1e-5


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-5) * weight over the last dimension."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return _rms_norm(x, self.weight)


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor) -> Tensor:
    """RMS norm of y * silu(z), [..., width]: the gate first, then the norm over all channels."""
    if torch.compiler.is_compiling() or y.device.type != "cpu":
        return _rms_norm(y * F.silu(z), weight)
    return _GatedRMSNorm.apply(y, z, weight)


class _GatedRMSNorm(torch.autograd.Function):
    """For CPUs, where autograd of the formula passes over the data three times as often."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        gated = _at_least_float32(F.silu(z).mul_(y))
        mean_square = torch.linalg.vector_norm(gated, dim=-1, keepdim=True).square() / gated.shape[-1]
        scale = (mean_square + EPS).rsqrt()
        ctx.save_for_backward(y, z, weight, gated, scale)
        return (gated * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, z, weight, gated, scale = ctx.saved_tensors
        along = dout * gated
        with without_autocast(y.device):
            dweight = scale.flatten() @ along.flatten(0, -2)
            dscale = (along @ weight)[..., None]
        # Once directly, once through the scale.
        dgated = (dout * weight).mul_(scale).addcmul_(gated, dscale * scale.pow(3) / -gated.shape[-1]).to(y.dtype)
        dz = torch.ops.aten.silu_backward(dgated * y, z)
        return dgated.mul_(F.silu(z)), dz, dweight


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(_at_least_float32(x), weight.shape, weight, eps=EPS)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
