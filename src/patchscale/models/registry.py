"""Models by name. Every model takes images [B, 3, H, W], H and W multiples of its patch size, and has

    forward(images) -> [B, num_classes]                       patch_size: int, img_size: (height, width)
    forward_features(images) -> tokens                        architecture: "vit" or "adventurer"
    forward_head(tokens) -> [B, num_classes]                  embed_dim, num_features: int
    forward_feature_map(images) -> [B, D, H/p, W/p]           pos_embed: parameter, buffer, or None
    forward_feature_maps(images, blocks) -> maps              no_weight_decay() -> names
    reset_classifier(num_classes), get_classifier()           model_name: what `create_model` was given
    set_grad_checkpointing(enable)

timm's contract, plus the feature maps and the sizes. `tests/models/test_contract.py` runs over all of them.
"""

import difflib
import fnmatch
from collections.abc import Callable
from typing import Any, Literal, get_args

import timm
from torch import nn

from patchscale.errors import UserError
from patchscale.models.adventurer import Adventurer, FlipSchedule
from patchscale.models.drop_path import constant_drop_path
from patchscale.models.patch_embed import patch_grid
from patchscale.models.vit import PosEmbed, create_timm_vit, create_vit, set_layer_scale, timm_vit_names
from patchscale.shapes import SHAPES, image_height_width

DropPathSchedule = Literal["linear", "constant"]
FAMILIES: dict[str, Callable[..., nn.Module]] = {"vit": create_vit, "adventurer": Adventurer.from_shape}
POS_EMBEDS = ("learned", "sincos2d")


def create_model(
    name: str,
    *,
    patch_size: int,
    img_size: int | tuple[int, int],
    num_classes: int = 1000,
    pos_embed: PosEmbed = "learned",
    drop_path_rate: float = 0.0,
    drop_path_schedule: DropPathSchedule = "linear",
    layer_scale_init: float | None = None,
    flip_schedule: FlipSchedule = "alternate",
) -> nn.Module:
    """Build a model with random weights, at any patch size that divides the image.

    `name` is one of `list_models()`; `img_size` a side or (height, width) in pixels; `num_classes=0` leaves out the
    head; `pos_embed="sincos2d"` fixes the positions; `flip_schedule` matters to Adventurer only. `drop_path_schedule`
    "constant" drops alike in all blocks; `layer_scale_init` is for models with LayerScale. Raises `UserError`
    for an unknown name (with close ones), or sizes that do not fit (with the nearest that do).
    """
    patch_grid(img_size, patch_size)
    if num_classes < 0:
        raise UserError(f"num_classes={num_classes} must be 0 (no head) or more")
    if pos_embed not in POS_EMBEDS:
        raise UserError(f"pos_embed={pos_embed!r} is unknown; choose one of {', '.join(POS_EMBEDS)}")
    if not 0 <= drop_path_rate < 1:
        raise UserError(f"drop_path_rate={drop_path_rate} must be at least 0 and below 1")
    if drop_path_schedule not in get_args(DropPathSchedule):
        raise UserError(f"drop_path_schedule={drop_path_schedule!r} is unknown; choose linear or constant")
    options: dict[str, Any] = {
        "patch_size": patch_size,
        "img_size": image_height_width(img_size),
        "num_classes": num_classes,
        "pos_embed": pos_embed,
        "drop_path_rate": drop_path_rate,
    }
    if name in SHAPES:
        shape = SHAPES[name]
        if layer_scale_init is not None:
            raise UserError(f"model {name!r} has no LayerScale; leave out layer_scale_init")
        if shape.architecture == "adventurer":
            options |= {"flip_schedule": flip_schedule, "drop_path_schedule": drop_path_schedule}
        model = FAMILIES[shape.architecture](shape, **options)
    elif timm.is_model(name):
        model = create_timm_vit(name, **options)
        if layer_scale_init is not None:
            set_layer_scale(model, layer_scale_init)
    else:
        close = difflib.get_close_matches(name, list_models(), n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else f"ours are {', '.join(SHAPES)};"
        raise UserError(f"model {name!r} is unknown; {hint} patchscale.list_models() lists all")
    if drop_path_schedule == "constant" and drop_path_rate and not isinstance(model, Adventurer):
        constant_drop_path(model, drop_path_rate)
    model.model_name = name  # type: ignore[assignment]
    return model


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` takes and that match a shell-style pattern: our own first, then timm's, sorted."""
    return fnmatch.filter([*SHAPES, *sorted(timm_vit_names() - SHAPES.keys())], pattern)
