"""Pictures with objects as COCO describes them: boxes, polygons, run lengths, crowds. No torch; no picture is opened.

    root/annotations/instances_train2017.json    root/train2017/*.jpg
    root/annotations/instances_val2017.json      root/val2017/*.jpg

What follows `instances_` names the folder of pictures, and its beginning the part: train, val or test.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchscale.data.coco_annotations import NO_MASK, PackedObjects, read_annotations
from patchscale.data.decoding import decode_rgb
from patchscale.data.folders import PARTS
from patchscale.data.objects import Objects
from patchscale.data.run_lengths import from_segmentation, mask_area, of_box
from patchscale.errors import UserError

PREFIX = "instances_"


@dataclass(frozen=True, kw_only=True, eq=False)
class CocoList:
    """The pictures of one part or split with their objects, as a `patchscale.data.listing.PictureList`."""

    folder: Path
    pictures: list[str]
    sizes: NDArray[np.int64]
    """[N, 2]: height and width."""
    packed: PackedObjects
    """Of the whole file, whatever pictures were taken."""
    places: NDArray[np.int64]
    """[N]: number of each picture in `packed`."""
    labels: NDArray[np.int64]
    """Zeros: a picture has no class."""

    def __len__(self) -> int:
        return len(self.pictures)

    def name(self, index: int) -> str:
        """The path of a picture."""
        return str(self.folder / self.pictures[index])

    def content(self, index: int) -> bytes:
        """The file of a picture."""
        return (self.folder / self.pictures[index]).read_bytes()

    def picture(self, index: int) -> Image.Image:
        """A picture, decoded to 8-bit RGB; raises `UserError` that names it if it has another size than annotated."""
        picture = decode_rgb(self.folder / self.pictures[index], self.name(index))
        self.require_size(index, *picture.size)
        return picture

    def require_size(self, index: int, width: int, height: int) -> None:
        """Raises `UserError` if a picture of this size is annotated as another."""
        own_height, own_width = self.sizes[index].tolist()
        if (width, height) != (own_width, own_height):
            raise UserError(
                f"{self.name(index)}: {width}x{height} px, its annotation says {own_width}x{own_height}; "
                "mend one of them"
            )

    def objects(self, index: int) -> Objects:
        """The objects of a picture; raises `UserError` naming the annotation whose mask does not fit."""
        size = (int(self.sizes[index, 0]), int(self.sizes[index, 1]))
        packed, places = self.packed, self.packed.of(int(self.places[index]))
        some = slice(places.start, places.stop)
        boxes = packed.boxes[some].astype(np.float32)
        masks = []
        for box, place in zip(boxes, places, strict=True):
            segmentation = packed.segmentation(place)
            try:
                mask = None if segmentation is None else from_segmentation(segmentation, size)
            except UserError:
                raise
            except Exception as error:
                raise UserError(
                    f"{self.name(index)}: annotation {packed.ids[place]}: {error}; mend its segmentation"
                ) from None
            masks.append(of_box(box, size) if mask is None else mask)
        areas = packed.areas[some].copy()
        for number in np.flatnonzero(np.isnan(areas)):
            areas[number] = mask_area(masks[number])
        return Objects(
            size=size,
            boxes=boxes,
            labels=packed.labels[some].astype(np.int64),
            masks=masks,
            crowd=packed.crowd[some].copy(),
            areas=areas,
        )

    def with_masks(self, index: int) -> NDArray[np.bool_]:
        """Which of a picture's objects have a mask of their own, [n]."""
        places = self.packed.of(int(self.places[index]))
        return self.packed.kinds[places.start : places.stop] != NO_MASK

    def take(self, indices: NDArray[np.int64]) -> "CocoList":
        """The pictures at these places."""
        return replace(
            self,
            pictures=[self.pictures[i] for i in indices.tolist()],
            sizes=self.sizes[indices],
            places=self.places[indices],
            labels=self.labels[indices],
        )

    def lines(self) -> Iterator[str]:
        """Name and checksum of the annotations of every picture."""
        for picture, place in zip(self.pictures, self.places.tolist(), strict=True):
            yield f"{picture}\t{self.packed.checksum(place)}"

    def counts(self, class_names: list[str]) -> dict[str, int]:
        """Objects by class, without the background; crowds count as one."""
        of_pictures = np.repeat(np.arange(len(self.packed.first) - 1), np.diff(self.packed.first))
        ours = self.packed.labels[np.isin(of_pictures, self.places)]
        counts = np.bincount(ours, minlength=len(class_names))
        return {name: int(count) for name, count in zip(class_names[1:], counts[1:], strict=True)}

    def without_objects(self) -> int:
        """Pictures that show nothing: they are background for training, and counted in evaluation."""
        return int((np.diff(self.packed.first)[self.places] == 0).sum())


@dataclass(frozen=True, kw_only=True)
class CocoData:
    """What lies under a root."""

    parts: dict[str, CocoList]
    class_names: list[str]
    """With the background, which is class 0."""
    empty_boxes: dict[str, int]
    """By part: annotations left out because nothing of their box lies in the picture."""
    without_masks: list[str]
    """Parts that have objects, none of which has a mask of its own."""


def list_coco(root: Path) -> CocoData:
    """Read all annotations under `root`.

    Raises `UserError` naming the file, and the annotation, for missing parts or pictures, ids that name nothing,
    boxes that are none, classes that differ between parts.
    """
    parts, classes, empty, without_masks = {}, {}, {}, []
    for part, path in _files(root).items():
        parts[part], classes[part], empty[part] = _read(path, root)
        kinds = parts[part].packed.kinds
        if len(kinds) and (kinds == NO_MASK).all():
            without_masks.append(part)
        if classes[part] != classes["train"]:
            raise UserError(f"{path}: its categories are not those of {_files(root)['train']}; make them the same")
    names = ["background", *classes["train"].values()]
    return CocoData(parts=parts, class_names=names, empty_boxes=empty, without_masks=without_masks)


def _files(root: Path) -> dict[str, Path]:
    """The file of annotations of each part."""
    folder = root / "annotations"
    expected = f"expected {folder / 'instances_train2017.json'} with {root / 'train2017'}/*.jpg"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; {expected}")
    files: dict[str, Path] = {}
    for path in sorted(folder.glob(f"{PREFIX}*.json")):
        name = path.stem.removeprefix(PREFIX)
        part = next((part for part in PARTS if name.startswith(part)), None)
        if part is None:
            raise UserError(f"{path}: {name!r} begins with none of {', '.join(PARTS)}; rename it, and its folder")
        if part in files:
            raise UserError(f"{path}: a second file for {part}, beside {files[part].name}; keep one of them there")
        files[part] = path
    if "train" not in files:
        raise UserError(f"{folder}: no annotations for training in it; {expected}")
    return {part: files[part] for part in PARTS if part in files}


def _read(path: Path, root: Path) -> tuple[CocoList, dict[Any, str], int]:
    """Pictures with objects, class names by category id in its order, and empty boxes left out."""
    found = read_annotations(path)
    folder = root / path.stem.removeprefix(PREFIX)
    _require_files(folder, found.pictures)
    number = len(found.pictures)
    listed = CocoList(
        folder=folder,
        pictures=found.pictures,
        sizes=found.sizes,
        packed=found.objects,
        places=np.arange(number),
        labels=np.zeros(number, np.int64),
    )
    return listed, found.class_names, found.empty_boxes


def _require_files(folder: Path, pictures: list[str]) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; the pictures of {PREFIX}{folder.name}.json belong there")
    there = {entry.name for entry in os.scandir(folder)}
    missing = [name for name in pictures if name not in there and not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{folder / missing[0]}{more}: no such picture, but it is annotated; add it, or remove its entry"
        )
