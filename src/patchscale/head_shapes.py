"""The heads of tasks as plain numbers: what their cost and their code both follow from. No torch.

Every head works at every patch size. Feature pyramids are built from maps that all have the patches' stride p: a level
is the map enlarged or reduced by a power of two, so its stride is p / 2**doublings.
"""

from dataclasses import dataclass
from math import ceil, log2
from typing import Any

from patchscale.errors import UserError

PYRAMID_LEVELS = 4
FINEST_STRIDE = 4
"""Pixels between neighbours of the finest level, at most."""


@dataclass(frozen=True, kw_only=True)
class LinearHeadShape:
    """One linear layer with bias: on the class token, or, `dense`, on every patch token.

    Dense logits are enlarged bilinearly to the image (arXiv 2502.03738, Table 2, "decoder-free").
    """

    dense: bool


@dataclass(frozen=True, kw_only=True)
class LinearDetectorShape:
    """One linear layer with bias on every patch token: a logit for each class but the background, and a box."""

    detections: int = 100
    """Boxes of an image at inference, at most."""


@dataclass(frozen=True, kw_only=True)
class UperNetShape:
    """UPerNet (arXiv 1807.10221) on a plain backbone, as BEiT uses it (arXiv 2106.08254); no auxiliary head.

    Pyramid: the maps after four blocks of the backbone, one for each level of `upernet_levels`. Enlarged by transposed
    2x2 convolutions of stride 2 at full width, with a norm and GELU between two of them; reduced by max-pooling.
    Decoder: 1x1 convolutions of the coarsest level, pooled to each of `pool_scales`, and a 3x3 convolution over it and
    them; for the others a 1x1 convolution, the coarser level added, and a 3x3 convolution; then a 3x3 convolution over
    all four levels at the finest stride. All with norm and ReLU, without bias. Head: a 1x1 convolution, without the
    dropout of 0.1 that mmsegmentation puts before it.

    `channels` of the paper's head are not stated. From its parameters (13M beside Adventurer-Base, 5M beside Tiny,
    arXiv 2502.03738, Table 2) this structure has 192 of them: 13.1M and 5.3M. That is an inference.
    """

    channels: int = 512
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)


@dataclass(frozen=True, kw_only=True)
class MaskRCNNShape:
    """Mask R-CNN (arXiv 1703.06870) on the simple feature pyramid of ViTDet (arXiv 2203.16527).

    Pyramid: four levels from the backbone's last map, see `detection_levels`. Enlarged by transposed 2x2 convolutions
    of stride 2, of which the first two halve the width (ViTDet never needs more; further ones keep a quarter), with a
    norm and GELU between two of them; reduced by max-pooling. Then a 1x1 and a 3x3 convolution, each with a norm and
    without bias. A fifth level, every second place of the fourth, is for proposals only.
    The rest, with sizes and numbers of boxes, is torchvision's: proposals from a 3x3 convolution with ReLU and two 1x1
    ones; boxes from two linear layers; masks from 3x3 convolutions, a transposed one and a 1x1 one.

    With more than one of `box_stages` it is Cascade Mask R-CNN (arXiv 1906.09756): all boxes pass all stages, each with
    layers of its own; as in ViTDet there is one mask head, and boxes are not regressed for each class
    (`class_agnostic_boxes`).
    """

    channels: int = 256
    anchors_per_place: int = 3
    box_stages: int = 1
    class_agnostic_boxes: bool = False
    box_size: int = 7
    """Side of a box's features."""
    box_hidden: int = 1024
    mask_size: int = 14
    """Side of a mask's features; masks are twice as large."""
    mask_convs: int = 4
    train_anchors: int = 256
    """Anchors of an image that proposals are trained on, half of them at most hits."""
    train_boxes: int = 512
    """Proposals of an image that are trained on."""
    train_masks: int = 128
    """At most, a quarter of them, those that hit an object."""
    proposals: int = 1000
    """Boxes of an image at inference, at most."""
    detections: int = 100
    """Masks of an image at inference, at most."""

    def pyramid_widths(self, embed_dim: int, doublings: int) -> tuple[int, ...]:
        """Channels before and after every doubling of a level."""
        return tuple(embed_dim // 2 ** min(step, 2) for step in range(max(doublings, 0) + 1))


HeadShape = LinearHeadShape | LinearDetectorShape | UperNetShape | MaskRCNNShape

NANO: dict[str, Any] = {
    "channels": 32,
    "box_hidden": 128,
    "mask_convs": 2,
    "train_anchors": 64,
    "train_boxes": 64,
    "train_masks": 16,
    "proposals": 100,
    "detections": 30,
}
"""Of heads for pictures of some ten pixels and models that a CPU trains, as vit_nano: nobody's published sizes."""

HEADS: dict[str, dict[str, HeadShape]] = {
    "linear": {
        "classification": LinearHeadShape(dense=False),
        "segmentation": LinearHeadShape(dense=True),
        "detection": LinearDetectorShape(),
    },
    "upernet": {"segmentation": UperNetShape()},
    "upernet_192": {"segmentation": UperNetShape(channels=192)},
    "upernet_nano": {"segmentation": UperNetShape(channels=NANO["channels"])},
    "mask_rcnn": {"detection": MaskRCNNShape()},
    "cascade_mask_rcnn": {"detection": MaskRCNNShape(box_stages=3, class_agnostic_boxes=True)},
    "mask_rcnn_nano": {"detection": MaskRCNNShape(**NANO)},
    "cascade_mask_rcnn_nano": {"detection": MaskRCNNShape(**NANO, box_stages=3, class_agnostic_boxes=True)},
}
"""By name, then by the task it is for; of every task the plainest first."""

DEFAULT_HEADS = {"detection": "mask_rcnn"}
"""Of tasks whose usual head is not the plainest: one that finds no masks would surprise."""


def default_head(task: str) -> str:
    """The usual head of `task`, mostly the plainest; raises `UserError` for an unknown task."""
    return DEFAULT_HEADS.get(task) or _heads_of(task)[0]


def head_shape(name: str, *, task: str) -> HeadShape:
    """The head `name` of `task`; raises `UserError` if there is none."""
    fitting = _heads_of(task)
    if name not in fitting:
        raise UserError(f"head={name!r} is not one for {task}; choose one of {', '.join(fitting)}")
    return HEADS[name][task]


def _heads_of(task: str) -> list[str]:
    fitting = [head for head, tasks in HEADS.items() if task in tasks]
    if not fitting:
        tasks = dict.fromkeys(task for tasks in HEADS.values() for task in tasks)
        raise UserError(f"task={task!r} is not known; choose one of {', '.join(tasks)}")
    return fitting


def upernet_levels(patch_size: int) -> tuple[int, ...]:
    """Doublings of each level, finest first; negative where the map is reduced.

    The finest level is the coarsest that has a stride of at most 4 pixels and is not coarser than the patches. Strides
    are so 4, 8, 16, 32 for patch sizes 64 to 4 (at 16 as published); 2, 4, 8, 16 for 2; 1, 2, 4, 8 for 1.
    """
    return _levels(max(0, _doublings_to_finest(patch_size)))


def tapped_blocks(depth: int) -> tuple[int, ...]:
    """Blocks whose maps UPerNet takes, counted from 0: evenly spaced, the last one included (2, 5, 8, 11 of 12).

    Of fewer than four blocks some are taken more than once.
    """
    return tuple(ceil(depth * level / PYRAMID_LEVELS) - 1 for level in range(1, PYRAMID_LEVELS + 1))


def detection_levels(patch_size: int) -> tuple[int, ...]:
    """Doublings of each level, finest first; negative where the map is reduced.

    Strides are 4, 8, 16, 32 for every power of two, because the sizes of anchors belong to strides; for other patch
    sizes the largest at most 4, and its doubles (3.5, 7, 14, 28 for 14).
    """
    return _levels(_doublings_to_finest(patch_size))


def _doublings_to_finest(patch_size: int) -> int:
    return ceil(log2(patch_size / FINEST_STRIDE))


def _levels(finest: int) -> tuple[int, ...]:
    return tuple(finest - level for level in range(PYRAMID_LEVELS))


def level_grid(grid: tuple[int, int], doublings: int) -> tuple[int, int]:
    """(rows, columns) of a level; an odd border is pooled by itself, so that no level is empty."""
    rows, columns = (ceil(side * 2.0**doublings) for side in grid)
    return rows, columns
