"""One split of a run's images: a source of decoded pictures, and a transform, by the keys that a loader gives."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from patchscale.data.sources import Source
from patchscale.data.transforms import Erasing, Pixels, Transform, to_tensor


class Split(Dataset[tuple[Tensor, Tensor]]):
    """Items of one split: as a model reads them, or with the image still as bytes, which are normalised on the device.

    The target is a class, int64 [], or a label map, int64 [H, W].
    """

    collate = staticmethod(default_collate)
    """From the items of a batch to the batch."""

    def __init__(self, source: Source, transform: Transform) -> None:
        self.source = source
        self.transform = transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Any) -> tuple[Tensor, Tensor]:
        """Image float32 [3, H, W], normalised, and target."""
        pixels, target = self._transformed(key)
        return to_tensor(pixels), target

    def item(self, key: Any) -> tuple[Tensor, Tensor]:
        """Image uint8 [H, W, 1 or 3] and target."""
        pixels, target = self._transformed(key)
        return torch.from_numpy(pixels), target

    def _transformed(self, key: Any) -> tuple[Pixels, Tensor]:
        epoch, index = self.place(key)
        picture, label_map, label = self.source[index]
        pixels, label_map = self.transform(picture, label_map, epoch, index)
        target = torch.tensor(label) if label_map is None else torch.from_numpy(label_map.astype(np.int64))
        return pixels, target

    def place(self, key: Any) -> tuple[int, int]:
        """(epoch, index) of a key."""
        raise NotImplementedError


class TrainSplit(Split):
    """Augmented items by (epoch, index).

    With random erasing images are float32 from the start: the noise belongs to normalised ones.
    """

    def __init__(self, source: Source, transform: Transform, erasing: Erasing | None = None) -> None:
        super().__init__(source, transform)
        self.erasing = erasing

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Image float32 [3, H, W], normalised and perhaps erased in part, and target."""
        image, target = super().__getitem__(key)
        return image if self.erasing is None else self.erasing(image, *key), target

    def item(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Image uint8 [H, W, 1 or 3], or as `__getitem__` if there is erasing, and target."""
        return super().item(key) if self.erasing is None else self[key]

    def place(self, key: tuple[int, int]) -> tuple[int, int]:
        return key


class EvalSplit(Split):
    """Items by index, nothing random."""

    def place(self, key: int) -> tuple[int, int]:
        return 0, key
