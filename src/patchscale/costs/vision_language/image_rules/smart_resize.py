"""Native resolution within pixel limits, then merging of neighbouring patches: Qwen2-VL, Qwen2.5-VL, Qwen3-VL."""

from dataclasses import dataclass, replace
from math import ceil, floor, sqrt

from patchscale.costs.vision_language.image_tokens import VisualTokens, checked_size, resize_note
from patchscale.errors import UserError

MAX_ASPECT_RATIO = 200
"""Longer images are refused by the families' processors."""


@dataclass(frozen=True, kw_only=True)
class SmartResize:
    """Both sides become multiples of patch_size x merge_size; the area is brought between the two limits."""

    patch_size: int
    merge_size: int = 2
    min_pixels: int
    max_pixels: int

    cap_name = "max_pixels"

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise UserError(
                f"min_pixels={self.min_pixels} and max_pixels={self.max_pixels}: give 0 < min_pixels <= max_pixels"
            )

    @property
    def factor(self) -> int:
        """Pixels on a side of one merged token."""
        return self.patch_size * self.merge_size

    def count(self, img_size: int | tuple[int, int]) -> VisualTokens:
        """One token per merge_size^2 patches; raises `UserError` for an aspect ratio above 200."""
        size = checked_size(img_size)
        resized = self._resize(*size)
        rows, columns = resized[0] // self.patch_size, resized[1] // self.patch_size
        return VisualTokens(
            img_size=size,
            resized=resized,
            tiles=1,
            patch_grid=(rows, columns),
            feature_tokens=rows * columns // self.merge_size**2,
            note=resize_note(size, resized),
        )

    def _resize(self, height: int, width: int) -> tuple[int, int]:
        if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
            raise UserError(
                f"img_size={height}x{width} is longer than {MAX_ASPECT_RATIO}:1, which this family refuses; "
                "crop or pad the image"
            )
        factor, area = self.factor, height * width
        nearest = round(height / factor) * factor, round(width / factor) * factor
        if nearest[0] * nearest[1] > self.max_pixels:
            shrink = sqrt(area / self.max_pixels)
            return (
                max(factor, floor(height / shrink / factor) * factor),
                max(factor, floor(width / shrink / factor) * factor),
            )
        if nearest[0] * nearest[1] < self.min_pixels:
            enlarge = sqrt(self.min_pixels / area)
            return ceil(height * enlarge / factor) * factor, ceil(width * enlarge / factor) * factor
        return nearest

    def caps(self) -> range:
        """Areas of whole merged tokens, from the smallest that min_pixels allows to max_pixels."""
        token = self.factor**2
        return range(ceil(self.min_pixels / token) * token, self.max_pixels + 1, token)

    def with_cap(self, cap: int) -> "SmartResize":
        """At most `cap` pixels."""
        return replace(self, max_pixels=cap)

    def cap_setting(self) -> int:
        """Pixels."""
        return self.max_pixels
