"""How many tokens a vision-language model makes of an image.

Every family has a rule (`image_rules/`): a frozen dataclass of plain numbers that turns (height, width) in pixels into
`VisualTokens`. Counts equal those of the families' own processors, which `tests/costs/vision_language` runs.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from patchscale.errors import UserError
from patchscale.shapes import image_height_width


@dataclass(frozen=True, kw_only=True)
class VisualTokens:
    """What one image becomes. Sizes are (height, width) in pixels, grids (rows, columns)."""

    img_size: tuple[int, int]
    resized: tuple[int, int]
    """The image as the encoder gets it, padding and all tiles together; a thumbnail is not in it."""
    tiles: int
    """Forward passes of the encoder, a thumbnail or overview among them."""
    patch_grid: tuple[int, int]
    """Patches of one tile; all tiles of an image are equal."""
    feature_tokens: int
    """Tokens that carry image features."""
    newline_tokens: int = 0
    """Learned tokens at the end of every row of features (LLaVA-NeXT)."""
    boundary_tokens: int = 0
    """Start and end markers, where the family's processor adds them; those of a chat template are text."""
    unpadded: tuple[int, int] | None = None
    """The image within `resized`, where the rest is padding (LLaVA-NeXT)."""
    note: str | None = None
    """How the image was changed, if it was."""

    @property
    def content_size(self) -> tuple[int, int]:
        """(height, width) of the image after resizing, without padding."""
        return self.unpadded or self.resized

    @property
    def llm_tokens(self) -> int:
        """All tokens that enter the language model for this image."""
        return self.feature_tokens + self.newline_tokens + self.boundary_tokens

    @property
    def encoder_tokens_per_tile(self) -> int:
        """Patches of one tile, before merging; a class token is not counted."""
        return self.patch_grid[0] * self.patch_grid[1]

    @property
    def encoder_tokens(self) -> int:
        """Patches of all tiles, before merging."""
        return self.tiles * self.encoder_tokens_per_tile


class ImageRule(Protocol):
    """What a family needs: counting, and the setting that caps the cost of an image."""

    @property
    def patch_size(self) -> int:
        """Pixels on a side of a patch of the encoder."""

    @property
    def merge_size(self) -> int:
        """Patches on a side of a token of the language model."""

    @property
    def cap_name(self) -> str:
        """The setting of the family's processor that limits an image's tokens."""

    def count(self, img_size: int | tuple[int, int]) -> VisualTokens:
        """Tokens of an image; raises `UserError` for an image that the family refuses."""

    def caps(self) -> range | tuple[int, ...]:
        """The caps worth trying, ascending, up to the rule's own; what an image costs never falls along them."""

    def with_cap(self, cap: int) -> "ImageRule":
        """The same rule with another cap, one of `caps`."""

    def cap_setting(self) -> Any:
        """The value to give to `cap_name`."""


def checked_size(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width); raises `UserError` if a side is not a positive number of pixels."""
    height, width = image_height_width(img_size)
    if min(height, width) < 1:
        raise UserError(f"img_size={height}x{width}: both sides of an image need at least 1 pixel")
    return height, width


def checked_grid(side: int, *, patch_size: int, merge_size: int) -> int:
    """Patches on a side of a square tile; raises `UserError` if patches or merged patches do not fill it."""
    if patch_size < 1 or merge_size < 1 or side < 1 or side % (patch_size * merge_size):
        raise UserError(
            f"a square of {side} pixels is not filled by patches of {patch_size} merged {merge_size}x{merge_size}; "
            "choose sizes whose product divides it"
        )
    return side // patch_size


def resize_note(before: tuple[int, int], after: tuple[int, int]) -> str | None:
    """One line if the number of pixels changed."""
    ratio = (after[0] * after[1]) / (before[0] * before[1])
    if before == after:
        return None
    word = "shrunk" if ratio < 1 else "enlarged" if ratio > 1 else "reshaped"
    return f"{word} from {before[0]}x{before[1]} to {after[0]}x{after[1]} ({ratio:.3g} x the pixels)"
