"""From a picture with objects to what a detector reads: the picture on the model's canvas, and a dictionary about it.

A picture keeps its aspect. It lies at the canvas's upper left; what it leaves free has the mean colour. The
augmentations (`DataConfig.augment`), each but `none` with a horizontal flip, one in two:

    none, flip            as large as fits
    shortest_edge         0.8, 0.84, ... or 1 times as large (of 800 px: 640 to 800, as usual for COCO)
    large_scale_jitter    0.1 to 2 times as large, and a random window where it is larger than the canvas
                          (arXiv 2012.07177)

H W are the canvas's height and width, n the objects. Everything is drawn from (seed, epoch, index).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from patchscale.data.objects import Objects
from patchscale.data.run_lengths import decode_masks
from patchscale.data.seeding import seeded
from patchscale.data.sources import CocoSource, SceneObjectSource
from patchscale.data.split import EvalSplit, TrainSplit
from patchscale.data.transforms import FILL, Augment, Pixels, to_tensor

Target = dict[str, Any]
"""One image: boxes [n, 4] float32 (left, top, right, bottom in pixels of the canvas), labels [n] (1 to K - 1), masks
uint8 [n, H, W], crowd [n], areas [n] (as annotated), number (of the picture in its split), scale (canvas pixels for a
pixel of the picture: across, down). In evaluation `objects`, the picture's `Objects` as annotated."""

SMALLEST_SIDE = 1.0
"""Pixels of the canvas below which the side of a box is no object: a crop or a smaller scale may leave no more."""
SHORTEST_EDGES = (0.8, 0.84, 0.88, 0.92, 0.96, 1.0)
JITTER = (0.1, 2.0)


@dataclass(frozen=True, kw_only=True)
class ObjectTransform:
    """Picture and objects, resized, cropped and flipped together; `augment="none"` is the evaluation transform."""

    augment: Augment
    img_size: tuple[int, int]
    seed: int = 0

    def __call__(self, picture: Image.Image, objects: Objects, epoch: int, index: int) -> tuple[Pixels, Target]:
        """Pixels [H, W, 3] and the target, without `objects`."""
        with seeded(self.seed, "augment", epoch, index):
            scale = self._scale()
            size = self._resized(objects.size, scale)
            top, left = (_offset(side, canvas) for side, canvas in zip(size, self.img_size, strict=True))
            flipped = self.augment != "none" and bool(torch.rand(()) < 0.5)
        height, width = (min(side, canvas) for side, canvas in zip(size, self.img_size, strict=True))
        picture = functional.resize(picture, list(size))
        picture = functional.crop(picture, top, left, height, width)
        boxes = tv_tensors.BoundingBoxes(torch.from_numpy(objects.boxes), format="XYXY", canvas_size=objects.size)
        boxes = functional.crop(functional.resize(boxes, list(size)), top, left, height, width)
        boxes = functional.clamp_bounding_boxes(boxes)
        sides = boxes[:, 2:] - boxes[:, :2]
        kept = torch.where((sides >= SMALLEST_SIDE).all(dim=1))[0].tolist()
        masks = self._masks(objects, kept, size, (top, left, height, width))
        if flipped:
            picture, boxes, masks = (functional.horizontal_flip(each) for each in (picture, boxes, masks))
        visible = (masks != 0).flatten(1).any(dim=1)
        kept = [place for place, some in zip(kept, visible.tolist(), strict=True) if some]
        canvas = np.empty((*self.img_size, 3), np.uint8)
        canvas[:] = FILL
        canvas[:height, :width] = np.asarray(picture)
        padded = torch.zeros(len(kept), *self.img_size, dtype=torch.uint8)
        padded[:, :height, :width] = masks[visible]
        return canvas, {
            "boxes": torch.Tensor(boxes)[kept],
            "labels": torch.from_numpy(objects.labels[kept]),
            "masks": padded,
            "crowd": torch.from_numpy(objects.crowd[kept]),
            "areas": torch.from_numpy(objects.areas[kept]),
            "number": index,
            "scale": (size[1] / objects.size[1], size[0] / objects.size[0]),
        }

    def _scale(self) -> float:
        """Drawn relative to what fits."""
        if self.augment == "shortest_edge":
            return SHORTEST_EDGES[int(torch.randint(len(SHORTEST_EDGES), ()))]
        if self.augment == "large_scale_jitter":
            return JITTER[0] + (JITTER[1] - JITTER[0]) * float(torch.rand(()))
        return 1.0

    def _resized(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Height and width of the resized picture."""
        ratio = scale * min(canvas / side for canvas, side in zip(self.img_size, size, strict=True))
        height, width = (max(1, round(side * ratio)) for side in size)
        return height, width

    def _masks(
        self, objects: Objects, kept: list[int], size: tuple[int, int], window: tuple[int, int, int, int]
    ) -> tv_tensors.Mask:
        """Those of the objects that are kept, resized and cropped."""
        masks = tv_tensors.Mask(torch.from_numpy(decode_masks([objects.masks[place] for place in kept], objects.size)))
        if not kept:
            return tv_tensors.Mask(torch.zeros(0, *window[2:], dtype=torch.uint8))
        return functional.crop(functional.resize(masks, list(size)), *window)


def _offset(side: int, canvas: int) -> int:
    """Where the window begins in a side that is larger than the canvas."""
    return int(torch.randint(side - canvas + 1, ())) if side > canvas else 0


class _Objects:
    """What both kinds of split have in common: items are an image and a `Target`, a batch's targets are a list."""

    source: CocoSource | SceneObjectSource
    transform: ObjectTransform

    def __getitem__(self, key: Any) -> tuple[Tensor, Target]:
        """Image float32 [3, H, W], normalised, and target."""
        pixels, target = self.item(key)
        return to_tensor(pixels.numpy()), target

    def item(self, key: Any) -> tuple[Tensor, Target]:
        """Image uint8 [H, W, 3] and target."""
        epoch, index = self.place(key)  # type: ignore[attr-defined]
        picture, objects = self.source[index]
        pixels, target = self.transform(picture, objects, epoch, index)
        return torch.from_numpy(pixels), self._completed(target, objects)

    def _completed(self, target: Target, objects: Objects) -> Target:
        return target

    @staticmethod
    def collate(items: Sequence[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
        """A batch: images in one tensor, targets in a list."""
        return default_collate([image for image, _ in items]), [target for _, target in items]


class DetectionTrainSplit(_Objects, TrainSplit):  # type: ignore[misc]
    """Augmented images with targets, by (epoch, index)."""


class DetectionEvalSplit(_Objects, EvalSplit):  # type: ignore[misc]
    """Images with targets by index, and the objects as annotated."""

    def _completed(self, target: Target, objects: Objects) -> Target:
        return target | {"objects": objects}
