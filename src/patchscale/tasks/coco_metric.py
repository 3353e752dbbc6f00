"""Average precision of boxes and masks as COCO defines it, by faster-coco-eval; a test holds it equal to pycocotools.

Pictures are numbered as they come. Boxes are x1, y1, x2, y2 in pixels; masks are run lengths as pycocotools makes them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from patchscale.data.objects import Rle
from patchscale.errors import UserError

KINDS = {"box": "bbox", "mask": "segm"}
"""Our word for what is compared -> COCO's."""
NUMBERS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
"""COCO's twelve numbers in its order: average precision and recall over IoU 0.5 to 0.95, small below 32 x 32 px,
large from 96 x 96 px on."""


class CocoMetric:
    """Collects objects and detections, picture by picture; `compute` compares boxes and, `with_masks`, masks."""

    def __init__(self, *, with_masks: bool = True) -> None:
        self.with_masks = with_masks
        self._pictures: list[_Picture] = []

    def add(
        self,
        *,
        size: tuple[int, int],
        boxes: NDArray[np.floating],
        labels: Sequence[int],
        masks: Sequence[Rle],
        crowd: Sequence[bool],
        areas: Sequence[float],
        found_boxes: NDArray[np.floating],
        found_labels: Sequence[int],
        found_scores: Sequence[float],
        found_masks: Sequence[Rle] | None = None,
        number: int = 0,
    ) -> None:
        """One picture of `size` (height, width) with its objects, and what was found; either may be none.

        `found_masks` are needed if masks are compared. Pictures are compared in the order of their `number`, those of
        one number as they came: where scores are equal it has a say.
        """
        objects = [
            {"category_id": int(label), "bbox": _corner_and_size(box), "area": float(area), "iscrowd": int(is_crowd)}
            | {"segmentation": mask}
            for box, label, mask, is_crowd, area in zip(boxes, labels, masks, crowd, areas, strict=True)
        ]
        detections: list[dict[str, Any]] = [
            {"category_id": int(label), "bbox": _corner_and_size(box), "score": float(score)}
            for box, label, score in zip(found_boxes, found_labels, found_scores, strict=True)
        ]
        if found_masks is not None:
            detections = [each | {"segmentation": mask} for each, mask in zip(detections, found_masks, strict=True)]
        self._pictures.append(_Picture(number, {"height": size[0], "width": size[1]}, objects, detections))

    def merge(self, other: "CocoMetric") -> None:
        """Add all pictures of another one."""
        self._pictures += other._pictures

    def compute(self) -> dict[str, float | None]:
        """The twelve numbers of boxes and of masks as fractions, "box_ap" to "mask_ar_large".

        None where nothing can be said: no object of that size. Raises `ValueError` without pictures.
        """
        if not self._pictures:
            raise ValueError("no images were evaluated")
        pictures = sorted(self._pictures, key=lambda picture: picture.number)
        return {
            f"{kind}_{name}": value if value >= 0 else None
            for kind, coco_kind in KINDS.items()
            if kind == "box" or self.with_masks
            for name, value in zip(NUMBERS, _numbers(coco_kind, pictures), strict=True)
        }


class _Picture(NamedTuple):
    """What is known of one, as COCO has it, without ids."""

    number: int
    size: dict[str, int]
    objects: list[dict[str, Any]]
    detections: list[dict[str, Any]]


def _numbers(coco_kind: str, pictures: list[_Picture]) -> list[float]:
    COCO, evaluation = _library()
    numbered = list(enumerate(pictures, 1))
    objects = [each | {"image_id": image} for image, picture in numbered for each in picture.objects]
    detections = [each | {"image_id": image} for image, picture in numbered for each in picture.detections]
    if not objects:
        return [-1.0] * len(NUMBERS)
    if not detections:
        return [_without_detections(name, objects) for name in NUMBERS]
    truth = COCO(
        {
            "images": [picture.size | {"id": image} for image, picture in numbered],
            "annotations": [each | {"id": place} for place, each in enumerate(objects, 1)],
            "categories": [
                {"id": category, "name": str(category)}
                for category in sorted({each["category_id"] for each in (*objects, *detections)})
            ],
        }
    )
    drop = "segmentation" if coco_kind == "bbox" else "bbox"  # else the area of a box would be its mask's
    found = truth.loadRes([{k: v for k, v in each.items() if k != drop} for each in detections])
    comparison = evaluation(truth, found, coco_kind)
    comparison.evaluate()
    comparison.accumulate()
    comparison.summarize()
    return [float(value) for value in comparison.stats[: len(NUMBERS)]]


def _without_detections(name: str, objects: list[dict[str, Any]]) -> float:
    """0, or -1 where there is no object of the size that `name` is about."""
    least, most = _AREAS.get(name.rpartition("_")[2], (0.0, float("inf")))
    counted = (each for each in objects if not each["iscrowd"])
    return 0.0 if any(least <= each["area"] <= most for each in counted) else -1.0


_AREAS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}


def _corner_and_size(box: NDArray[np.floating]) -> list[float]:
    x1, y1, x2, y2 = (float(side) for side in box)
    return [x1, y1, x2 - x1, y2 - y1]


def _library() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise UserError("COCO's metrics need faster-coco-eval; pip install 'patchscale[det]'") from None
    return COCO, COCOeval_faster
