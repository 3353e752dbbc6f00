"""Masks as run lengths: of polygons, of COCO's two notations, of arrays; and back to pixels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchscale.data.objects import Rle
from patchscale.errors import UserError

FEWEST_POINTS = 3
"""Of a polygon; fewer enclose nothing."""


def encode_masks(masks: NDArray[np.uint8]) -> list[Rle]:
    """Run lengths of masks [n, H, W] of 0 and 1."""
    return [_text(coder().encode(np.asfortranarray(mask))) for mask in masks]


def decode_masks(masks: list[Rle], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Masks [n, H, W] of 0 and 1, all of `size` (height, width)."""
    decoded = np.zeros((len(masks), *size), np.uint8)
    for place, mask in enumerate(masks):
        decoded[place] = coder().decode(mask)
    return decoded


def mask_area(mask: Rle) -> float:
    """Pixels of a mask."""
    return float(coder().area(mask))


def mask_bounds(mask: Rle) -> list[float]:
    """Left, top, right and bottom of a mask's pixels."""
    left, top, width, height = (float(side) for side in coder().toBbox(mask))
    return [left, top, left + width, top + height]


def from_segmentation(segmentation: Any, size: tuple[int, int]) -> Rle | None:
    """Run lengths of what COCO writes as a segmentation: polygons, or run lengths, compressed or not.

    Polygons of fewer than three points are left out; None if nothing is left. Raises `ValueError` in words for run
    lengths of another size, or that do not add up.
    """
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(polygon) >= 2 * FEWEST_POINTS]
        if not polygons:
            return None
        return _text(coder().merge(coder().frPyObjects(polygons, *size)))
    if list(segmentation["size"]) != list(size):
        raise ValueError(f"run lengths for {segmentation['size']} px (height, width), the picture has {list(size)}")
    counts = segmentation["counts"]
    runs = counts if isinstance(counts, list) else _runs(counts)
    if sum(runs) != size[0] * size[1] or min(runs, default=0) < 0:
        raise ValueError(f"run lengths of {sum(runs)} pixels, the picture has {size[0] * size[1]}")
    if isinstance(counts, list):
        return _text(coder().frPyObjects(segmentation, *size))
    return {"size": list(size), "counts": counts}


def of_box(box: NDArray[np.float32], size: tuple[int, int]) -> Rle:
    """Run lengths of a box (left, top, right, bottom), filled."""
    left, top, right, bottom = (float(side) for side in box)
    polygon = [left, top, right, top, right, bottom, left, bottom]
    return _text(coder().merge(coder().frPyObjects([polygon], *size)))


def coder() -> Any:
    """The library that knows run lengths."""
    try:
        from faster_coco_eval.core import mask
    except ImportError:
        raise UserError("masks of detection need faster-coco-eval; pip install 'patchscale[det]'") from None
    return mask


def _runs(counts: str) -> list[int]:
    """The numbers in COCO's text: five bits a character, the lowest first, a sixth for "more follows"; from the fourth
    on differences to the number two before. Raises `ValueError` for a text that breaks off within a number."""
    numbers: list[int] = []
    value = shift = 0
    for character in counts.encode():
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("run lengths of a text that breaks off within a number")
    return numbers


def _text(rle: Rle) -> Rle:
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }
