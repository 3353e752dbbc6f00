"""Evaluating pictures of any size with a model of one input size: as windows, measured on the picture's own label map.

A picture is seen in views: at each of `scales`, and with `flip` a second time from left to right. A view is the picture
resized, and the windows of the model's size in which it is looked at:

    whole   the picture squeezed to the model's input, its aspect given up; one window, one scale
    slide   the picture resized, aspect kept, until it covers the input, times the scale; windows from edge to edge, at
            most `stride` (a part of the window) from one to the next. Below scale 1 it may be smaller than a window,
            which is then filled up with the mean colour

H W are the model's input height and width, n the windows of a picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchscale.data.split import EvalSplit
from patchscale.data.transforms import FILL, Pixels, to_tensor


class View(NamedTuple):
    """A resized picture, and the (top, left) corners of the windows in which it is looked at."""

    size: tuple[int, int]
    """(height, width)."""
    corners: tuple[tuple[int, int], ...]
    flipped: bool


class WindowTarget(TypedDict):
    """One picture: its label map, int64, at its own size, and its views in the order of the windows."""

    label_map: Tensor
    views: tuple[View, ...]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How pictures are looked at in evaluation."""

    mode: Literal["whole", "slide"]
    img_size: tuple[int, int]
    stride: float
    flip: bool
    scales: tuple[float, ...]

    def __call__(self, picture: Image.Image) -> tuple[Pixels, tuple[View, ...]]:
        """Windows [n, H, W, 3], and the views they belong to."""
        views, windows = [], []
        for scale, flipped in product(self.scales, (False, True) if self.flip else (False,)):
            height, width = size = self._size(picture, scale)
            pixels = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
            view = View(size, self._corners(size), flipped)
            views.append(view)
            windows += [self._window(pixels[:, ::-1] if flipped else pixels, *corner) for corner in view.corners]
        return np.stack(windows), tuple(views)

    def protocol(self) -> str:
        """In words, for the record."""
        how = "whole picture, squeezed" if self.mode == "whole" else f"sliding window, stride {self.stride:.3g}"
        scales = "" if self.scales == (1.0,) else f", scales {', '.join(f'{scale:g}' for scale in self.scales)}"
        return f"{how}, {self.img_size[0]}x{self.img_size[1]} px{scales}{', flip' if self.flip else ''}; original masks"

    def _size(self, picture: Image.Image, scale: float) -> tuple[int, int]:
        if self.mode == "whole":
            return self.img_size
        ratio = scale * max(self.img_size[0] / picture.height, self.img_size[1] / picture.width)
        return max(1, round(picture.height * ratio)), max(1, round(picture.width * ratio))

    def _corners(self, size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        starts = [_starts(length, window, self.stride) for length, window in zip(size, self.img_size, strict=True)]
        return tuple((top, left) for top in starts[0] for left in starts[1])

    def _window(self, pixels: Pixels, top: int, left: int) -> Pixels:
        inside = pixels[top : top + self.img_size[0], left : left + self.img_size[1]]
        if inside.shape[:2] == self.img_size:
            return inside
        filled = np.empty((*self.img_size, 3), np.uint8)
        filled[:] = FILL
        filled[: inside.shape[0], : inside.shape[1]] = inside
        return filled


def _starts(length: int, window: int, stride: float) -> list[int]:
    """Where windows begin along a side: from edge to edge, evenly, at most stride * window from one to the next."""
    if length <= window:
        return [0]
    steps = math.ceil((length - window) / max(1, int(stride * window)))
    return [round(step * (length - window) / steps) for step in range(steps + 1)]


class WindowSplit(EvalSplit):
    """Pictures as windows with a `WindowTarget`; those of a batch follow each other."""

    transform: Any  # Windows

    def __getitem__(self, key: int) -> tuple[Tensor, WindowTarget]:  # type: ignore[override]
        """Windows float32 [n, 3, H, W], normalised, and target."""
        windows, target = self.item(key)
        return torch.stack([to_tensor(window.numpy()) for window in windows]), target

    def item(self, key: int) -> tuple[Tensor, WindowTarget]:  # type: ignore[override]
        """Windows uint8 [n, H, W, 3] and target."""
        picture, label_map, _ = self.source[key]
        windows, views = self.transform(picture)
        labels = torch.from_numpy(np.array(label_map).astype(np.int64))
        return torch.from_numpy(windows), {"label_map": labels, "views": views}

    @staticmethod
    def collate(items: Sequence[tuple[Tensor, WindowTarget]]) -> tuple[Tensor, list[WindowTarget]]:
        """Windows of all pictures [sum of n, H, W, 3], and a target for each picture."""
        return torch.cat([windows for windows, _ in items]), [target for _, target in items]
