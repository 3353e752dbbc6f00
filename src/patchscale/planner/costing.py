"""What one configuration costs, asked of `patchscale.costs`: the only file of the planner that knows where it is.

Seconds come from a calibrated profile of the device, or from an assumed share of its stated peak; `source` says which.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import cast

from patchscale.costs import time
from patchscale.costs.activations import Precision
from patchscale.costs.counts import Counts, count
from patchscale.costs.memory import infer_memory, train_memory
from patchscale.costs.profile import DeviceProfile
from patchscale.shapes import ModelShape

Seconds = Callable[[Counts, bool, int], float]
"""(counts, train, batch_size) -> seconds of one step."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """How long a step takes, where that comes from, and what memory follows from."""

    seconds: Seconds
    source: str
    precision: Precision = "bf16"
    """Of training and inference."""
    kind: str = "cuda"
    num_threads: int = 1
    memory_bytes: int | None = None
    """What it has; None if not known."""


NO_DEVICE = Device(seconds=lambda counts, train, batch_size: float("nan"), source="not priced")
"""Memory is then that of a GPU."""


@cache
def counted(model: str | ModelShape, img_size: int, patch_size: int, num_classes: int) -> Counts:
    """`count`, each configuration once."""
    return count(model, patch_size=patch_size, img_size=img_size, num_classes=num_classes)


def find_device(name: str) -> Device:
    """A device by its name (a100), or a calibrated one.

    Raises `UserError` for others, and for one of whose speed nothing is known.
    """
    found = time.find_device(name)
    device = found if isinstance(found, DeviceProfile) else found.name

    def seconds(counts: Counts, train: bool, batch_size: int) -> float:
        return time.step_time(counts, device=device, train=train, batch_size=batch_size).step_time_s

    example = time.step_time(counted("vit_base", 224, 16, 1000), device=device)
    if not isinstance(found, DeviceProfile):
        shares = " and ".join(f"{mfu} ({architecture})" for architecture, mfu in time.ASSUMED_MFU.items())
        source = f"{found.title}: assumed MFU {shares} of its stated peak, from {time.TABLE_6}; not measured on it"
        return Device(seconds=seconds, source=source, memory_bytes=found.memory_bytes)
    return Device(
        seconds=seconds,
        source=example.source,
        precision=cast(Precision, found.precision),
        kind=found.device,
        num_threads=found.num_threads,
        memory_bytes=time.device_memory_bytes(found),
    )


def memory_bytes(counts: Counts, device: Device, *, batch_size: int, infer_batch_size: int) -> dict[str, int]:
    """Memory by the column it is a price in: of a training step, nothing computed again, and of a forward pass."""
    train = train_memory(
        counts,
        batch_size=batch_size,
        precision=device.precision,
        device=device.kind,
        num_threads=device.num_threads,
    )
    infer = infer_memory(
        counts,
        batch_size=infer_batch_size,
        precision=device.precision,
        device=device.kind,
        num_threads=device.num_threads,
    )
    return {"peak_memory_bytes": train.peak_bytes, "infer_memory_bytes": infer.peak_bytes}
