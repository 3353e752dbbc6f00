"""A file of annotations as COCO has them, checked and packed: columns and one buffer. No torch.

Packed, because COCO has 860,001 objects with some 25 million coordinates: as lists they take gigabytes, and every
loader process ends up with its own copy of what is counted by reference.
A = annotations of the file that are kept, sorted by picture, N = pictures.
"""

import gc
import json
import math
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchscale.data.run_lengths import FEWEST_POINTS
from patchscale.errors import UserError

NO_MASK, POLYGONS, RUNS, TEXT = range(4)
"""How an object's mask is packed: not at all; as polygons; as numbers of pixels; as COCO's text of them."""
FURTHEST = 100_000
"""Pixels: a coordinate further from the picture's corner is a mistake, and drawing it would take gigabytes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedObjects:
    """All objects of a file of annotations."""

    first: NDArray[np.int64]
    """[N + 1]: where each picture's objects begin; they end where the next one's begin."""
    ids: NDArray[Any]
    """[A], as in the file."""
    boxes: NDArray[np.float64]
    """[A, 4]: left, top, right, bottom, cut at the picture's border."""
    labels: NDArray[np.int32]
    """[A]: 1 to K."""
    areas: NDArray[np.float64]
    """[A]: as annotated; not a number where they are not."""
    crowd: NDArray[np.bool_]
    kinds: NDArray[np.uint8]
    """[A]: `NO_MASK`, `POLYGONS`, `RUNS` or `TEXT`."""
    extents: NDArray[np.int64]
    """[A, 2]: from where to where in `masks`."""
    masks: bytes

    def of(self, picture: int) -> range:
        """Places of a picture's objects."""
        return range(int(self.first[picture]), int(self.first[picture + 1]))

    def segmentation(self, place: int) -> Any:
        """An object's mask as it was annotated; None without one."""
        kind, (begin, end) = self.kinds[place], self.extents[place].tolist()
        packed = memoryview(self.masks)[begin:end]
        if kind == NO_MASK:
            return None
        if kind == POLYGONS:
            count = int(np.frombuffer(packed, np.int64, 1)[0])
            lengths = np.frombuffer(packed, np.int64, count, 8)
            coordinates = np.frombuffer(packed, np.float64, -1, 8 * (1 + count))
            return [polygon.tolist() for polygon in np.split(coordinates, np.cumsum(lengths)[:-1])]
        size = np.frombuffer(packed, np.int64, 2).tolist()
        if kind == RUNS:
            return {"size": size, "counts": np.frombuffer(packed, np.int64, -1, 16).tolist()}
        return {"size": size, "counts": bytes(packed[16:]).decode()}

    def checksum(self, picture: int) -> str:
        """Of everything that is known of a picture's objects but their ids."""
        places = self.of(picture)
        some = slice(places.start, places.stop)
        digest = blake2b(digest_size=16)
        for column in (self.boxes, self.labels, self.areas, self.crowd, self.kinds):
            digest.update(column[some].tobytes())
        for begin, end in self.extents[some].tolist():
            digest.update((end - begin).to_bytes(8, "little"))
            digest.update(memoryview(self.masks)[begin:end])
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnotationFile:
    """What a file says."""

    pictures: list[str]
    sizes: NDArray[np.int64]
    """[N, 2]: height and width."""
    class_names: dict[Any, str]
    """By category id, in its order."""
    objects: PackedObjects
    empty_boxes: int
    """Annotations left out because nothing of their box lies in the picture."""


def read_annotations(path: Path) -> AnnotationFile:
    """Raises `UserError` naming the file, and the entry, for whatever is not as COCO has it."""
    with _no_collection():
        images, annotations, categories = _entries(path)
        names = _unique(categories, "category", path)
        by_id = _unique(images, "image", path)
        if not by_id or not names:
            raise UserError(f"{path}: no {'categories' if by_id else 'images'} in it")
        sizes = _checked_images(by_id, path)
        class_names = _checked_categories(names, path)
        packing = _Packing(by_id, sizes, {number: label for label, number in enumerate(class_names, 1)})
        for annotation in annotations:
            problem = packing.add(annotation)
            if problem:
                number = annotation.get("id") if isinstance(annotation, dict) else None
                raise UserError(f"{path}: annotation {number}: {problem}")
        return AnnotationFile(
            pictures=[image["file_name"] for image in by_id.values()],
            sizes=np.array(sizes, np.int64),
            class_names=class_names,
            objects=packing.packed(),
            empty_boxes=packing.empty,
        )


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's search for cycles looks at all that was parsed again and again: of COCO's file 24 s instead of 9."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _entries(path: Path) -> tuple[list[Any], list[Any], list[Any]]:
    try:
        content = path.read_bytes()
        text = content.decode(json.detect_encoding(content), "surrogatepass")
        del content  # half a gigabyte
        values = json.loads(text, object_hook=_with_packed_mask)
        images, annotations, categories = (values[name] for name in ("images", "annotations", "categories"))
        return list(images), list(annotations), list(categories)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        words = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(
            f"{path}: cannot be read as COCO annotations ({words}); it needs images, annotations and categories"
        ) from None


def _unique(entries: list[Any], what: str, path: Path) -> dict[Any, dict[str, Any]]:
    """Entries by id; of images all that is needed has to be there."""
    needed = {"image": ("id", "file_name", "height", "width"), "category": ("id",)}[what]
    found: dict[Any, dict[str, Any]] = {}
    for entry in entries:
        missing = [name for name in needed if not isinstance(entry, dict) or name not in entry]
        if missing:
            raise UserError(f"{path}: {what} without {missing[0]!r}: {str(entry)[:80]}")
        if not _is_id(entry["id"]):
            raise UserError(f"{path}: {what} with the id {str(entry['id'])[:40]!r}; expected a number or a text")
        if entry["id"] in found:
            raise UserError(f"{path}: two {what} entries have the id {entry['id']}; ids must differ")
        found[entry["id"]] = entry
    return found


def _checked_images(images: dict[Any, dict[str, Any]], path: Path) -> list[tuple[int, int]]:
    """Height and width of each."""
    seen: dict[str, Any] = {}
    for number, image in images.items():
        name = image["file_name"]
        if not isinstance(name, str) or not name:
            raise UserError(f"{path}: image {number}: file_name {name!r} is no name of a file")
        if name in seen:
            raise UserError(f"{path}: images {seen[name]} and {number} are both {name}; make them one")
        seen[name] = number
        for side in ("height", "width"):
            if not _is_number(image[side]) or image[side] != int(image[side]) or not 1 <= image[side] < 1 << 31:
                raise UserError(f"{path}: image {number}: {side} {image[side]!r} is no number of pixels")
    return [(int(image["height"]), int(image["width"])) for image in images.values()]


def _checked_categories(categories: dict[Any, dict[str, Any]], path: Path) -> dict[Any, str]:
    """Names by id, in its order."""
    if len({isinstance(number, str) for number in categories}) > 1:
        raise UserError(f"{path}: ids of categories are numbers and texts; make them all numbers")
    given = {number: categories[number].get("name") for number in sorted(categories)}
    names = {number: str(number if name is None else name) for number, name in given.items()}
    numbers: dict[str, Any] = {}
    for number, name in names.items():
        if name in numbers:
            raise UserError(f"{path}: categories {numbers[name]} and {number} are both named {name!r}; rename one")
        numbers[name] = number
    return names


class _Packing:
    """Objects one after the other, as the file has them."""

    def __init__(
        self, images: dict[Any, dict[str, Any]], sizes: list[tuple[int, int]], label_of: dict[Any, int]
    ) -> None:
        self.place_of = {number: place for place, number in enumerate(images)}
        self.sizes = sizes
        self.label_of = label_of
        self.empty = 0
        self.ids: list[Any] = []
        self.pictures, self.labels, self.ends = array("q"), array("i"), array("q", [0])
        self.boxes, self.areas = array("d"), array("d")
        self.crowd, self.kinds = bytearray(), bytearray()
        self.masks = bytearray()

    def add(self, annotation: Any) -> str:
        """Take one up, its box cut at the picture's border, or leave out one that is empty then.

        Returns what is wrong with it, in words; empty if nothing is.
        """
        if not isinstance(annotation, dict):
            return f"expected names with values, got {str(annotation)[:40]}"
        image, category = annotation.get("image_id"), annotation.get("category_id")
        if not _is_id(image) or image not in self.place_of:
            return f"image_id {image!r} is not that of any image"
        if not _is_id(category) or category not in self.label_of:
            return f"category_id {category!r} is not that of any category"
        box, area, crowd = annotation.get("bbox"), annotation.get("area"), annotation.get("iscrowd")
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(side) for side in box):
            return f"bbox {box!r} is no box; expected four numbers: left, top, width, height in pixels"
        if area is not None and (not _is_number(area) or area < 0):
            return f"area {area!r} is no number of pixels"
        if crowd not in (None, 0, 1):
            return f"iscrowd {crowd!r} is neither 0 nor 1"
        kind, mask = annotation.get("segmentation") or (NO_MASK, b"")
        if kind is None:
            return mask.decode()
        picture = self.place_of[image]
        height, width = self.sizes[picture]
        left, top = max(float(box[0]), 0.0), max(float(box[1]), 0.0)
        right, bottom = min(float(box[0]) + box[2], width), min(float(box[1]) + box[3], height)
        if right <= left or bottom <= top:
            self.empty += 1
            return ""
        self.ids.append(annotation.get("id"))
        self.pictures.append(picture)
        self.boxes.extend((left, top, right, bottom))
        self.labels.append(self.label_of[category])
        self.areas.append(math.nan if area is None else area)
        self.crowd.append(bool(crowd))
        self.kinds.append(kind)
        self.masks += mask
        self.ends.append(len(self.masks))
        return ""

    def packed(self) -> PackedObjects:
        """All of them, by picture."""
        pictures = np.array(self.pictures, np.int64)
        order = np.argsort(pictures, kind="stable")
        ends = np.array(self.ends, np.int64)
        ids = np.empty(len(order), object)
        ids[:] = self.ids
        return PackedObjects(
            first=np.concatenate([[0], np.bincount(pictures, minlength=len(self.sizes)).cumsum()]).astype(np.int64),
            ids=np.array(ids[order].tolist() if all(type(each) is int for each in self.ids) else ids[order]),
            boxes=np.array(self.boxes, np.float64).reshape(-1, 4)[order],
            labels=np.array(self.labels, np.int32)[order],
            areas=np.array(self.areas, np.float64)[order],
            crowd=np.frombuffer(bytes(self.crowd), np.bool_)[order],
            kinds=np.frombuffer(bytes(self.kinds), np.uint8)[order],
            extents=np.stack([ends[:-1], ends[1:]], axis=1)[order],
            masks=bytes(self.masks),
        )


def _with_packed_mask(entry: dict[str, Any]) -> dict[str, Any]:
    """Packed at once: as lists all coordinates of COCO would take 1.5 GB before they are read."""
    if "segmentation" in entry:
        entry["segmentation"] = _packed_mask(entry["segmentation"])
    return entry


def _packed_mask(segmentation: Any) -> tuple[int | None, bytes]:
    """Kind and bytes; None and what is wrong, in words. Polygons of fewer than three points are left out."""
    if isinstance(segmentation, dict) and segmentation:
        return _packed_runs(segmentation)
    if not isinstance(segmentation, list | dict | None):
        return None, b"segmentation is neither polygons nor run lengths"
    lengths, coordinates = array("q"), array("d")
    for polygon in segmentation or ():
        try:
            packed = array("d", polygon)
        except (TypeError, OverflowError):
            return None, b"segmentation is no list of polygons; expected [[x1, y1, x2, y2, ...], ...]"
        if not isinstance(polygon, list) or len(packed) % 2:
            return None, f"a polygon of {len(packed)} numbers; expected x and y of each point".encode()
        if len(packed) >= 2 * FEWEST_POINTS:
            lengths.append(len(packed))
            coordinates += packed
    if not lengths:
        return NO_MASK, b""
    if not max(coordinates) <= FURTHEST or not min(coordinates) >= -FURTHEST or math.isnan(sum(coordinates)):
        return None, f"a polygon with coordinates that are none in pixels (beyond {FURTHEST:,} or no number)".encode()
    return POLYGONS, array("q", [len(lengths)]).tobytes() + lengths.tobytes() + coordinates.tobytes()


def _packed_runs(segmentation: dict[str, Any]) -> tuple[int | None, bytes]:
    counts, size = segmentation.get("counts"), segmentation.get("size")
    try:
        packed_size = _whole_numbers(size)
        if len(packed_size) == 16 and isinstance(counts, list):
            return RUNS, packed_size + _whole_numbers(counts)
        if len(packed_size) == 16 and isinstance(counts, str):
            return TEXT, packed_size + counts.encode("ascii")
    except (TypeError, OverflowError, UnicodeEncodeError):
        pass
    return None, b"run lengths need size (height, width) and counts, a list of whole numbers or COCO's text"


def _whole_numbers(values: Any) -> bytes:
    """Packed; 480.0 is one, 0.5 raises `TypeError`, as everything else does that is none."""
    try:
        return array("q", values).tobytes()
    except TypeError:
        if not all(_is_number(value) and value == int(value) for value in values):
            raise
        return array("q", map(int, values)).tobytes()


def _is_number(value: Any) -> bool:
    """A finite one, but no yes or no."""
    return (type(value) is int and abs(value) < 1 << 53) or (type(value) is float and math.isfinite(value))


def _is_id(value: Any) -> bool:
    return type(value) in (int, str, float)
