"""Counting a model for which there is no formula: run it on torch's meta device and add up its operations.

The only file of `costs` that needs torch; it is imported on use.
"""

from functools import cache

from patchscale.costs.params import PosEmbed
from patchscale.errors import UserError
from patchscale.shapes import image_height_width


@cache
def count_on_meta(
    model: str, *, patch_size: int, img_size: int | tuple[int, int], pos_embed: PosEmbed = "learned"
) -> tuple[dict[str, int], dict[str, int], int]:
    """(parameters by part, multiply-adds by part, embed_dim) of a timm model without its head.

    Counted by `torch.utils.flop_counter`: convolutions, matrix products, attention. Nothing is allocated.
    Raises `UserError` if torch or timm is missing, or if timm has no such model.
    """
    try:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from patchscale.models.parameters import count_parameters
        from patchscale.models.registry import create_model
    except ImportError as error:
        raise UserError(
            f"the cost of model {model!r} is counted by torch, and {error.name or 'torch'} is missing: "
            "pip install 'patchscale[train]', or choose a built-in model"
        ) from None

    with torch.device("meta"):
        built = create_model(model, patch_size=patch_size, img_size=img_size, num_classes=0, pos_embed=pos_embed)
        images = torch.empty(1, 3, *image_height_width(img_size))
    built.to("meta")  # timm 1.0.21 makes some buffers on the CPU whatever the default device
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


def _part(operation: str) -> str:
    if "convolution" in operation:
        return "convolution"
    return "attention_quadratic" if "attention" in operation or "bmm" in operation else "linear"
