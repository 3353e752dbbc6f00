"""Images into tokens: which patch sizes fit an image, and the patch embedding of our own models.

B batch   H, W image height and width in pixels   p patch size   h, w = H/p, W/p the patch grid   D embed_dim
"""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import Tensor, nn

from patchscale.errors import UserError
from patchscale.shapes import image_height_width


def patch_grid(img_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches of an image.

    Raises `UserError`, naming the nearest patch sizes and image sizes that fit, if the patches do not tile the image.
    """
    pixels: tuple[Any, ...] = (*img_size, patch_size) if isinstance(img_size, tuple | list) else (img_size, patch_size)
    if not all(isinstance(number, Integral) and int(number) > 0 for number in pixels):
        raise UserError(f"img_size={img_size!r} and patch_size={patch_size!r} must be positive whole numbers of pixels")
    height, width = image_height_width(img_size)
    if height % patch_size or width % patch_size:
        common = [p for p in range(1, min(height, width) + 1) if height % p == 0 and width % p == 0]
        patch_sizes = sorted(sorted(common, key=lambda p: abs(math.log(p / patch_size)))[:4])
        sides = sorted({max(1, side // patch_size + up) * patch_size for side in (height, width) for up in (0, 1)})
        raise UserError(
            f"patch_size={patch_size} does not divide the {height}x{width} image; "
            f"use patch_size {_one_of(patch_sizes)}, or image sides of {_one_of(sides)} pixels"
        )
    return height // patch_size, width // patch_size


def lecun_normal_(weight: Tensor) -> None:
    """Fill with a normal cut at two standard deviations, of variance 1 / fan_in after the cut (LeCun 1998)."""
    std = weight[0].numel() ** -0.5 / 0.87962566  # a standard normal cut at +-2 has this standard deviation
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def initialise_as_released(model: nn.Module, quirks: Sequence[str]) -> None:
    """Draw the patch embedding anew as the released code did, if `quirks` has its name; see docs/recipes.md.

    `patch_init_wide`: a normal whose standard deviation was raised for a cut at two of them, but which is cut at 2.
    `patch_bias_uniform`: the bias is torch's default for a convolution, up to 1 / sqrt(3 p^2) either way.
    """
    projection = getattr(getattr(model, "patch_embed", None), "proj", None)
    if not isinstance(projection, nn.Conv2d) or projection.bias is None:
        return
    fan_in = projection.weight[0].numel()
    if "patch_init_wide" in quirks:
        nn.init.trunc_normal_(projection.weight, std=fan_in**-0.5 / 0.87962566, a=-2, b=2)
    if "patch_bias_uniform" in quirks:
        nn.init.uniform_(projection.bias, -(fan_in**-0.5), fan_in**-0.5)


class PatchEmbed(nn.Module):
    """One linear map per patch: [B, 3, H, W] -> [B, h*w, D], row by row; bias zero at the start."""

    def __init__(self, img_size: tuple[int, int], patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.img_size = img_size
        self.grid_size = patch_grid(img_size, patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)
        lecun_normal_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Tokens [B, h*w, D]; raises `UserError` if the images are not of the size the model was built for."""
        if tuple(images.shape[-2:]) != self.img_size:
            given, built = ("x".join(map(str, size)) for size in (images.shape[-2:], self.img_size))
            raise UserError(f"images are {given}, this model was built for {built}; create it with img_size={given}")
        return self.proj(images).flatten(2).transpose(1, 2)


def _one_of(values: list[int]) -> str:
    return " or ".join(map(str, values)) if len(values) < 3 else f"one of {', '.join(map(str, values))}"
