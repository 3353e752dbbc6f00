"""From maps that all have the patches' stride to the levels of a feature pyramid, at any patch size."""

from collections.abc import Sequence
from itertools import pairwise

from timm.layers import LayerNorm2d
from torch import nn


def rescale(widths: Sequence[int], doublings: int) -> nn.Module:
    """Enlarge a map `doublings` times by transposed 2x2 convolutions, or reduce it by max-pooling if negative.

    [B, D, H, W] -> [B, widths[-1], H * 2**doublings, W * 2**doublings], rounded up. `widths` are the channels before
    and after every doubling. A norm and GELU stand between two doublings (ViTDet, arXiv 2203.16527).
    """
    if doublings < 0:
        return nn.MaxPool2d(2**-doublings, ceil_mode=True)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        if layers:
            layers += [LayerNorm2d(before), nn.GELU()]
        layers.append(nn.ConvTranspose2d(before, after, kernel_size=2, stride=2))
    return nn.Sequential(*layers)
