"""How many tokens an image becomes."""

from patchscale.errors import UserError
from patchscale.shapes import image_height_width


def token_grid(img_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """(rows, columns) of patches; raises `UserError` if `patch_size` does not divide both sides."""
    height, width = image_height_width(img_size)
    if patch_size < 1 or min(height, width) < 1 or height % patch_size or width % patch_size:
        raise UserError(
            f"patch_size={patch_size} does not divide the {height}x{width} image; "
            "choose a patch_size that divides both sides, or another img_size"
        )
    return height // patch_size, width // patch_size


def num_tokens(img_size: int | tuple[int, int], patch_size: int) -> int:
    """T, the number of patches; class and mean tokens are not counted."""
    rows, columns = token_grid(img_size, patch_size)
    return rows * columns
