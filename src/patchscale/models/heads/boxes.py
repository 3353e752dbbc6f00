"""Anchors, and features of boxes, on levels of any stride.

torchvision's own parts take strides for whole numbers, and levels for powers of two; both is wrong for patches of 14
pixels, whose levels have strides of 3.5, 7, 14 and 28.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

ANCHOR_SIDE = 8
"""Side of a square anchor in strides of its level: 32 pixels at stride 4, as in the feature pyramid network's paper."""
ASPECT_RATIOS = (0.5, 1.0, 2.0)
CANONICAL_PLACES = 14
"""A box this many places wide is the smallest that a level is meant for (arXiv 1612.03144: 224 pixels at stride 16, so
56 at stride 4 and 112 at 8); the finest level has all smaller ones, too."""
SAMPLES = 2
"""Bilinear samples of a bin along each side."""


class StrideAnchors(AnchorGenerator):
    """torchvision's anchors, one size a level, `strides` pixels apart."""

    def __init__(self, strides: Sequence[float]) -> None:
        super().__init__(
            sizes=tuple((ANCHOR_SIDE * stride,) for stride in strides),
            aspect_ratios=(ASPECT_RATIOS,) * len(strides),
        )
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Anchors [N, 4] (x1, y1, x2, y2 in pixels) of all levels, the same for every image."""
        like = feature_maps[0]
        self.set_cell_anchors(like.dtype, like.device)
        steps = [[torch.tensor(stride, dtype=like.dtype, device=like.device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([list(level.shape[-2:]) for level in feature_maps], steps))
        return [anchors] * len(image_list.image_sizes)


class BoxPooling(nn.Module):
    """Features [N, C, size, size] of N boxes, each from the level that suits its area (RoIAlign, arXiv 1703.06870)."""

    def __init__(self, strides: Sequence[float], size: int) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.size = size

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Levels [B, C, h, w], finest first, and boxes [n, 4] of each image."""
        levels = list(features.values())
        together = torch.cat(boxes)
        images = torch.cat([of_image.new_full((len(of_image), 1), float(n)) for n, of_image in enumerate(boxes)])
        rois = torch.cat([images, together], dim=1)
        chosen = self.level_of(together)
        pooled = levels[0].new_zeros(len(rois), levels[0].shape[1], self.size, self.size)
        for number, (level, stride) in enumerate(zip(levels, self.strides, strict=True)):
            here = torch.where(chosen == number)[0]
            features_here = roi_align(
                level, rois[here].to(level.dtype), self.size, 1 / stride, sampling_ratio=SAMPLES, aligned=True
            )
            pooled = pooled.index_copy(0, here, features_here)
        return pooled

    def level_of(self, boxes: Tensor) -> Tensor:
        """Number of the level of each box: one up for every doubling of its side."""
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
        doublings = torch.log2(side / (CANONICAL_PLACES * self.strides[0]) + 1e-8) + 1e-6
        return doublings.floor().clamp(0, len(self.strides) - 1).long()
