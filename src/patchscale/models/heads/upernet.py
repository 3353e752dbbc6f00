"""UPerNet (arXiv 1807.10221) on a plain backbone: `patchscale.head_shapes.UperNetShape` says of what it is made.

B images, D features of the backbone, C channels of the decoder, K classes, p patch size; the finest level is h x w.
"""

from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from patchscale.head_shapes import UperNetShape, upernet_levels
from patchscale.models.heads.layers import Norm, conv_norm_relu
from patchscale.models.heads.pyramid import rescale


class UperNet(nn.Module):
    """Pyramid, decoder and classifier: four maps [B, D, H/p, W/p] of the backbone, shallow to deep -> [B, K, h, w]."""

    def __init__(self, shape: UperNetShape, *, embed_dim: int, patch_size: int, num_classes: int) -> None:
        super().__init__()
        levels = upernet_levels(patch_size)
        self.pyramid = nn.ModuleList(rescale((embed_dim,) * (max(doublings, 0) + 1), doublings) for doublings in levels)
        self.decoder = UperNetDecoder(shape, [embed_dim] * len(levels))
        self.head = nn.Conv2d(shape.channels, num_classes, 1)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits at the finest level's stride."""
        levels = [level(of_block) for level, of_block in zip(self.pyramid, maps, strict=True)]
        logits: Tensor = self.head(self.decoder(levels))
        return logits


class UperNetDecoder(nn.Module):
    """Pooled context on the coarsest level, then top down: maps of four strides, finest first -> [B, C, h, w]."""

    def __init__(self, shape: UperNetShape, in_channels: Sequence[int], norm: Norm = LayerNorm2d) -> None:
        super().__init__()
        channels, coarsest = shape.channels, in_channels[-1]
        self.pooled = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), conv_norm_relu(coarsest, channels, 1, norm))
            for scale in shape.pool_scales
        )
        self.context = conv_norm_relu(coarsest + len(shape.pool_scales) * channels, channels, 3, norm)
        self.lateral = nn.ModuleList(conv_norm_relu(inputs, channels, 1, norm) for inputs in in_channels[:-1])
        self.smooth = nn.ModuleList(conv_norm_relu(channels, channels, 3, norm) for _ in in_channels[:-1])
        self.fuse = conv_norm_relu(len(in_channels) * channels, channels, 3, norm)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """[B, D, h, w], [B, D, h/2, w/2], ... -> [B, C, h, w]."""
        coarsest = levels[-1]
        context = [coarsest, *(_resized(pool(coarsest), coarsest) for pool in self.pooled)]
        merged = [self.context(torch.cat(context, dim=1))]
        for level, lateral in zip(reversed(levels[:-1]), reversed(self.lateral), strict=True):
            finer = lateral(level)
            merged.insert(0, finer + _resized(merged[0], finer))
        outputs = [*(smooth(level) for smooth, level in zip(self.smooth, merged[:-1], strict=True)), merged[-1]]
        fused: Tensor = self.fuse(torch.cat([_resized(output, outputs[0]) for output in outputs], dim=1))
        return fused


def _resized(image: Tensor, like: Tensor) -> Tensor:
    """Bilinearly, to the height and width of `like`."""
    if image.shape[-2:] == like.shape[-2:]:
        return image
    return F.interpolate(image, size=like.shape[-2:], mode="bilinear", align_corners=False)
