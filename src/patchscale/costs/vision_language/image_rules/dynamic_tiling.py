"""Square tiles in the grid nearest to the image's shape, and a thumbnail: InternVL2, 2.5 and 3."""

from dataclasses import dataclass, replace
from functools import lru_cache

from patchscale.costs.vision_language.image_tokens import VisualTokens, checked_grid, checked_size, resize_note
from patchscale.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DynamicTiling:
    """The image is stretched to rows x columns tiles; several tiles get a thumbnail of the whole image with them."""

    tile_size: int = 448
    patch_size: int = 14
    merge_size: int = 2
    min_tiles: int = 1
    max_tiles: int = 12
    """Without the thumbnail."""
    thumbnail: bool = True
    boundary_tokens: int = 2
    """A start and an end marker around all tiles of an image."""

    cap_name = "max_dynamic_patch"

    def __post_init__(self) -> None:
        checked_grid(self.tile_size, patch_size=self.patch_size, merge_size=self.merge_size)
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise UserError(f"min_tiles={self.min_tiles}, max_tiles={self.max_tiles}: give 1 <= min_tiles <= max_tiles")

    def count(self, img_size: int | tuple[int, int]) -> VisualTokens:
        """(tile_size / patch_size / merge_size)^2 tokens a tile, and the markers."""
        size = checked_size(img_size)
        rows, columns = self._grid(*size)
        canvas = rows * self.tile_size, columns * self.tile_size
        tiles = rows * columns + (1 if self.thumbnail and rows * columns > 1 else 0)
        grid = self.tile_size // self.patch_size
        return VisualTokens(
            img_size=size,
            resized=canvas,
            tiles=tiles,
            patch_grid=(grid, grid),
            feature_tokens=tiles * (grid // self.merge_size) ** 2,
            boundary_tokens=self.boundary_tokens,
            note=resize_note(size, canvas),
        )

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the nearest shape; of two equally near the larger, if the image fills half of it."""
        best, best_distance = (1, 1), float("inf")
        for rows, columns in _grids(self.min_tiles, self.max_tiles):
            distance = abs(width / height - columns / rows)
            fills_half = height * width > 0.5 * self.tile_size**2 * rows * columns
            if distance < best_distance or (distance == best_distance and fills_half):
                best, best_distance = (rows, columns), distance
        return best

    def caps(self) -> range:
        """Numbers of tiles."""
        return range(self.min_tiles, self.max_tiles + 1)

    def with_cap(self, cap: int) -> "DynamicTiling":
        """At most `cap` tiles."""
        return replace(self, max_tiles=cap)

    def cap_setting(self) -> int:
        """Tiles without the thumbnail."""
        return self.max_tiles


@lru_cache(maxsize=64)
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of all allowed grids, by number of tiles, narrow ones first."""
    grids = [
        (rows, columns)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
        if rows * columns >= min_tiles
    ]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))
