"""How a training step is made to fit into memory, without changing what it computes.

Three means, the cheapest first: the whole batch at once; with activation checkpointing, which computes every block a
second time in the backward pass; and ever smaller micro-batches, whose gradients add up to those of the batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from patchscale.config import ExecutionConfig, RunConfig
from patchscale.costs.counts import count
from patchscale.costs.memory import MEMORY_SHARE, Memory, train_memory
from patchscale.errors import UserError
from patchscale.training.available_memory import available_bytes
from patchscale.training.collective import on_every_rank
from patchscale.training.distributed import ALONE, Ranks


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What was decided, and from which numbers; with several processes, for each of them."""

    batch_size: int
    micro_batch_size: int
    activation_checkpointing: bool
    estimated_bytes: int
    available_bytes: int
    splittable: bool
    """Whether micro-batches are ours to choose."""

    @property
    def may_shrink(self) -> bool:
        """Whether smaller micro-batches are left to try."""
        return self.splittable and self.micro_batch_size > 1

    def halved(self) -> "MemoryPlan":
        """The same with micro-batches of half the size."""
        return replace(self, micro_batch_size=max(1, self.micro_batch_size // 2))

    def __str__(self) -> str:
        if self.micro_batch_size == self.batch_size:
            batch = f"whole batch of {self.batch_size}"
        else:
            batch = f"batch of {self.batch_size} in parts of {self.micro_batch_size}"
        blocks = "blocks computed again in the backward pass" if self.activation_checkpointing else "no checkpointing"
        fit = "" if self.estimated_bytes <= self.available_bytes else "; this may not fit"
        sizes = f"about {_size(self.estimated_bytes)} of {_size(self.available_bytes)}"
        return f"memory: {batch}, {blocks}; {sizes}{fit}"


def _size(number: int) -> str:
    """Bytes in the largest binary unit of which there is a tenth."""
    units = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
    unit = next((unit for unit, size in units.items() if number >= size / 10), "KiB")
    return f"{number / units[unit]:.2f} {unit}"


def plan_memory(
    config: RunConfig,
    backbone: nn.Module,
    num_classes: int,
    device: torch.device,
    before: dict[str, Any] | None = None,
    *,
    ranks: Ranks = ALONE,
    rows: int | None = None,
) -> MemoryPlan:
    """Decide on micro-batches and checkpointing; what the config says holds, the rest is chosen to fit.

    `before` is the plan of the attempt that is being resumed: what is left to choose is chosen as then, because the
    last bits of a sum depend on its parts. Of several ranks each has at most `rows` images of the batch, those of one
    CPU share its memory, and all take the leanest plan of any. Raises `UserError` if the config splits a batch that
    must stay whole.
    """
    execution, batch_size = config.execution, rows or config.training.batch_size
    reason = needs_whole_batch(backbone)
    if reason and (
        execution.activation_checkpointing == "on" or execution.micro_batch_size not in ("auto", batch_size)
    ):
        raise UserError(
            f"model {config.model.name!r} needs its whole batch in one pass ({reason}): leave "
            "execution.micro_batch_size=auto and execution.activation_checkpointing=auto, or lower training.batch_size"
        )
    available = available_bytes(device) // (1 if device.type == "cuda" else ranks.local_size)
    if execution.memory_limit_gib is not None:
        available = min(available, int(execution.memory_limit_gib * 2**30))

    plan = None
    for micro_batch_size, checkpointing in _in_order(execution, batch_size, whole=bool(reason), before=before or {}):
        estimate = estimate_memory(
            config, num_classes, micro_batch_size, device, activation_checkpointing=checkpointing, batch_size=batch_size
        )
        plan = MemoryPlan(
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            activation_checkpointing=checkpointing,
            estimated_bytes=estimate.peak_bytes - _sharded_away(estimate, execution, ranks),
            available_bytes=available,
            # Ranks that split their batches differently would wait for each other for ever.
            splittable=execution.micro_batch_size == "auto" and not reason and ranks.size == 1,
        )
        if plan.estimated_bytes <= MEMORY_SHARE * available:
            break
    assert plan is not None
    own = plan
    return min(on_every_rank(lambda: own), key=lambda each: (each.micro_batch_size, not each.activation_checkpointing))


def _sharded_away(estimate: Memory, execution: ExecutionConfig, ranks: Ranks) -> int:
    """Bytes that other ranks hold: of an image they share activations, under FSDP optimizer state and moving average.

    Their shares of weights and gradients are left in, which is too much for a model of many blocks: the blocks at work
    are whole on every rank.
    """
    away = estimate.activations * (ranks.sharing - 1) // ranks.sharing
    if execution.parallel == "fsdp":
        away += (estimate.optimizer + estimate.ema) * (ranks.size - 1) // ranks.size
    return away


def _in_order(
    execution: ExecutionConfig, batch_size: int, *, whole: bool, before: dict[str, Any]
) -> Iterator[tuple[int, bool]]:
    """(micro-batch size, checkpointing) that the config allows, from the fastest to the leanest."""
    size = (
        execution.micro_batch_size if execution.micro_batch_size != "auto" else before.get("micro_batch_size", "auto")
    )
    blocks = {"auto": before.get("activation_checkpointing"), "on": True, "off": False}[
        execution.activation_checkpointing
    ]
    if whole:
        size, blocks = batch_size, False
    largest = batch_size if size == "auto" else min(size, batch_size)
    yield from ((largest, checkpointing) for checkpointing in (False, True) if blocks in (None, checkpointing))
    while size == "auto" and largest > 1:
        largest //= 2
        yield largest, blocks is not False


def needs_whole_batch(model: nn.Module) -> str:
    """Which module makes an image's outcome depend on the rest of its batch, or on how often it is run; empty if none.

    Batch norm averages over the images of a pass, and moves its statistics at every pass. Dropout draws for the images
    of a pass (our models use none). Drop path would, but takes its draws from the whole batch: `models.drop_path`.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return f"batch norm in {name}"
        if isinstance(module, nn.Dropout) and module.p > 0:
            return f"dropout in {name}"
    return ""


def estimate_memory(
    config: RunConfig,
    num_classes: int,
    micro_batch_size: int,
    device: torch.device,
    *,
    activation_checkpointing: bool,
    batch_size: int | None = None,
) -> Memory:
    """The estimate for a run whose passes hold `micro_batch_size` images of its batch, or of another `batch_size`."""
    counts = count(
        config.model.name,
        patch_size=config.model.patch_size,
        img_size=config.model.img_size,
        num_classes=num_classes,
        task=config.task,
        head=config.head,
        pos_embed=config.model.pos_embed,
    )
    return train_memory(
        counts,
        batch_size=batch_size or config.training.batch_size,
        micro_batch_size=micro_batch_size,
        precision=config.training.precision,
        activation_checkpointing=activation_checkpointing,
        ema=config.training.ema_decay is not None,
        device=device.type,
        num_threads=torch.get_num_threads(),
    )
