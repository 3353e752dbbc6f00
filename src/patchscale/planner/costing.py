"""What one configuration costs, asked of `patchscale.costs`: the only file of the planner that knows where it is.

Seconds follow from a share of the device's stated peak: a rough figure, the same for all sizes of a family. Where a
device was measured, `price(..., seconds=...)` takes any function instead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from patchscale.costs.counts import Counts, count
from patchscale.costs.hardware import PEAK_BF16_FLOPS_PER_S
from patchscale.costs.memory import estimate_train_memory
from patchscale.errors import UserError

ASSUMED_MFU = {"vit": 0.3228, "adventurer": 0.3189}
"""Of the A100's 312 TFLOP/s in training, from the GPU-hours of arXiv 2502.03738, Table 6 (11.0 % and 2.4 % off)."""

Seconds = Callable[[Counts, bool, int], float]
"""(counts, train, batch_size) -> seconds of one step."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """How long a step takes, and where that comes from."""

    seconds: Seconds
    source: str


@cache
def counted(model: str, img_size: int, patch_size: int, num_classes: int) -> Counts:
    """`count`, each configuration once."""
    return count(model, patch_size=patch_size, img_size=img_size, num_classes=num_classes)


def find_device(name: str) -> Device:
    """A device by its name, such as a100; raises `UserError` with the names for others."""
    key = _simple(name)
    named = {_simple(title): (title, peak) for title, peak in PEAK_BF16_FLOPS_PER_S.items()}
    if key not in named:
        raise UserError(f"device {name!r} is not known; choose one of {', '.join(named)}")
    title, peak = named[key]

    def seconds(counts: Counts, train: bool, batch_size: int) -> float:
        mfu = ASSUMED_MFU[counts.shape.architecture if counts.shape is not None else "vit"]
        return batch_size * (counts.flops_train if train else counts.flops_forward) / (mfu * peak)

    shares = " and ".join(f"{mfu:.0%} ({architecture})" for architecture, mfu in ASSUMED_MFU.items())
    return Device(seconds=seconds, source=f"{title}, assumed to reach {shares} of its {peak / 1e12:g} TFLOP/s in bf16")


def train_memory_bytes(counts: Counts, *, batch_size: int) -> int:
    """Peak memory of a training step in bf16, nothing computed again."""
    memory = estimate_train_memory(
        counts.model,
        patch_size=counts.patch_size,
        img_size=counts.img_size,
        batch_size=batch_size,
        num_classes=counts.num_classes,
        precision="bf16",
    )
    return memory.total(activation_checkpointing=False)


def _simple(name: str) -> str:
    return name.lower().replace(" ", "").replace("-", "")
