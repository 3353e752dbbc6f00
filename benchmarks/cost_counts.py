"""Our operation counts against torch's counter and against timm's published GMACs, for `cost_accuracy.py`.

Counts depend on no machine. Torch's formula for the gradients of grouped convolutions is replaced: it takes them for as
many as without groups. timm's GMACs are printed to two decimals.
"""

from collections.abc import Iterable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import patchscale.models.ssd.triton  # noqa: F401  registers the formula of the scan, before a counter copies them
from patchscale.costs.counts import count
from patchscale.models.registry import create_model
from patchscale.published_tables.tables import published
from patchscale.shapes import SHAPES

PATCH_SIZES = (16, 8, 4, 2, 1)
NORMS_COUNT = "xcit_nano"
"""timm's GMACs include norms, which are 1.1 to 1.7 % in models this narrow (see `tests/costs/test_timm_table.py`)."""


def flop_counter_rows(
    models: Iterable[str] | None = None, *, img_size: int = 64, patch_sizes: tuple[int, ...] = PATCH_SIZES
) -> list[dict[str, Any]]:
    """Ours / torch's FLOPs, one image forward, and forward and backward, of `models` (default: every built-in one).

    Columns: model, patch_size, tokens, ratio_forward, ratio_train.
    """
    names = models or [name for name in SHAPES if not name.startswith("deit_")]  # the same shapes by another name
    return [_ratios(name, patch_size, img_size) for name in names for patch_size in patch_sizes]


def timm_rows(models: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Ours / timm's GMACs, one row for every architecture and image size of `timm/imagenet-vit` that we build.

    Columns: model, img_size, patch_size, published_gmacs, counted_gmacs, ratio, exception (why it is apart, or None).
    """
    table = published("timm/imagenet-vit").query("family != 'naflexvit'")
    table = table.assign(model=table["model"].str.partition(".")[0]).drop_duplicates(["model", "img_size"])
    rows = []
    for row in table.itertuples():
        if models is not None and row.model not in models:
            continue
        counts = count(row.model, patch_size=row.patch_size, img_size=row.img_size)
        gmacs = counts.flops_forward / 2e9
        rows.append(
            {
                "model": row.model,
                "img_size": int(row.img_size),
                "patch_size": int(row.patch_size),
                "published_gmacs": row.gmacs,
                "counted_gmacs": gmacs,
                "ratio": gmacs / row.gmacs,
                "exception": "timm counts norms" if row.model.startswith(NORMS_COUNT) else None,
            }
        )
    return rows


def _ratios(name: str, patch_size: int, img_size: int) -> dict[str, Any]:
    with torch.device("meta"):
        model = create_model(name, patch_size=patch_size, img_size=img_size).train()
        images, targets = torch.empty(1, 3, img_size, img_size), torch.empty(1, dtype=torch.long)
        for module in model.modules():
            if hasattr(module, "ssd_backend"):
                module.ssd_backend = "triton"  # one operation, counted by the convention of the scan
        counter = FlopCounterMode(
            display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
        )
        with counter:
            loss = torch.nn.functional.cross_entropy(model(images), targets)
            forward = counter.get_total_flops()
            loss.backward()
    counts = count(name, patch_size=patch_size, img_size=img_size)
    return {
        "model": name,
        "patch_size": patch_size,
        "tokens": counts.tokens,
        "ratio_forward": counts.flops_forward / forward,
        "ratio_train": counts.flops_train / counter.get_total_flops(),
    }


def _convolution_backward(gradient: Any, images: Any, weight: Any, *options: Any, **_: Any) -> int:
    """Each of the two gradients takes the products of the convolution itself; none of ours is transposed."""
    wants_input, wants_weight, _bias = options[-1]
    return int(2 * prod(gradient) * prod(weight[1:]) * (wants_input + wants_weight))
