"""Counting a model for which there is no formula: run it on torch's meta device and add up its operations.

This file and `operations.py` are the only ones of `costs` that need torch; it is imported on use.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from patchscale.costs.params import PosEmbed
from patchscale.errors import UserError
from patchscale.shapes import image_height_width

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A timm model without its linear head, counted for one image."""

    params: dict[str, int]
    """Parameters by part."""
    macs: dict[str, int]
    """Multiply-adds of one forward pass by part."""
    macs_train: dict[str, int]
    """Multiply-adds of a forward and a backward pass by part, nothing computed twice."""
    embed_dim: int
    heads: int
    """Linear heads for classification: two in distilled models, which predict their mean."""
    fused_attention: bool
    """Whether scores are never written, and so computed again in the backward pass."""


@cache
def count_on_meta(
    model: str,
    *,
    patch_size: int,
    img_size: int | tuple[int, int],
    pos_embed: PosEmbed = "learned",
    task: str = "classification",
) -> Counted:
    """Run a timm model forward and backward on the meta device, where nothing is allocated, and add up what it does.

    Pooling counts for `task="classification"`; dense tasks read the patch tokens. Raises `UserError` if torch or timm
    is missing, if timm has no such model, or if an operation of it has no count (see `operations.py`).
    """
    built = build_on_meta(model, patch_size=patch_size, img_size=img_size, pos_embed=pos_embed).eval()
    import torch

    from patchscale.costs.operations import count_forward_and_backward
    from patchscale.models.parameters import count_parameters
    from patchscale.models.vit import keeps_scores

    images = torch.empty(1, 3, *image_height_width(img_size), device="meta")
    forward = built if task == "classification" else built.forward_feature_map
    macs, macs_train = count_forward_and_backward(built, forward, images, name=model)  # type: ignore[arg-type]
    counts = count_parameters(built)
    params = {
        "patch_embed": counts["patch_embed"],
        "pos_embed": counts["pos_embed"],
        "blocks": counts["total"] - counts["patch_embed"] - counts["pos_embed"],
    }
    classifier = built.get_classifier()  # type: ignore[operator]
    return Counted(
        params=params,
        macs=macs,
        macs_train=macs_train,
        embed_dim=int(built.num_features),  # type: ignore[arg-type]
        heads=len(classifier) if isinstance(classifier, tuple) else 1,
        fused_attention=not keeps_scores(model),
    )


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What the time of moving its numbers follows from."""

    depth: int
    widths: int
    """Input and output channels of all layers with weights in one block, added up (the largest block)."""


@cache
def layers_on_meta(model: str, *, patch_size: int, img_size: int | tuple[int, int]) -> Layers:
    """The layers of a timm model; raises `UserError` as `count_on_meta` does."""
    built = build_on_meta(model, patch_size=patch_size, img_size=img_size)
    blocks = list(built.blocks)  # type: ignore[arg-type]
    return Layers(
        depth=len(blocks),
        widths=max(sum(_widths(module) for module in block.modules()) for block in blocks),
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


def build_on_meta(
    model: str, *, patch_size: int, img_size: int | tuple[int, int], pos_embed: PosEmbed = "learned"
) -> "nn.Module":
    """A model without a head on torch's meta device; raises `UserError` if torch or timm is missing, or has no such."""
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
