"""Average precision of boxes and masks as COCO defines it, by faster-coco-eval; a test holds it equal to pycocotools.

Pictures are numbered as they come. Boxes are x1, y1, x2, y2 in pixels; masks are run lengths as pycocotools makes them.
"""

from collections.abc import Sequence
from typing import Any

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
        self._images: list[dict[str, int]] = []
        self._objects: list[dict[str, Any]] = []
        self._detections: list[dict[str, Any]] = []

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
    ) -> None:
        """One picture of `size` (height, width) with its objects, and what was found; either may be none.

        `found_masks` are needed if masks are compared.
        """
        number = len(self._images) + 1
        self._images.append({"id": number, "height": size[0], "width": size[1]})
        for box, label, mask, is_crowd, area in zip(boxes, labels, masks, crowd, areas, strict=True):
            self._objects.append(
                {
                    "id": len(self._objects) + 1,
                    "image_id": number,
                    "category_id": int(label),
                    "bbox": _corner_and_size(box),
                    "segmentation": mask,
                    "area": float(area),
                    "iscrowd": int(is_crowd),
                }
            )
        for place, (box, label, score) in enumerate(zip(found_boxes, found_labels, found_scores, strict=True)):
            self._detections.append(
                {
                    "image_id": number,
                    "category_id": int(label),
                    "bbox": _corner_and_size(box),
                    **({} if found_masks is None else {"segmentation": found_masks[place]}),
                    "score": float(score),
                }
            )

    def merge(self, other: "CocoMetric") -> None:
        """Add all pictures of another one, with new numbers."""
        images, objects = len(self._images), len(self._objects)
        self._images += [image | {"id": image["id"] + images} for image in other._images]
        self._objects += [
            each | {"id": each["id"] + objects, "image_id": each["image_id"] + images} for each in other._objects
        ]
        self._detections += [each | {"image_id": each["image_id"] + images} for each in other._detections]

    def compute(self) -> dict[str, float | None]:
        """The twelve numbers of boxes and of masks as fractions, "box_ap" to "mask_ar_large".

        None where nothing can be said: no object of that size. Raises `ValueError` without pictures.
        """
        if not self._images:
            raise ValueError("no images were evaluated")
        return {
            f"{kind}_{name}": value if value >= 0 else None
            for kind, coco_kind in KINDS.items()
            if kind == "box" or self.with_masks
            for name, value in zip(NUMBERS, self._numbers(coco_kind), strict=True)
        }

    def _numbers(self, coco_kind: str) -> list[float]:
        COCO, evaluation = _library()
        categories = sorted({each["category_id"] for each in (*self._objects, *self._detections)})
        truth = COCO(
            {
                "images": self._images,
                "annotations": [dict(each) for each in self._objects],
                "categories": [{"id": category, "name": str(category)} for category in categories],
            }
        )
        if not self._objects:
            return [-1.0] * len(NUMBERS)
        if not self._detections:
            return [self._without_detections(name) for name in NUMBERS]
        drop = "segmentation" if coco_kind == "bbox" else "bbox"  # else the area of a box would be its mask's
        found = truth.loadRes([{k: v for k, v in each.items() if k != drop} for each in self._detections])
        comparison = evaluation(truth, found, coco_kind)
        comparison.evaluate()
        comparison.accumulate()
        comparison.summarize()
        return [float(value) for value in comparison.stats[: len(NUMBERS)]]

    def _without_detections(self, name: str) -> float:
        """0, or -1 where there is no object of the size that `name` is about."""
        least, most = _AREAS.get(name.rpartition("_")[2], (0.0, float("inf")))
        counted = (each for each in self._objects if not each["iscrowd"])
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
