"""Published and own weights into models, and models into files: `load_checkpoint`, `load_model`, `save_model`."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
from torch import Tensor, nn

from patchscale.errors import UserError
from patchscale.models.adventurer import Adventurer, FlipSchedule
from patchscale.models.convert import (
    PATCH_KERNEL,
    POSITIONS,
    Resampled,
    grid_of,
    resample,
    rows_besides_patches,
    unwrapped,
)
from patchscale.models.patch_embed import patch_grid
from patchscale.models.registry import create_model
from patchscale.models.vit import timm_vit_names
from patchscale.models.weights import Weights, read_weights, write_safetensors
from patchscale.shapes import SHAPES, AdventurerShape, ModelShape, ViTShape, format_img_size, image_height_width

HeadChoice = Literal["keep", "new", "auto"]

_DISTILLED = {"dist_token", "head_dist.weight", "head_dist.bias"}
_VIT_MLP = "blocks.0.mlp.fc1.weight"
_DERIVED = "relative_position_index"  # older files hold this table, which follows from the sizes


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What of a file went into a model."""

    path: Path
    entry: str
    """Entry of the file that was read, such as "model" or "model_ema"; "" if the file has none."""
    loaded: tuple[str, ...]
    """Names of the tensors that came from the file."""
    resampled: tuple[Resampled, ...]
    """Those of them that were carried to another size."""
    left_out: tuple[str, ...]
    """In the file, not used."""
    kept: tuple[str, ...]
    """Not from the file: the model's own values stay."""
    note: str = ""
    """What the file does not tell, and was taken from the model."""

    def __str__(self) -> str:
        entry = f" (entry {self.entry!r})" if self.entry else ""
        return "\n".join(
            [
                f"{self.path}{entry}: {len(self.loaded)} tensors loaded",
                *(f"  resampled {tensor}" for tensor in self.resampled),
                *([f"  not used from the file: {_some(self.left_out)}"] if self.left_out else []),
                *([f"  as they were in the model: {_some(self.kept)}"] if self.kept else []),
                *([f"  {self.note}"] if self.note else []),
            ]
        )


def load_checkpoint(
    model: nn.Module, path: str | Path, *, resize: bool = False, ema: bool = False, head: HeadChoice = "keep"
) -> LoadReport:
    """Load a file of weights into a model of ours or any ViT of timm; see `weights.read_weights` for the formats.

    `resize` carries patch kernel and positions to the model's sizes, where else other sizes are refused. `ema` takes
    the moving average. `head`: "keep" wants the file's head and refuses another number of classes, "new" leaves the
    model's own head as it is, "auto" takes the file's if it fits. A model without a head takes all but the head.
    Raises `UserError` if the weights are not this model's; the model is then as before.
    """
    return load_into(model, read_weights(path, ema=ema), resize=resize, head=head)


def load_into(
    model: nn.Module, weights: Weights, *, resize: bool = False, head: HeadChoice = "keep", quirk: bool = False
) -> LoadReport:
    """`load_checkpoint` for weights that were already read; `quirk` as in `convert`."""
    if head not in get_args(HeadChoice):
        raise UserError(f"head={head!r} is unknown; choose one of {', '.join(get_args(HeadChoice))}")
    model = unwrapped(model)
    own = model.state_dict()
    tensors = {name: tensor for name, tensor in weights.tensors.items() if not name.endswith(_DERIVED)}
    own_head = {name for name in own if _is_head(name)}
    file_head = {name for name in tensors if _is_head(name)}
    if not own_head or not _takes_head(weights, tensors, own, head):
        tensors = {name: tensor for name, tensor in tensors.items() if name not in file_head}
    kept = own_head - tensors.keys()
    _check_names(weights, tensors.keys(), own.keys() - kept, model)
    note = _check_flip_schedule(weights, model)
    tensors, resampled = _at_sizes_of(model, weights, tensors, resize=resize, quirk=quirk)
    wrong = [name for name in own if name in tensors and tensors[name].shape != own[name].shape]
    if wrong:
        raise UserError(
            f"{weights.path}: weights of another model: {wrong[0]} is {_shape(tensors[wrong[0]])}, here "
            f"{_shape(own[wrong[0]])}"
            + (f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else "")
            + "; load them into a model of their own size"
        )
    model.load_state_dict(tensors, strict=False)
    return LoadReport(
        path=weights.path,
        entry=weights.entry,
        loaded=tuple(tensors),
        resampled=tuple(resampled),
        left_out=(*(name for name in weights.tensors if name not in tensors), *weights.task_head),
        kept=tuple(sorted(kept)),
        note=note,
    )


def save_model(model: nn.Module, path: str | Path) -> None:
    """Write weights as safetensors that `load_model` can build the model from: its header says which model it is."""
    model = unwrapped(model)
    write_safetensors(Path(path), model.state_dict(), describe(model))


def describe(model: nn.Module) -> dict[str, Any]:
    """What the header of a saved model says; `training.summary.weights_metadata` has the same words for runs."""
    embed: Any = getattr(model, "patch_embed", None)
    if not hasattr(embed, "patch_size") and not isinstance(model, Adventurer):
        raise UserError(f"{type(model).__name__} is not a backbone of ours or timm's; save its state_dict() instead")
    patch_size = model.patch_size if isinstance(model, Adventurer) else embed.patch_size
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    if height != width:
        raise UserError(f"patches of {height}x{width} px cannot be described; save the state_dict() instead")
    learned = isinstance(getattr(model, POSITIONS, None), nn.Parameter)
    is_fixed = isinstance(getattr(model, POSITIONS, None), Tensor) and not learned
    return {
        "version": version("patchscale"),
        "model": name_of(model),
        "architecture": getattr(model, "architecture", "vit"),
        "patch_size": height,
        "img_size": format_img_size(image_height_width(embed.img_size)),
        "num_classes": model.num_classes,
        "pos_embed": "sincos2d" if is_fixed else "learned",
        **({"flip_schedule": model.flip_schedule} if isinstance(model, Adventurer) else {}),
    }


def name_of(model: nn.Module) -> str | None:
    """The name under which `create_model` builds this model, None if it has no name."""
    if isinstance(model, Adventurer):
        return _named(AdventurerShape, _adventurer_sizes(model.state_dict()))
    name = getattr(model, "model_name", None)
    if name is None:  # made by timm itself
        name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    return name if name in SHAPES or str(name).partition(".")[0] in timm_vit_names() else None


def load_model(
    path: str | Path, *, name: str | None = None, flip_schedule: FlipSchedule | None = None, ema: bool = False
) -> nn.Module:
    """Build the model a file of weights is of, and load it: on the CPU, in eval mode, in at least float32.

    Our own files (`save_model`, `patchscale convert`, `checkpoint/model.safetensors` of a run) say what they are; a
    run's segmentation head stays outside. For others the sizes follow from the tensors. What no tensor tells:
    Adventurer's `flip_schedule`, "released" unless given, which published weights were trained with; and the number of
    a ViT's heads, which is that of our `vit_*` of the same width and depth, or of the model `name`.
    Raises `UserError` if the file cannot be read or its model not be told.
    """
    weights = read_weights(path, ema=ema)
    build = _build_adventurer if weights.is_adventurer else _build_vit
    model = build(weights, name, flip_schedule)
    if any(tensor.dtype == torch.float64 for tensor in weights.tensors.values()):
        model.double()
    load_into(model, weights)
    return model.eval()


def _build_adventurer(weights: Weights, name: str | None, flip_schedule: FlipSchedule | None) -> nn.Module:
    path, header = weights.path, weights.header
    sizes = _sizes(weights)
    found = _named(AdventurerShape, sizes)
    if name not in (None, found):
        raise UserError(f"{path}: holds {found or 'an Adventurer of no named size'}, not {name!r}")
    stated = header.get("flip_schedule")
    if flip_schedule is not None and stated not in (None, flip_schedule):
        raise UserError(f"{path}: was trained with flip_schedule={stated!r}, which its header says; leave out another")
    patch_size, img_size = _sizes_in_file(weights, other_rows=1)
    with weights.quoting("flip_schedule"):
        model = Adventurer(
            img_size=img_size,
            patch_size=patch_size,
            num_classes=weights.num_classes,
            flip_schedule=flip_schedule or stated or "released",
            pos_embed="learned" if POSITIONS in weights.tensors else "sincos2d",
            **sizes,  # type: ignore[arg-type]
        )
    if found is not None:
        model.model_name = found  # type: ignore[assignment]
    return model


def _build_vit(weights: Weights, name: str | None, flip_schedule: FlipSchedule | None) -> nn.Module:
    path, header = weights.path, weights.header
    if flip_schedule is not None:
        raise UserError(f"{path}: flip_schedule={flip_schedule!r} is for Adventurer only; leave it out")
    stated = None if header.get("model") is None else str(header["model"])
    if stated is not None and name not in (None, stated):
        raise UserError(f"{path}: holds {stated!r}, which its header says, not {name!r}")
    name = name or stated or _vit_name(weights)
    if weights.patch_size is None:
        raise UserError(
            f"{path}: no patch kernel {PATCH_KERNEL} [embed_dim, 3, p, p] in it; give a vision model's file"
        )
    with torch.device("meta"), weights.quoting("model"):  # one patch, to see the rows of its position table
        probe = create_model(name, patch_size=weights.patch_size[0], img_size=weights.patch_size[0])
    patch_size, img_size = _sizes_in_file(weights, other_rows=rows_besides_patches(probe), name=name)
    with weights.quoting("model", "pos_embed"):
        return create_model(
            name,
            patch_size=patch_size,
            img_size=img_size,
            num_classes=weights.num_classes,
            pos_embed=header.get("pos_embed", "learned"),
        )


def _sizes_in_file(weights: Weights, *, other_rows: int, name: str | None = None) -> tuple[int, tuple[int, int]]:
    """Patch size and image size of a file's model."""
    path, patch_shape = weights.path, weights.patch_size
    if patch_shape is None or patch_shape[0] != patch_shape[1]:
        raise UserError(f"{path}: its patch kernel {patch_shape} is not square; patches of other forms are not built")
    patch_size = patch_shape[0]
    table = weights.tensors.get(POSITIONS)
    if table is not None and table.dim() != 3:
        raise UserError(f"{path}: {POSITIONS} has the shape {list(table.shape)}, not [1, rows, embed_dim]")
    img_size = weights.img_size
    if img_size is not None:
        with weights.quoting("img_size"):
            height, width = patch_grid(img_size, patch_size)
            if table is not None and table.shape[1] != height * width + other_rows:
                raise UserError(
                    f"its {table.shape[1]} position rows are not {height}x{width} patches, {other_rows} more"
                )
        return patch_size, img_size
    grid = weights.grid(other_rows)
    if grid is not None:
        return patch_size, (grid[0] * patch_size, grid[1] * patch_size)
    usual = timm.get_pretrained_cfg(name) if name is not None and timm.is_model(name) else None
    if table is None and usual is not None:
        height, width = usual.input_size[1:]
        return patch_size, (height // patch_size * patch_size, width // patch_size * patch_size)
    rows = "no position table" if table is None else f"{table.shape[1]} position rows, no square and {other_rows} more"
    model = "the model" if name is None else f"{name}, or the model it is instead,"
    raise UserError(
        f"{path}: {rows}, so its image size is not told; make {model} with create_model, then use load_checkpoint"
    )


def _sizes(weights: Weights) -> dict[str, int]:
    """Widths and depth of the model a file is of, from its tensors; `UserError` if they are not those of a model."""
    deduce = _adventurer_sizes if weights.is_adventurer else _vit_sizes
    try:
        return deduce(weights.tensors)
    except ValueError as error:
        raise UserError(
            f"{weights.path}: not the weights of a whole model: {error}; give a file with all of them"
        ) from None


def _adventurer_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Arguments of Adventurer that follow from its weights; `ValueError` if they do not."""
    mixer = "layers.0.mixer."
    embed_dim, d_inner = _shape_of(tensors, f"{mixer}out_proj.weight", 2)
    channels, _, d_conv = _shape_of(tensors, f"{mixer}conv1d.weight", 3)
    (num_heads,) = _shape_of(tensors, f"{mixer}A_log", 1)
    mlp_dim, _ = _shape_of(tensors, "layers.0.mlp.w1.weight", 2)
    if d_inner % embed_dim or d_inner % num_heads or channels <= d_inner:
        raise ValueError(
            f"out_proj, conv1d and A_log of {mixer.rstrip('.')} do not fit together ({d_inner} x {embed_dim}, "
            f"{channels} channels, {num_heads} heads)"
        )
    return {
        "embed_dim": embed_dim,
        "depth": _depth(tensors, "layers"),
        "d_state": (channels - d_inner) // 2,
        "headdim": d_inner // num_heads,
        "expand": d_inner // embed_dim,
        "d_conv": d_conv,
        "mlp_dim": mlp_dim,
    }


def _vit_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Width, depth and MLP of a plain ViT; `ValueError` if the weights are not one's."""
    mlp_dim, embed_dim = _shape_of(tensors, _VIT_MLP, 2)
    return {"embed_dim": embed_dim, "depth": _depth(tensors, "blocks"), "mlp_dim": mlp_dim}


def _shape_of(tensors: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"{name} is missing")
    shape = tuple(tensors[name].shape)
    if len(shape) != dims or 0 in shape:
        raise ValueError(f"{name} has the shape {list(shape)}, not one of {dims} positive numbers")
    return shape


def _depth(tensors: Mapping[str, Tensor], blocks: str) -> int:
    """Number of blocks; `ValueError` unless they are numbered 0, 1, ..., so that a stray name builds no giant."""
    found = {name.split(".")[1] for name in tensors if name.startswith(f"{blocks}.")}
    stray = sorted(found - {str(block) for block in range(len(found))})
    if stray:
        raise ValueError(f"{blocks}.{stray[0]} is there, but not every one from {blocks}.0 up to it")
    return len(found)


def _named(family: type[ModelShape], sizes: dict[str, int]) -> str | None:
    """The first built-in model of a family that has these sizes, None if there is none."""
    for name, shape in SHAPES.items():
        if isinstance(shape, family) and all(getattr(shape, key) == value for key, value in sizes.items()):
            return name
    return None


def _vit_name(weights: Weights) -> str:
    """Our `vit_*`, or timm's distilled DeiT, of the width, depth and MLP in the file; `UserError` if there is none."""
    tensors = weights.tensors
    if _VIT_MLP not in tensors or "cls_token" not in tensors:
        some = _some(list(tensors))
        raise UserError(
            f"{weights.path}: neither Adventurer's nor a plain ViT's weights ({some}); give the model's name"
        )
    sizes = _sizes(weights)
    name = _named(ViTShape, sizes)
    if name is None:
        raise UserError(
            f"{weights.path}: a ViT of width {sizes['embed_dim']}, depth {sizes['depth']} and MLP {sizes['mlp_dim']} "
            "is none of ours, and its number of heads is not in the weights; give the model's name"
        )
    return f"deit_{name.removeprefix('vit_')}_distilled_patch16_224" if "dist_token" in tensors else name


def _is_head(name: str) -> bool:
    return name.startswith(("head.", "head_dist."))


def _takes_head(weights: Weights, tensors: dict[str, Tensor], own: dict[str, Tensor], head: HeadChoice) -> bool:
    """Whether the file's head goes into a model that has one."""
    if head == "new":
        return False
    here = own["head.weight"].shape[0] if "head.weight" in own else 0
    if head == "auto":
        return all(name in tensors and tensors[name].shape == own[name].shape for name in own if _is_head(name))
    if weights.num_classes != here:
        found = f"{weights.num_classes} classes" if weights.num_classes else "no head"
        raise UserError(
            f"{weights.path}: the file has {found}, the model {here} classes; head='new' (or 'auto') keeps the model's "
            f"own head"
            + (f", or create the model with num_classes={weights.num_classes}" if weights.num_classes else "")
        )
    return True


def _check_names(weights: Weights, found: Any, wanted: Any, model: nn.Module) -> None:
    missing = sorted(wanted - found)
    unexpected = sorted(found - wanted)
    if not missing and not unexpected:
        return
    path = weights.path
    if _DISTILLED & set(unexpected):
        raise UserError(
            f"{path}: weights of a distilled DeiT ({_some(sorted(_DISTILLED & set(weights.tensors)))}), whose second "
            "token a plain ViT has not; create deit_tiny_distilled_patch16_224 (or small, base), or use load_model"
        )
    if unexpected == [POSITIONS] and not missing:
        raise UserError(f"{path}: has learned positions, the model fixed ones; create it with pos_embed='learned'")
    if missing == [POSITIONS] and not unexpected:
        raise UserError(f"{path}: has no learned positions; create the model with pos_embed='sincos2d'")
    words = [f"{kind} {_some(names)}" for kind, names in (("missing", missing), ("unexpected", unexpected)) if names]
    raise UserError(
        f"{path}: not the weights of this {name_of(model) or type(model).__name__}: {'; '.join(words)}; "
        "give weights of the same model, or the name of the model they are of"
    )


def _check_flip_schedule(weights: Weights, model: nn.Module) -> str:
    """Refuse the wrong schedule; returns what to say if the file does not tell its own."""
    stated, own = weights.header.get("flip_schedule"), getattr(model, "flip_schedule", None)
    if own is None or own == (stated or "released"):
        return ""
    if stated is None:
        return f"flip_schedule={own!r} is the model's; the file does not tell (published weights: 'released')"
    raise UserError(
        f"{weights.path}: trained with flip_schedule={stated!r}, the model has {own!r}; create it with {stated!r}"
    )


def _at_sizes_of(
    model: nn.Module, weights: Weights, tensors: dict[str, Tensor], *, resize: bool, quirk: bool
) -> tuple[dict[str, Tensor], list[Resampled]]:
    """The tensors at the model's patch size and grid; `UserError` if they are of others and `resize` is not set."""
    own = model.state_dict()
    if PATCH_KERNEL not in own or weights.patch_size is None:
        return tensors, []
    if any(tensors[name].dim() != own[name].dim() for name in (PATCH_KERNEL, POSITIONS) if name in tensors):
        return tensors, []  # of another form, which the comparison of shapes will name
    patch_shape = (own[PATCH_KERNEL].shape[2], own[PATCH_KERNEL].shape[3])
    grid, other_rows = grid_of(model), rows_besides_patches(model)
    old_grid, table = weights.grid(other_rows), tensors.get(POSITIONS)
    if weights.img_size is None and (table is None or table.shape == own[POSITIONS].shape):
        old_grid = grid  # nothing tells of another form of the image than the model's
    if (weights.patch_size, old_grid) == (patch_shape, grid):
        return tensors, []
    there, here = _sizes_words(weights.patch_size, old_grid), _sizes_words(patch_shape, grid)
    if old_grid is None:
        assert table is not None
        raise UserError(
            f"{weights.path}: made for {there} and an image that its {table.shape[1]} position rows do not tell "
            f"(no square of patches and {other_rows} more), the model for {here}; load it at its own size, then convert"
        )
    if not resize:
        raise UserError(f"{weights.path}: made for {there}, the model for {here}; resize=True carries them over")
    return resample(tensors, model, patch_shape, grid, old_grid=old_grid, quirk=quirk)


def _sizes_words(patch_shape: tuple[int, int], grid: tuple[int, int] | None) -> str:
    patch = f"{patch_shape[0]}" if patch_shape[0] == patch_shape[1] else f"{patch_shape[0]}x{patch_shape[1]}"
    if grid is None:
        return f"patch {patch}"
    return f"patch {patch} at {grid[0] * patch_shape[0]}x{grid[1] * patch_shape[1]} px"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _some(names: Any) -> str:
    """The first few names, and how many more."""
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
