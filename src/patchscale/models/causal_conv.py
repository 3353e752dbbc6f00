"""A causal depthwise convolution over tokens, without a compiled package.

b images   l tokens   c channels   w width of the kernel
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from patchscale.models.autocast import without_autocast


def causal_conv(x: Tensor, before: Tensor | None, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel of x [b, l, c] over its last w tokens -> [b, l, c]; the last tap meets the current token.

    `weight` is [c, 1, w], `bias` [c], as in `nn.Conv1d`. `before` [b, w-1, c] are the tokens before x, zeros if None.
    The second result is what to give as `before` to go on behind x.
    """
    if before is None:
        before = x.new_zeros(len(x), weight.shape[2] - 1, x.shape[2])
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if not torch.compiler.is_compiling():
        return _CausalConv.apply(x, before, weight, bias)
    # As a sum of shifted tokens the compiler fuses it with its neighbours.
    joined, length = torch.cat([before, x], dim=1), x.shape[1]
    out = sum((joined[:, i : i + length] * tap for i, tap in enumerate(weight[:, 0].unbind(-1))), bias)
    return out, joined[:, length:]


class _CausalConv(torch.autograd.Function):
    """A two-dimensional convolution of height 1 with channels last: tokens need not be transposed for it.

    Of torch's own backward passes for it, that for the weights is 20 times slower on a CPU than the sums below.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, before: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat([before, x], dim=1)
        ctx.save_for_backward(joined, weight)
        # A copy, because a view would keep all of `joined` for as long as it is kept itself.
        return _conv(joined, weight, bias), joined[:, x.shape[1] :].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dafter: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        joined, weight = ctx.saved_tensors
        length, width = dy.shape[1], weight.shape[2]
        djoined = _conv(dy, weight.flip(2), None, padding=width - 1)
        djoined[:, length:] += dafter
        wide = torch.promote_types(dy.dtype, torch.float32)
        dweight = [(joined[:, i : i + length] * dy).sum((0, 1), dtype=wide) for i in range(width)]
        dbias = dy.sum((0, 1), dtype=wide)
        dx, dbefore = djoined[:, width - 1 :], djoined[:, : width - 1]
        return dx, dbefore, torch.stack(dweight, dim=1)[:, None].to(weight.dtype), dbias.to(weight.dtype)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int = 0) -> Tensor:
    rows = x.transpose(1, 2).unsqueeze(2)  # b c 1 l
    with without_autocast(x.device):
        out = F.conv2d(rows, weight.unsqueeze(2), bias, padding=(0, padding), groups=weight.shape[0])
    return out.squeeze(2).transpose(1, 2)
