"""What `patchscale data check` looks at beside a picture: its label map, or its objects. No torch."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from patchscale.data.coco import CocoList, list_coco
from patchscale.data.folders import IGNORE_INDEX, FileList, ReadLabels, list_mask_folder
from patchscale.data.labelled_sets import LABELLED_SETS, mask_reader
from patchscale.data.run_lengths import coder, mask_area, mask_bounds

KINDS = ("mask_folder", *LABELLED_SETS, "coco")
SAME_BOX = 0.5
"""A box that overlaps the bounds of its mask by less (intersection over union) is probably a mistake."""


@dataclass(frozen=True)
class Truth:
    """What one picture says."""

    counts: Mapping[int, int]
    """By class: its objects, or 1 if the label map shows it."""
    notes: Mapping[str, int]
    """Further things that are counted, by their name."""


@dataclass(frozen=True, kw_only=True)
class TrueSet:
    """A listed data set of label maps or of objects."""

    parts: Mapping[str, Any]
    class_names: list[str] | None
    """None: as many as occur, without names."""
    counted: str
    """What `Truth.counts` counts."""
    look: Callable[[Any, int, tuple[int, int]], Truth]
    """Of the pictures of a part, the number of one, and its (width, height); raises `UserError` for what is wrong."""
    notes: dict[str, int] = field(default_factory=dict)


def list_true_set(root: Path, kind: str, num_classes: int | None) -> TrueSet:
    """Raises `UserError` for what cannot be listed. Without `num_classes` a mask_folder may hold any label."""
    if kind == "coco":
        coder()  # without the package that reads masks every picture would look wrong
        listed = list_coco(root)
        empty = sum(listed.empty_boxes.values())
        return TrueSet(
            parts=listed.parts,
            class_names=listed.class_names,
            counted="objects",
            look=_look_at_objects,
            notes={"images without objects": 0, "empty boxes, left out": empty},
        )
    if kind == "mask_folder":
        parts, ignored = list_mask_folder(root)
        names = None if num_classes is None else [str(label) for label in range(num_classes)]
        read_labels = mask_reader(num_classes or IGNORE_INDEX)
        return _of_label_maps(parts, names, read_labels, {"files without a partner": ignored})
    labelled = LABELLED_SETS[kind](root)
    return _of_label_maps(labelled.parts, labelled.class_names, labelled.read_labels, {})


def kind_of_truth(root: Path) -> str | None:
    """One of `KINDS` by the folders that are there; None if it is none of them."""
    if next((root / "annotations").glob("instances_*.json"), None):
        return "coco"
    if any((root / below).is_dir() for below in ("ImageSets/Segmentation", "VOC2012/ImageSets/Segmentation")):
        return "voc"
    if (root / "leftImg8bit").is_dir():
        return "cityscapes"
    ade20k = ("annotations/training", "ADEChallengeData2016", "images/ADE", "ADE20K_2021_17_01")
    if any((root / below).is_dir() for below in ade20k):
        return "ade20k"
    return "mask_folder" if (root / "images").is_dir() and (root / "masks").is_dir() else None


def _of_label_maps(
    parts: Mapping[str, FileList], class_names: list[str] | None, read_labels: ReadLabels, notes: dict[str, int]
) -> TrueSet:
    def look(pictures: FileList, index: int, size: tuple[int, int]) -> Truth:
        assert pictures.masks is not None
        labels = np.asarray(read_labels(pictures.root / pictures.masks[index], size))
        pixels = np.bincount(labels.ravel(), minlength=IGNORE_INDEX + 1)
        ignored = int(pixels[IGNORE_INDEX])
        present = np.flatnonzero(pixels[:IGNORE_INDEX]).tolist()
        return Truth(
            dict.fromkeys(present, 1),
            {"pixels": labels.size, "ignored pixels": ignored, "images without a labelled pixel": int(not present)},
        )

    return TrueSet(parts=parts, class_names=class_names, counted="images that show it", look=look, notes=notes)


def _look_at_objects(pictures: CocoList, index: int, size: tuple[int, int]) -> Truth:
    pictures.require_size(index, *size)
    objects = pictures.objects(index)
    with_masks = pictures.with_masks(index)
    unlike = empty = 0
    for box, mask, crowd, own in zip(objects.boxes, objects.masks, objects.crowd, with_masks, strict=True):
        if own and mask_area(mask) == 0:
            empty += 1
        elif own and not crowd:
            unlike += _overlap(box.tolist(), mask_bounds(mask)) < SAME_BOX
    return Truth(
        Counter(objects.labels.tolist()),
        {
            "images without objects": int(not len(objects)),
            "crowds": int(objects.crowd.sum()),
            "objects without a mask of their own": int((~with_masks).sum()),
            "objects whose mask has no pixel": empty,
            f"objects whose box overlaps its mask's by less than {SAME_BOX:g}": unlike,
        },
    )


def _overlap(one: list[float], other: list[float]) -> float:
    """Intersection over union of boxes (left, top, right, bottom)."""
    width, height = (min(one[2 + k], other[2 + k]) - max(one[k], other[k]) for k in (0, 1))
    common = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common)
