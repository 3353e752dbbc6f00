"""Carry patch kernels and position tables from one patch size or image size to another.

D embed_dim   c input channels   p patch size   h, w patch grid
"""

from typing import Literal, get_args

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
    check_resize_method(method)
    old = (weight.shape[-2], weight.shape[-1])
    if old == new:
        return weight
    resize = _resize_matrix(old, (new[0], new[1]), resolve_method(method, old, new))
    kernels = weight.detach().cpu().double().flatten(2)  # D c p*p; in float64, which not every device has
    resized = kernels @ torch.linalg.pinv(resize)  # (pinv(M^T) w)^T = w^T pinv(M)
    return resized.unflatten(2, new).to(weight)


def resolve_method(method: ResizeMethod, old: tuple[int, ...], new: tuple[int, ...]) -> ResizeMethod:
    """The method that "auto" stands for, between kernels of `old` and `new` height and width."""
    if method != "auto":
        return method
    return "area" if new[0] < old[0] or new[1] < old[1] else "bilinear"


def response_error(old: Tensor, new: Tensor, *, method: ResizeMethod = "auto") -> float:
    """How far the kernels `new` [D, c, q, q] are from answering as `old` [D, c, p, p] did: 0 is perfect, 1 all is lost.

    ||<new, Mx> - <old, x>|| / ||<old, x>|| over all D and 256 patches x of seeded noise with the 1/f amplitude spectrum
    of natural images; M is the image resize of `method`. Growing by a resize of the same method gives 0.
    """
    sizes = (old.shape[2], old.shape[3]), (new.shape[2], new.shape[3])
    patches = _natural_patches(256, old.shape[1], *sizes[0])
    if sizes[0] == sizes[1]:
        resized = patches
    else:
        resize = _resize_matrix(*sizes, resolve_method(method, *sizes))
        resized = (patches.flatten(2) @ resize.T).unflatten(2, sizes[1])
    before, after = (
        images.flatten(1) @ kernels.detach().cpu().double().flatten(1).T
        for images, kernels in ((patches, old), (resized, new))
    )
    return _ratio((after - before).norm(), before.norm(), both_zero=0.0)


def constant_response(old: Tensor, new: Tensor) -> float:
    """What share of `old`'s answer to patches of one colour is left in `new`'s: the least-squares factor, 1 is all."""
    before, after = (kernels.detach().cpu().double().sum((2, 3)).flatten() for kernels in (old, new))
    return _ratio(before @ after, before @ before, both_zero=1.0)


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


def _natural_patches(count: int, channels: int, height: int, width: int) -> Tensor:
    """Seeded noise [count, channels, height, width] with amplitude 1/f, cut from images of twice the size; float64."""
    sides = 2 * height, 2 * width
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(count, channels, *sides, dtype=torch.float64, generator=generator, device="cpu")
    rows, columns = (torch.fft.fftfreq(side, dtype=torch.float64, device="cpu") for side in sides)
    frequency = torch.hypot(rows[:, None], columns).clamp(min=1 / max(sides))  # the mean as the longest wave
    return torch.fft.ifft2(torch.fft.fft2(white) / frequency).real[..., :height, :width]


def _ratio(numerator: Tensor, denominator: Tensor, *, both_zero: float) -> float:
    return both_zero if numerator == denominator == 0 else float(numerator / denominator)


def check_resize_method(method: str) -> None:
    """Raise `UserError` unless `method` is a `ResizeMethod`."""
    names = get_args(ResizeMethod)
    if method not in names:
        raise UserError(f"resize method {method!r} is unknown; choose one of {', '.join(names)}")


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
            raise AssertionError(method)
    return resized.flatten(1).T
