"""Counting a model for which there is no formula: run it on torch's meta device and add up its operations.

The only file of `costs` that needs torch; it is imported on use.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from patchscale.costs.params import PosEmbed
from patchscale.errors import UserError
from patchscale.shapes import image_height_width

if TYPE_CHECKING:
    from torch import nn


@cache
def count_on_meta(
    model: str, *, patch_size: int, img_size: int | tuple[int, int], pos_embed: PosEmbed = "learned"
) -> tuple[dict[str, int], dict[str, int], int]:
    """(parameters by part, multiply-adds by part, embed_dim) of a timm model without its head.

    Counted by `torch.utils.flop_counter`: convolutions, matrix products, attention. Nothing is allocated.
    Raises `UserError` if torch or timm is missing, or if timm has no such model.
    """
    built = _build_on_meta(model, patch_size=patch_size, img_size=img_size, pos_embed=pos_embed)
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from patchscale.models.parameters import count_parameters

    images = torch.empty(1, 3, *image_height_width(img_size), device="meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        built.eval().forward_features(images)  # type: ignore[operator]
    counts = count_parameters(built)
    params = {
        "patch_embed": counts["patch_embed"],
        "pos_embed": counts["pos_embed"],
        "blocks": counts["total"] - counts["patch_embed"] - counts["pos_embed"],
    }
    operations = counter.get_flop_counts()["Global"]
    by_part = {"convolution": 0, "attention_quadratic": 0, "linear": 0}
    for operation, flops in operations.items():
        by_part[_part(str(operation))] += flops // 2
    return params, by_part, int(built.num_features)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What the activations of a model follow from."""

    depth: int
    embed_dim: int
    num_heads: int
    widths: int
    """Input and output channels of all layers with weights in one block, added up (the largest block)."""
    keeps_scores: bool
    """Whether attention writes its score matrix, tokens x tokens for every head."""


@cache
def layers_on_meta(model: str, *, patch_size: int, img_size: int | tuple[int, int]) -> Layers:
    """The layers of a timm model; raises `UserError` as `count_on_meta` does."""
    built = _build_on_meta(model, patch_size=patch_size, img_size=img_size)
    from patchscale.models.vit import keeps_scores

    blocks = list(built.blocks)  # type: ignore[arg-type]
    return Layers(
        depth=len(blocks),
        embed_dim=int(built.num_features),  # type: ignore[arg-type]
        num_heads=max((int(getattr(module, "num_heads", 0)) for module in built.modules()), default=1),
        widths=max(sum(_widths(module) for module in block.modules()) for block in blocks),
        keeps_scores=keeps_scores(model),
    )


def _widths(module: "nn.Module") -> int:
    """Input and output channels of a layer, 0 for what has no weight of its own."""
    weight = getattr(module, "weight", None)
    if weight is None:
        return 0
    return (
        int(weight.shape[0])
        if weight.dim() == 1
        else int(weight.shape[0] + getattr(module, "in_channels", weight.shape[1]))
    )


def _build_on_meta(
    model: str, *, patch_size: int, img_size: int | tuple[int, int], pos_embed: PosEmbed = "learned"
) -> "nn.Module":
    try:
        import torch

        from patchscale.models.registry import create_model
    except ImportError as error:
        raise UserError(
            f"the cost of model {model!r} is counted by torch, and {error.name or 'torch'} is missing: "
            "pip install 'patchscale[train]', or choose a built-in model"
        ) from None

    with torch.device("meta"):
        built = create_model(model, patch_size=patch_size, img_size=img_size, num_classes=0, pos_embed=pos_embed)
    return built.to("meta")  # timm 1.0.21 makes some buffers on the CPU whatever the default device


def _part(operation: str) -> str:
    if "convolution" in operation:
        return "convolution"
    return "attention_quadratic" if "attention" in operation or "bmm" in operation else "linear"
