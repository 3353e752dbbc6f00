"""Every image becomes one square: LLaVA-1.5 and PaliGemma."""

from dataclasses import dataclass

from patchscale.costs.vision_language.image_tokens import VisualTokens, checked_grid, checked_size, resize_note


@dataclass(frozen=True, kw_only=True)
class FixedSize:
    """One square of `side` pixels, whatever the image: resized (PaliGemma), or scaled and cropped (LLaVA-1.5)."""

    side: int
    patch_size: int = 14
    merge_size: int = 1
    crops: bool = False
    """Scale the short side and keep the middle, so that the ends of a long image are lost."""

    cap_name = "image_size"

    def __post_init__(self) -> None:
        checked_grid(self.side, patch_size=self.patch_size, merge_size=self.merge_size)

    def count(self, img_size: int | tuple[int, int]) -> VisualTokens:
        """(side / patch_size / merge_size)^2 tokens."""
        size, square = checked_size(img_size), (self.side, self.side)
        grid = self.side // self.patch_size
        note = resize_note(size, square)
        if self.crops and size[0] != size[1]:
            note = f"{note}; the long side is cropped to its middle"
        return VisualTokens(
            img_size=size,
            resized=square,
            tiles=1,
            patch_grid=(grid, grid),
            feature_tokens=(grid // self.merge_size) ** 2,
            note=note,
        )

    def caps(self) -> tuple[int, ...]:
        """Nothing to choose."""
        return (self.side,)

    def with_cap(self, cap: int) -> "FixedSize":
        """Itself."""
        return self

    def cap_setting(self) -> int:
        """The side, in pixels."""
        return self.side
