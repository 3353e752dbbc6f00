"""An overview and tiles at one of a few resolutions, padding removed again, a newline token per row: LLaVA-NeXT."""

from dataclasses import dataclass, replace
from math import ceil

from patchscale.costs.vision_language.image_tokens import VisualTokens, checked_grid, checked_size, resize_note
from patchscale.errors import UserError

PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
"""(height, width) of the resolutions LLaVA-NeXT was released with."""


@dataclass(frozen=True, kw_only=True)
class AnyRes:
    """The resolution that keeps most of the image; the features of padding are dropped before the language model."""

    tile_size: int = 336
    patch_size: int = 14
    pinpoints: tuple[tuple[int, int], ...] = PINPOINTS

    cap_name = "image_grid_pinpoints"
    merge_size = 1

    def __post_init__(self) -> None:
        checked_grid(self.tile_size, patch_size=self.patch_size, merge_size=1)
        if not self.pinpoints:
            raise UserError("pinpoints are empty: give at least one (height, width)")
        for resolution in self.pinpoints:
            if min(resolution) < 1 or resolution[0] % self.tile_size or resolution[1] % self.tile_size:
                raise UserError(
                    f"pinpoint {resolution[0]}x{resolution[1]} is not made of tiles of {self.tile_size} pixels; "
                    "give multiples of it"
                )

    def count(self, img_size: int | tuple[int, int]) -> VisualTokens:
        """Features of the overview, of the tiles without padding, and one newline token per row of the latter."""
        size = checked_size(img_size)
        canvas = self._resolution(*size)
        grid = self.tile_size // self.patch_size
        tile_rows, tile_columns = canvas[0] // self.tile_size, canvas[1] // self.tile_size
        fitted = self._fitted(size, canvas)
        rows, columns = _without_padding(size, (tile_rows * grid, tile_columns * grid))
        return VisualTokens(
            img_size=size,
            resized=canvas,
            tiles=1 + tile_rows * tile_columns,
            patch_grid=(grid, grid),
            feature_tokens=grid * grid + rows * columns,
            newline_tokens=rows,
            unpadded=fitted,
            note=resize_note(size, fitted),
        )

    def _resolution(self, height: int, width: int) -> tuple[int, int]:
        """Most pixels of the image kept, none counted twice by enlarging; then least waste; then first in the list."""

        def merit(resolution: tuple[int, int]) -> tuple[int, int]:
            scale = min(resolution[1] / width, resolution[0] / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - resolution[0] * resolution[1]

        return max(self.pinpoints, key=merit)

    @staticmethod
    def _fitted(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
        """The image inside its padding."""
        scale = min(canvas[0] / size[0], canvas[1] / size[1])
        return min(canvas[0], ceil(size[0] * scale)), min(canvas[1], ceil(size[1] * scale))

    def caps(self) -> tuple[int, ...]:
        """Numbers of tiles that the resolutions have."""
        return tuple(sorted({self._tiles(resolution) for resolution in self.pinpoints}))

    def with_cap(self, cap: int) -> "AnyRes":
        """Only the resolutions of at most `cap` tiles."""
        return replace(self, pinpoints=tuple(one for one in self.pinpoints if self._tiles(one) <= cap))

    def cap_setting(self) -> list[list[int]]:
        """The resolutions, (height, width)."""
        return [list(resolution) for resolution in self.pinpoints]

    def _tiles(self, resolution: tuple[int, int]) -> int:
        return (resolution[0] // self.tile_size) * (resolution[1] // self.tile_size)


def _without_padding(size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of features left when the same number is cut off at both ends of the padded side."""
    (height, width), (rows, columns) = size, grid
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    return rows, columns
