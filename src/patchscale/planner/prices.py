"""What every configuration of a space costs: one row each, priced once, planned with as often as wanted. No torch.

A configuration is counted once per model, image size and patch size; what follows from that is arithmetic on columns,
so a million rows are no trouble.
"""

from typing import Any

import numpy as np
import pandas as pd

from patchscale.errors import UserError
from patchscale.planner.costing import NO_DEVICE, Seconds, counted, find_device, memory_bytes
from patchscale.planner.space import Space

PRICES = {
    "train_flops": "FLOPs of the whole training",
    "train_gpu_hours": "device-hours of the whole training",
    "infer_flops": "FLOPs of one forward pass over one image",
    "latency_s": "seconds of one forward pass at the batch size of inference",
    "peak_memory_bytes": "memory of a training step; of a vision-language model, of its requests",
    "kv_cache_bytes": "keys and values of a vision-language model's requests",
    "infer_memory_bytes": "memory of a forward pass",
    "visual_tokens": "tokens of an image that enter the language model",
    "params_total": "parameters, position table and head included",
    "tokens": "patches of an image",
}
"""Columns that budgets may limit."""


def price(
    space: Space,
    *,
    device: str | None = None,
    seconds: Seconds | None = None,
    batch_size: int = 64,
    infer_batch_size: int = 1,
    num_classes: int = 1000,
) -> pd.DataFrame:
    """The space with its prices: a row per configuration, columns as in `PRICES` as far as they are known.

    Time needs a `device` (an accelerator's name) or a function `seconds(counts, train, batch_size)`; training columns
    need `images_seen` in the space. `peak_memory_bytes` is that of a training step of `batch_size` images in bf16 (in
    the precision of a calibrated device), latency and `infer_memory_bytes` are those of `infer_batch_size` images.
    FLOPs are 2 x MACs; training is 3 x forward, 2 x for the patch embedding.
    Raises `UserError` for an unknown model or device.
    """
    if batch_size < 1 or infer_batch_size < 1:
        raise UserError(f"batch sizes {batch_size} and {infer_batch_size}: a step needs at least one image")
    named = NO_DEVICE if device is None else find_device(device)
    clock = seconds or (None if device is None else named.seconds)
    frame = space.frame()
    place, unique = _unique_counts(frame)
    counts = [
        counted(space.shapes.get(model, model), img_size, patch_size, num_classes)
        for model, img_size, patch_size in unique
    ]

    def column(values: list[Any]) -> np.ndarray:
        return np.array(values, dtype=float)[place]

    prices: dict[str, Any] = {
        "params_backbone": column([one.params_backbone for one in counts]),
        "params_total": column([one.params_total for one in counts]),
        "infer_flops": column([one.flops_forward for one in counts]),
    }
    memory = [memory_bytes(one, named, batch_size=batch_size, infer_batch_size=infer_batch_size) for one in counts]
    prices |= {name: column([one[name] for one in memory]) for name in memory[0]}
    if "images_seen" in frame:
        prices["train_flops"] = column([one.flops_train for one in counts]) * frame["images_seen"].to_numpy()
        prices["flops_train_total"] = prices["train_flops"]  # the name that laws know
    if clock is not None:
        prices["latency_s"] = column([clock(one, False, infer_batch_size) for one in counts])
        if "images_seen" in frame:
            image_s = column([clock(one, True, batch_size) / batch_size for one in counts])
            prices["train_gpu_hours"] = image_s * frame["images_seen"].to_numpy() / 3600
    priced = frame.assign(**prices)
    priced.attrs = {
        "time": named.source if seconds is None else "a function that was given",
        "device_memory_bytes": named.memory_bytes,
        "memory": f"a training step of {batch_size} images in {named.precision}",
    }
    return priced


def _unique_counts(frame: pd.DataFrame) -> tuple[np.ndarray, list[tuple[str, int, int]]]:
    """For every row the place of its (model, img_size, patch_size) in the list of distinct ones."""
    codes = frame["model"].cat.codes.to_numpy().astype(np.int64)
    img_size, patch_size = frame["img_size"].to_numpy(), frame["patch_size"].to_numpy()
    key = (codes * (img_size.max() + 1) + img_size) * (patch_size.max() + 1) + patch_size
    _, first, place = np.unique(key, return_index=True, return_inverse=True)
    models = frame["model"].cat.categories
    return place, [(str(models[codes[i]]), int(img_size[i]), int(patch_size[i])) for i in first]
