"""A causal depthwise convolution over tokens, without a compiled package.

b images   l tokens   c channels   w width of the kernel
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each channel of x [b, w-1 + l, c] over its last w tokens -> [b, l, c]; the last tap meets the current token.

    `weight` is [c, 1, w], `bias` [c], as in `nn.Conv1d`. The first w-1 tokens are those before the sequence, or zeros.
    """
    if torch.compiler.is_compiling():  # as sums of shifted tokens the compiler fuses it with its neighbours
        length = x.shape[1] - weight.shape[2] + 1
        taps = weight.to(x.dtype)[:, 0].unbind(-1)
        return sum((x[:, i : i + length] * tap for i, tap in enumerate(taps)), bias.to(x.dtype))
    return _CausalConv.apply(x, weight.to(x.dtype), bias.to(x.dtype))


class _CausalConv(torch.autograd.Function):
    """A two-dimensional convolution of height 1 with channels last: tokens need not be transposed for it.

    Of torch's own backward passes for it, that for the weights is 20 times slower on a CPU than the sums below.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _conv(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        length, width = dy.shape[1], weight.shape[2]
        dx = _conv(F.pad(dy, (0, 0, width - 1, width - 1)), weight.flip(2), None)
        wide = torch.promote_types(x.dtype, torch.float32)
        dweight = torch.stack([(x[:, i : i + length] * dy).sum((0, 1), dtype=wide) for i in range(width)], dim=1)
        return dx, dweight[:, None].to(weight.dtype), dy.sum((0, 1), dtype=wide).to(weight.dtype)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.transpose(1, 2).unsqueeze(2)  # b c 1 l
    return F.conv2d(rows, weight.unsqueeze(2), bias, groups=weight.shape[0]).squeeze(2).transpose(1, 2)
