"""Pictures with objects as COCO describes them: boxes, polygons, run lengths, crowds. No torch; no picture is opened.

    root/annotations/instances_train2017.json    root/train2017/*.jpg
    root/annotations/instances_val2017.json      root/val2017/*.jpg

What follows `instances_` names the folder of pictures, and its beginning the part: train, val or test.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
    annotations: list[bytes]
    """Of each picture, as JSON: a fraction of the memory that lists of lists would take."""
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
        height, width = self.sizes[index].tolist()
        if picture.size != (width, height):
            raise UserError(
                f"{self.name(index)}: {picture.width}x{picture.height} px, its annotation says {width}x{height}; "
                "mend one of them"
            )
        return picture

    def objects(self, index: int) -> Objects:
        """The objects of a picture; raises `UserError` naming the annotation whose mask does not fit."""
        size = (int(self.sizes[index, 0]), int(self.sizes[index, 1]))
        found = json.loads(self.annotations[index])
        boxes = np.array([each["box"] for each in found], np.float32).reshape(-1, 4)
        masks = []
        for box, each in zip(boxes, found, strict=True):
            try:
                mask = None if each["segmentation"] is None else from_segmentation(each["segmentation"], size)
            except Exception as error:
                raise UserError(
                    f"{self.name(index)}: annotation {each['id']}: {error}; mend its segmentation"
                ) from None
            masks.append(of_box(box, size) if mask is None else mask)
        areas = [
            mask_area(mask) if each["area"] is None else each["area"] for mask, each in zip(masks, found, strict=True)
        ]
        return Objects(
            size=size,
            boxes=boxes,
            labels=np.array([each["label"] for each in found], np.int64),
            masks=masks,
            crowd=np.array([each["crowd"] for each in found], np.bool_),
            areas=np.array(areas, np.float64),
        )

    def take(self, indices: NDArray[np.int64]) -> "CocoList":
        """The pictures at these places."""
        chosen = indices.tolist()
        return CocoList(
            folder=self.folder,
            pictures=[self.pictures[i] for i in chosen],
            sizes=self.sizes[indices],
            annotations=[self.annotations[i] for i in chosen],
            labels=self.labels[indices],
        )

    def lines(self) -> Iterator[str]:
        """Name and checksum of the annotations of every picture."""
        for picture, annotations in zip(self.pictures, self.annotations, strict=True):
            yield f"{picture}\t{blake2b(annotations, digest_size=16).hexdigest()}"

    def counts(self, class_names: list[str]) -> dict[str, int]:
        """Objects by class, without the background; crowds count as one."""
        counts = np.zeros(len(class_names), np.int64)
        for annotations in self.annotations:
            for each in json.loads(annotations):
                counts[each["label"]] += 1
        return {name: int(count) for name, count in zip(class_names[1:], counts[1:], strict=True)}

    def without_objects(self) -> int:
        """Pictures that show nothing: they are background for training, and counted in evaluation."""
        return sum(annotations == b"[]" for annotations in self.annotations)


@dataclass(frozen=True, kw_only=True)
class CocoData:
    """What lies under a root."""

    parts: dict[str, CocoList]
    class_names: list[str]
    """With the background, which is class 0."""
    empty_boxes: dict[str, int]
    """By part: annotations left out because nothing of their box lies in the picture."""
    has_masks: bool
    """Whether any object of the training part has a mask of its own."""


def list_coco(root: Path) -> CocoData:
    """Read all annotations under `root`.

    Raises `UserError` naming the file, and the annotation, for missing parts or pictures, ids that name nothing,
    boxes that are none, classes that differ between parts.
    """
    parts, classes, empty, with_masks = {}, {}, {}, {}
    for part, path in _files(root).items():
        parts[part], classes[part], empty[part], with_masks[part] = _read(path, root)
        if classes[part] != classes["train"]:
            raise UserError(f"{path}: its categories are not those of {_files(root)['train']}; make them the same")
    names = ["background", *classes["train"].values()]
    return CocoData(parts=parts, class_names=names, empty_boxes=empty, has_masks=with_masks["train"] > 0)


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


def _read(path: Path, root: Path) -> tuple[CocoList, dict[int, str], int, int]:
    """Pictures with objects, class names by category id in its order, empty boxes left out, objects with masks."""
    try:
        values = json.loads(path.read_bytes())
        images, annotations, categories = (list(values[name]) for name in ("images", "annotations", "categories"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        words = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(
            f"{path}: cannot be read as COCO annotations ({words}); it needs images, annotations and categories"
        ) from None
    names = _unique(categories, "category", path)
    class_names = {number: str(names[number].get("name", number)) for number in sorted(names)}
    label_of = {number: label for label, number in enumerate(class_names, 1)}
    by_id = _unique(images, "image", path)
    if not by_id or not label_of:
        raise UserError(f"{path}: no {'categories' if by_id else 'images'} in it")
    objects: dict[int, list[dict[str, Any]]] = {number: [] for number in by_id}
    empty = with_masks = 0
    for annotation in annotations:
        each = _object(annotation, by_id, label_of, path)
        if each is None:
            empty += 1
        else:
            with_masks += each["segmentation"] is not None
            objects[annotation["image_id"]].append(each)
    folder = root / path.stem.removeprefix(PREFIX)
    pictures = [image["file_name"] for image in by_id.values()]
    _require_files(folder, pictures)
    listed = CocoList(
        folder=folder,
        pictures=pictures,
        sizes=np.array([[image["height"], image["width"]] for image in by_id.values()], np.int64),
        annotations=[json.dumps(of_image, separators=(",", ":")).encode() for of_image in objects.values()],
        labels=np.zeros(len(by_id), np.int64),
    )
    return listed, class_names, empty, with_masks


def _unique(entries: list[Any], what: str, path: Path) -> dict[int, dict[str, Any]]:
    """Entries by id; of images all that is needed has to be there."""
    needed = {"image": ("id", "file_name", "height", "width"), "category": ("id",)}[what]
    found: dict[int, dict[str, Any]] = {}
    for entry in entries:
        missing = [name for name in needed if not isinstance(entry, dict) or name not in entry]
        if missing:
            raise UserError(f"{path}: {what} without {missing[0]!r}: {str(entry)[:80]}")
        if entry["id"] in found:
            raise UserError(f"{path}: two {what} entries have the id {entry['id']}; ids must differ")
        found[entry["id"]] = entry
    return found


def _object(
    annotation: Any, images: dict[int, dict[str, Any]], label_of: dict[int, int], path: Path
) -> dict[str, Any] | None:
    """What is kept of an annotation, its box cut at the picture's border; None if nothing of it is left."""
    number = annotation.get("id") if isinstance(annotation, dict) else None
    problem = _problem(annotation, images, label_of)
    if problem:
        raise UserError(f"{path}: annotation {number}: {problem}")
    left, top, width, height = (float(side) for side in annotation["bbox"])
    image = images[annotation["image_id"]]
    box = [max(left, 0.0), max(top, 0.0), min(left + width, image["width"]), min(top + height, image["height"])]
    if box[2] <= box[0] or box[3] <= box[1]:
        return None
    return {
        "id": number,
        "box": box,
        "label": label_of[annotation["category_id"]],
        "segmentation": annotation.get("segmentation") or None,
        "area": annotation.get("area"),
        "crowd": bool(annotation.get("iscrowd", 0)),
    }


def _problem(annotation: Any, images: dict[int, Any], label_of: dict[int, int]) -> str:
    """What is wrong with an annotation, in words; nothing of the kind: empty."""
    if not isinstance(annotation, dict):
        return f"expected names with values, got {str(annotation)[:40]}"
    if annotation.get("image_id") not in images:
        return f"image_id {annotation.get('image_id')!r} is not that of any image"
    if annotation.get("category_id") not in label_of:
        return f"category_id {annotation.get('category_id')!r} is not that of any category"
    box = annotation.get("bbox")
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box)
    if not numbers or not all(math.isfinite(side) for side in box or ()):
        return f"bbox {box!r} is no box; expected four numbers: left, top, width, height in pixels"
    segmentation = annotation.get("segmentation")
    if not isinstance(segmentation, list | dict | None):
        return "segmentation is neither polygons nor run lengths"
    return ""


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
