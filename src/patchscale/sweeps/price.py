"""What one planned run needs of a device: memory of a step, and hours. No torch for built-in models."""

from functools import partial

from patchscale.config import RunConfig
from patchscale.costs.estimate import Cost, estimate_cost
from patchscale.costs.memory import MEMORY_SHARE
from patchscale.costs.time import device_memory_bytes
from patchscale.sweeps.plan import PlannedRun


def price(item: PlannedRun, device: str | None) -> Cost:
    """The cost of the run on `device`; without one there is no time, and memory is that of a GPU.

    Activation checkpointing that is left to choose is on if a step fills more than `MEMORY_SHARE` of a named device
    without it, as training itself decides. Raises `UserError` for a device of which no time is known.
    """
    config = item.config
    estimate = partial(
        estimate_cost,
        config.model.name,
        patch_size=config.model.patch_size,
        img_size=config.model.img_size,
        num_classes=item.workload.num_classes or 0,
        task=config.task,
        head=config.head,
        pos_embed=config.model.pos_embed,
        batch_size=config.training.batch_size,
        micro_batch_size=_micro_batch_size(config),
        precision=config.training.precision,
        ema=config.training.ema_decay is not None,
        device=device,
    )
    chosen = config.execution.activation_checkpointing
    cost = estimate(activation_checkpointing=chosen == "on")
    limit = None if device is None else device_memory_bytes(device)
    if chosen == "auto" and limit is not None and cost.memory.peak_bytes > MEMORY_SHARE * limit:
        return estimate(activation_checkpointing=True)
    return cost


def _micro_batch_size(config: RunConfig) -> int | None:
    size = config.execution.micro_batch_size
    return None if size == "auto" else size
