"""Native shape within a number of patches: SigLIP 2 NaFlex."""

from dataclasses import dataclass, replace
from math import ceil

from patchscale.costs.vision_language.image_tokens import VisualTokens, checked_size, resize_note
from patchscale.errors import UserError

LARGEST_SCALE, SMALLEST_SCALE, TOLERANCE = 100.0, 1e-6, 1e-5
"""The processor bisects the scale between the first two until they are nearer than the third; so the count does too."""


@dataclass(frozen=True, kw_only=True)
class NaFlex:
    """The largest scale at which both sides, rounded up to whole patches, give at most `max_num_patches`."""

    patch_size: int = 16
    max_num_patches: int = 256

    cap_name = "max_num_patches"
    merge_size = 1

    def __post_init__(self) -> None:
        if self.max_num_patches < 1:
            raise UserError(f"max_num_patches={self.max_num_patches}: give at least 1")

    def count(self, img_size: int | tuple[int, int]) -> VisualTokens:
        """One token per patch; padding up to `max_num_patches` is masked and not counted."""
        size = checked_size(img_size)
        lower, upper = SMALLEST_SCALE, LARGEST_SCALE
        while upper - lower >= TOLERANCE:
            middle = (lower + upper) / 2
            rows, columns = self._grid(size, middle)
            lower, upper = (middle, upper) if rows * columns <= self.max_num_patches else (lower, middle)
        rows, columns = self._grid(size, lower)
        resized = rows * self.patch_size, columns * self.patch_size
        return VisualTokens(
            img_size=size,
            resized=resized,
            tiles=1,
            patch_grid=(rows, columns),
            feature_tokens=rows * columns,
            note=resize_note(size, resized),
        )

    def _grid(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        rows, columns = (max(1, ceil(side * scale / self.patch_size)) for side in size)
        return rows, columns

    def caps(self) -> range:
        """Numbers of patches."""
        return range(1, self.max_num_patches + 1)

    def with_cap(self, cap: int) -> "NaFlex":
        """At most `cap` patches."""
        return replace(self, max_num_patches=cap)

    def cap_setting(self) -> int:
        """Patches."""
        return self.max_num_patches
