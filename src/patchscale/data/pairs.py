"""From a picture with its label map, of any size, to training pixels and labels of the model's size.

`none`, `flip` and `crop` are those of `patchscale.data.transforms`, on the picture resized, aspect kept, until it
covers the input. `scale_jitter` is what ADE20K and Cityscapes are usually trained with (as in DeepLab and its
successors): the picture so resized times a scale of `SCALES`; a window at random, drawn again up to `TRIES` times while
one class has more than `MOST_OF_ONE_CLASS` of its labelled pixels; a flip, one in two; brightness, contrast, saturation
and hue, each one in two. What the window holds beside the picture has the mean colour and is ignored.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from patchscale.data.folders import IGNORE_INDEX
from patchscale.data.seeding import seeded
from patchscale.data.transforms import FILL, Augment, LabelMap, Pixels, PixelTransform, cover

SCALES = (0.5, 2.0)
TRIES = 10
MOST_OF_ONE_CLASS = 0.75
BRIGHTNESS = (0.875, 1.125)
CONTRAST = SATURATION = (0.5, 1.5)
HUE = (-0.05, 0.05)
"""Of the whole circle."""


@dataclass(frozen=True, kw_only=True)
class PairTransform:
    """Picture and label map together; `augment="none"` evaluates on the centre crop of the whole shorter side."""

    augment: Augment
    img_size: tuple[int, int]
    seed: int = 0

    def __call__(self, picture: Image.Image, label_map: Any, epoch: int, index: int) -> tuple[Pixels, LabelMap | None]:
        """Pixels [H, W, 3] and labels [H, W]."""
        if self.augment == "scale_jitter":
            with seeded(self.seed, "augment", epoch, index):
                return self._jittered(picture, label_map)
        pixels = np.array(cover(picture, *self.img_size, Image.Resampling.BICUBIC))
        labels = np.array(cover(label_map, *self.img_size, Image.Resampling.NEAREST))
        transform = PixelTransform(augment=self.augment, img_size=self.img_size, seed=self.seed)
        return transform(pixels, labels, epoch, index)

    def _jittered(self, picture: Image.Image, label_map: Image.Image) -> tuple[Pixels, LabelMap]:
        ratio = max(self.img_size[0] / picture.height, self.img_size[1] / picture.width) * _between(SCALES)
        size = [max(1, round(picture.height * ratio)), max(1, round(picture.width * ratio))]
        picture = functional.resize(picture, size, interpolation=functional.InterpolationMode.BICUBIC)
        label_map = functional.resize(label_map, size, interpolation=functional.InterpolationMode.NEAREST)
        top, left = self._corner(np.asarray(label_map))
        window = (top, left, min(size[0], self.img_size[0]), min(size[1], self.img_size[1]))
        picture, label_map = functional.crop(picture, *window), functional.crop(label_map, *window)
        if torch.rand(()) < 0.5:
            picture, label_map = functional.horizontal_flip(picture), functional.horizontal_flip(label_map)
        pixels = np.empty((*self.img_size, 3), np.uint8)
        pixels[:] = FILL
        labels = np.full(self.img_size, IGNORE_INDEX, np.uint8)
        inside = (slice(window[2]), slice(window[3]))
        pixels[inside], labels[inside] = np.asarray(distorted(picture)), np.asarray(label_map)
        return pixels, labels

    def _corner(self, labels: LabelMap) -> tuple[int, int]:
        """(top, left) of a window in which no class has too much, or of the last one tried."""
        for _ in range(TRIES):
            top, left = (_offset(side, wanted) for side, wanted in zip(labels.shape, self.img_size, strict=True))
            window = labels[top : top + self.img_size[0], left : left + self.img_size[1]]
            counts = np.bincount(window[window != IGNORE_INDEX], minlength=1)
            if 0 < counts.max() <= MOST_OF_ONE_CLASS * counts.sum():
                break
        return top, left


def distorted(picture: Image.Image) -> Image.Image:
    """Brightness, contrast (before or after the others), saturation and hue, each changed one time in two."""
    contrast_last = bool(torch.rand(()) < 0.5)
    changes = [(functional.adjust_saturation, SATURATION), (functional.adjust_hue, HUE)]
    changes.insert(2 if contrast_last else 0, (functional.adjust_contrast, CONTRAST))
    for change, limits in [(functional.adjust_brightness, BRIGHTNESS), *changes]:
        if torch.rand(()) < 0.5:
            picture = change(picture, _between(limits))
    return picture


def _between(limits: tuple[float, float]) -> float:
    return limits[0] + (limits[1] - limits[0]) * float(torch.rand(()))


def _offset(side: int, window: int) -> int:
    return int(torch.randint(side - window + 1, ())) if side > window else 0
