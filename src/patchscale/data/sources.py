"""Where a split's pictures come from: memory, scenes composed on demand, or files.

An item is (picture, label map or None, class). A picture is a pixel array [h, w, 1 or 3], or a PIL picture where its
size is not the model's yet; so is then its label map. For detection an item is (PIL picture, its objects).
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchscale.data.coco import CocoList
from patchscale.data.folders import FileList, ReadLabels, read_rgb
from patchscale.data.listing import PictureList
from patchscale.data.objects import Objects
from patchscale.data.run_lengths import encode_masks
from patchscale.data.scenes import SceneDataset
from patchscale.data.transforms import LabelMap, Pixels, fit_pixels

Item = tuple[Pixels | Image.Image, LabelMap | Image.Image | None, int]

SCENE_MEMORY_BYTES = 512 * 2**20
"""Splits of scenes up to this size are kept once composed."""


class Source(Protocol):
    """Decoded, not yet augmented items of one split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


class PixelSource:
    """Pictures of one size in memory, each resized to the model's input when it is read."""

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        labels: NDArray[np.int64],
        indices: NDArray[np.int64],
        img_size: tuple[int, int],
    ) -> None:
        self.pixels = pixels
        self.labels = labels
        self.indices = indices
        self.img_size = img_size

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Item:
        place = self.indices[index]
        return fit_pixels(self.pixels[place], *self.img_size), None, int(self.labels[place])


class SceneSource:
    """Scenes of one split; composed when first read, then kept if the split fits `SCENE_MEMORY_BYTES`."""

    def __init__(self, scenes: SceneDataset, *, with_label_maps: bool) -> None:
        self.scenes = scenes
        self.with_label_maps = with_label_maps
        shape = (len(scenes), scenes.height, scenes.width)
        self.keep = 4 * int(np.prod(shape)) <= SCENE_MEMORY_BYTES
        if self.keep:
            self.pixels = np.empty((*shape, 3), np.uint8)
            self.label_maps = np.empty(shape if with_label_maps else 0, np.uint8)
            self.classes = np.full(len(scenes), -1)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Item:
        if not self.keep:
            return self._compose(index)
        if self.classes[index] < 0:
            self.pixels[index], label_map, self.classes[index] = self._compose(index)
            if label_map is not None:
                self.label_maps[index] = label_map
        return (
            self.pixels[index],
            self.label_maps[index] if self.with_label_maps else None,
            int(self.classes[index]),
        )

    def _compose(self, index: int) -> tuple[Pixels, LabelMap | None, int]:
        scene = self.scenes[index]
        label_map = scene.label_map.astype(np.uint8) if self.with_label_maps else None
        return scene.image, label_map, scene.image_class


class PictureSource:
    """Picture files with a class each, decoded when read."""

    def __init__(self, files: PictureList) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Item:
        return self.files.picture(index), None, int(self.files.labels[index])


class PairSource:
    """Picture files with label maps, both as PIL pictures, decoded when read."""

    def __init__(self, files: FileList, read_labels: ReadLabels) -> None:
        assert files.masks is not None
        self.files = files
        self.masks = files.masks
        self.read_labels = read_labels

    def __len__(self) -> int:
        return len(self.files.pictures)

    def __getitem__(self, index: int) -> tuple[Image.Image, Image.Image, int]:
        picture = read_rgb(self.files.root / self.files.pictures[index])
        return picture, self.read_labels(self.files.root / self.masks[index], picture.size), 0


class CocoSource:
    """Annotated picture files, decoded when read."""

    def __init__(self, files: CocoList) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, Objects]:
        return self.files.picture(index), self.files.objects(index)


class SceneObjectSource:
    """Composed scenes; an object is the visible part of a garment, classes are 1 to 10."""

    def __init__(self, scenes: SceneDataset) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Image.Image, Objects]:
        scene = self.scenes[index]
        objects = Objects(
            size=(self.scenes.height, self.scenes.width),
            boxes=scene.boxes,
            labels=scene.labels + 1,
            masks=encode_masks(scene.masks.astype(np.uint8)),
            crowd=np.zeros(len(scene.labels), np.bool_),
            areas=scene.masks.sum(axis=(1, 2)).astype(np.float64),
        )
        return Image.fromarray(scene.image), objects
