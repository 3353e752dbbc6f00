"""What decoders are made of, and the precision of what they tell."""

from collections.abc import Callable

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
"""From a number of channels to a norm of maps [B, C, H, W]."""


def conv_norm_relu(inputs: int, outputs: int, kernel: int, norm: Norm = LayerNorm2d) -> nn.Sequential:
    """Convolution without bias that keeps the map's size, norm, ReLU.

    The usual norm is over the channels of each place, as in ViTDet: it works on a single image, on a map of one place,
    and does the same in training and evaluation.
    """
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), norm(outputs), nn.ReLU(inplace=True)
    )


def at_least_float32(values: Tensor) -> Tensor:
    """`values` in the precision in which losses are computed and boxes are placed: bfloat16 becomes float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
