"""Objects in a picture: what detection is trained on and measured against."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rle = dict[str, Any]
"""Run lengths of a mask as COCO has them: "size" [height, width] and "counts", column by column."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Objects:
    """The n annotated objects of a picture, in its own pixels."""

    size: tuple[int, int]
    """(height, width) of the picture."""
    boxes: NDArray[np.float32]
    """[n, 4]: left, top, right, bottom."""
    labels: NDArray[np.int64]
    """[n]: classes, 1 to K; 0 is the background."""
    masks: list[Rle]
    crowd: NDArray[np.bool_]
    """[n]: a region of many; not trained on, and what is found in it is not counted."""
    areas: NDArray[np.float64]
    """[n]: pixels, as annotated; they decide what is small and large."""

    def __len__(self) -> int:
        return len(self.labels)
