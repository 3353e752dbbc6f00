"""Carry patch kernels and position tables from one patch size or image size to another.

D embed_dim   c input channels   p patch size   h, w patch grid
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from patchscale.errors import UserError

ResizeMethod = Literal["auto", "area", "bilinear", "bilinear_antialias", "bicubic", "bicubic_antialias"]
PositionLayout = Literal["prefix_first", "class_last", "released"]


def resize_patch_embed(weight: Tensor, patch_size: int | tuple[int, int], *, method: ResizeMethod = "auto") -> Tensor:
    """Patch kernels [D, c, p, p] for another patch size; the bias needs no change.

    Pseudo-inverse resize (FlexiViT, arXiv 2212.08013, section 3.4). If M is the matrix that resizes an old patch to
    the new size, the new kernel is pinv(M^T) applied to the old one: it answers the resized patch as the old kernel
    answered the old patch, exactly when growing and in the least-squares sense when shrinking.

    `method` is the image resize M stands for. "bilinear" is FlexiViT's and "bicubic_antialias" timm's. When
    shrinking more than twofold, methods without antialiasing read a few centre pixels only and throw the kernel away
    (16 -> 1 leaves 1.6 % of its answer to a constant patch); "area" keeps that answer whole, and 16 -> 1 is simply the
    kernel's sum. "auto" is "area" if a side shrinks, else "bilinear". Raises `UserError` for a weight that is not
    [D, c, p, p], a patch size below 1, or an unknown method.
    """
    if weight.dim() != 4:
        raise UserError(f"a patch kernel is [embed_dim, channels, p, p]; got shape {tuple(weight.shape)}")
    new = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
    if len(new) != 2 or min(new) < 1:
        raise UserError(f"patch_size={patch_size} must be one or two positive numbers of pixels")
    old = (weight.shape[-2], weight.shape[-1])
    if old == new:
        return weight
    if method == "auto":
        method = "area" if new[0] < old[0] or new[1] < old[1] else "bilinear"
    resize = _resize_matrix(old, (new[0], new[1]), method).to(weight.device)
    kernels = weight.detach().double().flatten(2)  # D c p*p
    resized = kernels @ torch.linalg.pinv(resize)  # (pinv(M^T) w)^T = w^T pinv(M)
    return resized.unflatten(2, new).to(weight.dtype)


def resize_pos_embed(
    pos_embed: Tensor,
    grid: tuple[int, int],
    *,
    old_grid: tuple[int, int] | None = None,
    layout: PositionLayout = "prefix_first",
    num_prefix_tokens: int = 1,
    antialias: bool = True,
) -> Tensor:
    """Position table [1, rows, D] for another patch grid, by bicubic interpolation of its h*w patch rows.

    `layout` says where the other rows are. "prefix_first": `num_prefix_tokens` rows before the patches, kept as they
    are (timm). "class_last": one row after the patches, kept (Adventurer). "released": what the published Adventurer
    code did when it changed the image size: it reads its class-last table as prefix-first and does not antialias, so
    every patch shifts by one row; only for repeating a published stage transition exactly.
    `old_grid` may be left out if it is square. Raises `UserError` if the rows do not make the old grid.
    """
    if layout == "released":
        layout, num_prefix_tokens, antialias = "prefix_first", 1, False
    before, after = (num_prefix_tokens, 0) if layout == "prefix_first" else (0, 1)
    patches = pos_embed.shape[1] - before - after
    if old_grid is None:
        side = round(max(patches, 0) ** 0.5)
        old_grid = (side, side)
    if patches < 1 or old_grid[0] * old_grid[1] != patches:
        raise UserError(
            f"a position table of {pos_embed.shape[1]} rows is not {old_grid[0]}x{old_grid[1]} patches and "
            f"{before + after} other rows; give old_grid, and the layout the model uses"
        )
    if old_grid == tuple(grid):
        return pos_embed
    first, table, last = pos_embed.detach().split([before, patches, after], dim=1)
    image = table.to(torch.promote_types(table.dtype, torch.float32)).transpose(1, 2).unflatten(2, old_grid)
    image = F.interpolate(image, size=tuple(grid), mode="bicubic", antialias=antialias, align_corners=False)
    resized = image.flatten(2).transpose(1, 2).to(pos_embed.dtype)
    return torch.cat([first, resized, last], dim=1)


def _resize_matrix(old: tuple[int, int], new: tuple[int, int], method: str) -> Tensor:
    """The matrix [new pixels, old pixels] of an image resize, float64: column j is the resized j-th unit image."""
    pixels = old[0] * old[1]
    unit_images = torch.eye(pixels, dtype=torch.float64, device="cpu").reshape(pixels, 1, *old)
    match method.split("_"):
        case ["area"]:
            resized = F.interpolate(unit_images, size=new, mode="area")
        case [("bilinear" | "bicubic") as mode, *antialias] if antialias in ([], ["antialias"]):
            resized = F.interpolate(unit_images, size=new, mode=mode, align_corners=False, antialias=bool(antialias))
        case _:
            names = ResizeMethod.__args__  # type: ignore[attr-defined]
            raise UserError(f"resize method {method!r} is unknown; choose one of {', '.join(names)}")
    return resized.flatten(1).T
