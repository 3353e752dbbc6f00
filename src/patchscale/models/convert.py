"""A trained model at another patch size or image size: `convert`, and the report of what it did.

Only the patch kernel and what knows about positions depend on the sizes; all other weights are taken as they are. The
patch kernel is resized as in `models/resize.py`, learned position tables bicubically, antialiased when shrinking.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import PatchEmbed as TimmPatchEmbed
from timm.models.cait import Cait
from torch import Tensor, nn

from patchscale.errors import UserError
from patchscale.models.adventurer import Adventurer
from patchscale.models.patch_embed import PatchEmbed, patch_grid
from patchscale.models.positions import sincos2d
from patchscale.models.resize import (
    PositionLayout,
    ResizeMethod,
    check_resize_method,
    constant_response,
    resize_patch_embed,
    resize_pos_embed,
    resolve_method,
    response_error,
)
from patchscale.shapes import image_height_width

if TYPE_CHECKING:
    import pandas as pd

PATCH_KERNEL = "patch_embed.proj.weight"
POSITIONS = "pos_embed"


@dataclass(frozen=True, kw_only=True)
class Resampled:
    """A tensor that was carried to another size."""

    name: str
    old_shape: tuple[int, ...]
    new_shape: tuple[int, ...]
    method: str

    def __str__(self) -> str:
        old, new = ("x".join(map(str, shape)) for shape in (self.old_shape, self.new_shape))
        return f"{self.name}: {old} -> {new}, {self.method}"


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """What `convert` changed."""

    old_patch_size: int
    new_patch_size: int
    old_img_size: tuple[int, int]
    new_img_size: tuple[int, int]
    resampled: tuple[Resampled, ...]
    """Every tensor that was resampled; all others are bit-equal."""
    response_error: float
    """Relative error of the new patch kernel's answers to resized patches; see `resize.response_error`."""
    constant_response: float
    """Share of the answer to patches of one colour that is left; see `resize.constant_response`."""

    def frame(self) -> "pd.DataFrame":
        """One row for every resampled tensor: name, old_shape, new_shape, method."""
        import pandas as pd

        columns = ["name", "old_shape", "new_shape", "method"]
        return pd.DataFrame([asdict(tensor) for tensor in self.resampled], columns=columns)

    def __str__(self) -> str:
        sizes = [
            f"patch {patch_size} at {height}x{width} px"
            for patch_size, (height, width) in (
                (self.old_patch_size, self.old_img_size),
                (self.new_patch_size, self.new_img_size),
            )
        ]
        if not self.resampled:
            return f"{sizes[0]} -> {sizes[1]}: nothing resampled, all weights as they were"
        return "\n".join([" -> ".join(sizes), *(f"  {tensor}" for tensor in self.resampled), f"  {self.response}"])

    @property
    def response(self) -> str:
        """The two numbers about the patch embedding, in words."""
        return (
            f"answers of the patch embedding: relative error {self.response_error:.2%} on noise with the spectrum of "
            f"natural images; {self.constant_response:.2%} of the answer to one colour is left"
        )


def convert(
    model: nn.Module,
    *,
    patch_size: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    method: ResizeMethod = "auto",
    quirk: bool = False,
) -> tuple[nn.Module, ConversionReport]:
    """A copy of `model` for another patch size (pixels), image size (a side, or (height, width)), or both.

    For Adventurer, and timm's ViTs that embed patches by one convolution. The copy keeps device, dtype, mode,
    `requires_grad`, and all that does not depend on the sizes; make its optimizer afterwards. `method` resizes the
    patch kernel ("auto": "area" to shrink, exact to grow). `quirk` interpolates Adventurer's positions as the released
    code did, one row off. Raises `UserError` for sizes that do not fit and for models that cannot be resized.
    """
    check_resize_method(method)
    model = unwrapped(model)
    old_patch_size, old_img_size = model_sizes(model)
    new_patch_size = old_patch_size if patch_size is None else patch_size
    wanted_img_size = old_img_size if img_size is None else img_size
    old_grid = patch_grid(old_img_size, old_patch_size)
    grid = patch_grid(wanted_img_size, new_patch_size)
    new_img_size = image_height_width(wanted_img_size)
    if quirk and not (isinstance(model, Adventurer) and isinstance(model.pos_embed, nn.Parameter)):
        raise UserError("quirk repeats what the released code did to Adventurer's learned positions; leave it out here")

    new = copy.deepcopy(model)
    before = model.state_dict()
    resampled: list[Resampled] = []
    if (new_patch_size, new_img_size) != (old_patch_size, old_img_size):
        sized = {name: tensor for name, tensor in before.items() if name in (PATCH_KERNEL, POSITIONS)}
        shape = (new_patch_size, new_patch_size)
        sized, resampled = resample(sized, model, shape, grid, old_grid=old_grid, method=method, quirk=quirk)
        _change_sizes(new, new_patch_size, new_img_size, grid, sized)
        resampled += [
            Resampled(name=name, old_shape=tuple(before[name].shape), new_shape=tuple(tensor.shape), method="timm's")
            for name, tensor in new.state_dict().items()
            if name not in sized and tensor.shape != before[name].shape  # tables of relative positions
        ]
    kernels = before[PATCH_KERNEL], new.state_dict()[PATCH_KERNEL]
    return new, ConversionReport(
        old_patch_size=old_patch_size,
        new_patch_size=new_patch_size,
        old_img_size=old_img_size,
        new_img_size=new_img_size,
        resampled=tuple(resampled),
        response_error=response_error(*kernels, method=method),
        constant_response=constant_response(*kernels),
    )


def resample(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    patch_shape: tuple[int, int],
    grid: tuple[int, int],
    *,
    old_grid: tuple[int, int],
    method: ResizeMethod = "auto",
    quirk: bool = False,
) -> tuple[dict[str, Tensor], list[Resampled]]:
    """Patch kernel and position table of `tensors`, made for `old_grid`, carried to a patch shape and a grid.

    `model` tells how the table is laid out: Adventurer's class row is the last, timm's other rows are the first ones.
    Tensors that are not there, or need no change, are left as they are.
    """
    carried = dict(tensors)
    resampled: list[tuple[str, str]] = []
    kernel = tensors.get(PATCH_KERNEL)
    if kernel is not None and tuple(kernel.shape[2:]) != patch_shape:
        carried[PATCH_KERNEL] = resize_patch_embed(kernel, patch_shape, method=method)
        resampled.append((PATCH_KERNEL, resolve_method(method, tuple(kernel.shape[2:]), patch_shape)))
    table = tensors.get(POSITIONS)
    if table is not None and old_grid != grid:
        layout: PositionLayout = "prefix_first"
        if isinstance(model, Adventurer):
            layout = "released" if quirk else "class_last"
        carried[POSITIONS] = resize_pos_embed(
            table, grid, old_grid=old_grid, layout=layout, num_prefix_tokens=rows_besides_patches(model)
        )
        resampled.append((POSITIONS, "bicubic, as released" if quirk else "bicubic_antialias"))
    return carried, [
        Resampled(name=name, old_shape=tuple(tensors[name].shape), new_shape=tuple(carried[name].shape), method=how)
        for name, how in resampled
    ]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of torch.compile, DistributedDataParallel and moving averages."""
    for attribute in ("module", "_orig_mod"):
        inner = getattr(model, attribute, None)
        if isinstance(inner, nn.Module):
            model = inner
    return model


def model_sizes(model: nn.Module) -> tuple[int, tuple[int, int]]:
    """Patch size and (height, width) in pixels that a model is built for; raises `UserError` if it has none."""
    embed = getattr(model, "patch_embed", None)
    if not isinstance(embed, PatchEmbed | TimmPatchEmbed) or not isinstance(embed.proj, nn.Conv2d):
        raise UserError(
            f"{type(model).__name__} does not embed its patches by one convolution, so it cannot be given another "
            "patch size or image size; create it at the size you need"
        )
    height, width = embed.proj.kernel_size
    if height != width or embed.img_size is None:
        raise UserError(
            f"{type(model).__name__} has patches of {height}x{width} px and img_size={embed.img_size}; "
            "both must be known, and patches square"
        )
    return height, image_height_width(embed.img_size)


def rows_besides_patches(model: nn.Module) -> int:
    """Rows of a model's position table that belong to no patch; 0 if it has no table."""
    table = getattr(model, POSITIONS, None)
    if not isinstance(table, Tensor):
        return 0
    height, width = grid_of(model)
    return table.shape[1] - height * width


def grid_of(model: nn.Module) -> tuple[int, int]:
    """Rows and columns of patches a model is built for."""
    height, width = model.patch_embed.grid_size  # type: ignore[union-attr, misc]
    return height, width


def _change_sizes(
    new: Any, patch_size: int, img_size: tuple[int, int], grid: tuple[int, int], sized: dict[str, Tensor]
) -> None:
    """Give the copy its new sizes and the resampled tensors in `sized`."""
    other_rows = rows_besides_patches(new)
    embed = new.patch_embed
    embed.proj = _new_projection(embed.proj, patch_size, sized[PATCH_KERNEL])
    old_table = getattr(new, POSITIONS, None)
    if isinstance(new, Adventurer):
        embed.img_size, embed.grid_size, embed.num_patches = img_size, grid, grid[0] * grid[1]
        if new.pretrained_cfg is not None:  # timm's data pipeline reads the input size there
            new.pretrained_cfg |= {"input_size": (3, *img_size)}
    else:
        embed.patch_size = (patch_size, patch_size)
        new.pos_embed = None  # timm must not resample the table, we have done it
        if hasattr(new, "set_input_size"):  # relative and rotary positions follow here
            new.set_input_size(img_size=img_size, patch_size=(patch_size, patch_size))
        elif isinstance(new, Cait):
            embed.set_input_size(img_size=img_size, patch_size=(patch_size, patch_size))
        else:
            raise UserError(f"{type(new).__name__} of this timm cannot change its sizes; install the newest timm")
    if isinstance(old_table, nn.Parameter):
        new.pos_embed = nn.Parameter(sized[POSITIONS].clone(), requires_grad=old_table.requires_grad)
    elif isinstance(old_table, Tensor):  # fixed positions
        before, after = (0, other_rows) if isinstance(new, Adventurer) else (other_rows, 0)
        table = sincos2d(grid, old_table.shape[2], rows_before=before, rows_after=after)
        new.register_buffer(POSITIONS, table.to(old_table), persistent=False)
    for name, value in {"patch_size": patch_size, "img_size": img_size, "grid_size": grid}.items():
        if hasattr(new, name):
            setattr(new, name, value)


def _new_projection(old: nn.Conv2d, patch_size: int, weight: Tensor) -> nn.Conv2d:
    """The patch convolution with another kernel; its bias is the old one."""
    new = nn.Conv2d(
        old.in_channels,
        old.out_channels,
        kernel_size=patch_size,
        stride=patch_size,
        bias=old.bias is not None,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    with torch.no_grad():
        new.weight.copy_(weight)
        new.weight.requires_grad_(old.weight.requires_grad)
        if old.bias is not None:
            assert new.bias is not None
            new.bias.copy_(old.bias)
            new.bias.requires_grad_(old.bias.requires_grad)
    return new.train(old.training)
