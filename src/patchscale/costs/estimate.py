"""`estimate_cost`: one call from a model's name to everything it costs."""

from dataclasses import asdict, dataclass
from operator import index
from typing import TYPE_CHECKING, Any, cast, get_args

from patchscale.costs.activations import Precision
from patchscale.costs.counts import Counts, count
from patchscale.costs.memory import Memory, infer_memory, train_memory
from patchscale.costs.params import PosEmbed
from patchscale.costs.profile import DeviceProfile
from patchscale.costs.time import StepTime, find_device, flops_train_executed, run_hours, step_time
from patchscale.errors import UserError
from patchscale.shapes import format_img_size

if TYPE_CHECKING:
    import pandas as pd

CONVENTIONS = {
    "flops": "2 x MACs",
    "macs": "multiply-adds of matrix products and convolutions; norms, activations, softmax and sums are not counted",
    "macs_train": "forward and backward pass; what is computed again is not counted twice",
    "flops_train_executed": "with what is computed again: scores of fused attention, blocks under checkpointing",
    "tokens": "patches, without class token",
    "params_backbone": "without head and position table",
    "memory": "bytes of tensors; the process itself, loaders and data sets are not counted",
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one configuration costs: counts for an image; memory and time for a step of `batch_size` images."""

    counts: Counts
    train: bool
    """Whether a step is a training step, or a forward pass alone."""
    batch_size: int
    precision: str
    activation_checkpointing: bool
    memory: Memory
    time: StepTime | None
    """None if no device was named."""

    @property
    def tokens(self) -> int:
        """Patches of an image."""
        return self.counts.tokens

    @property
    def params(self) -> dict[str, int]:
        """Parameters by part."""
        return self.counts.params

    @property
    def macs(self) -> dict[str, int]:
        """Multiply-adds of a forward pass over one image by part."""
        return self.counts.macs

    @property
    def params_total(self) -> int:
        """All parameters."""
        return self.counts.params_total

    @property
    def params_pos_embed(self) -> int:
        """Parameters of the position table."""
        return self.counts.params_pos_embed

    @property
    def params_backbone(self) -> int:
        """Parameters without head and position table: the N of scaling laws."""
        return self.counts.params_backbone

    @property
    def flops_forward(self) -> int:
        """2 x MACs of one forward pass over one image."""
        return self.counts.flops_forward

    @property
    def flops_train(self) -> int:
        """2 x MACs of a forward and a backward pass over one image."""
        return self.counts.flops_train

    @property
    def flops_train_executed(self) -> float:
        """The same with what is computed again in the backward pass."""
        return flops_train_executed(self.counts, activation_checkpointing=self.activation_checkpointing)

    def device_hours(self, images: int) -> float | None:
        """Hours of one device to process `images`, all epochs together; None if no device was named."""
        return None if self.time is None else run_hours(self.time, images=images)

    def frame(self) -> "pd.DataFrame":
        """One row per part: params, macs, macs_train, and its share of the forward MACs."""
        return self.counts.frame()

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, with units in the names."""
        counts = self.counts
        return {
            "model": counts.model,
            "patch_size": counts.patch_size,
            "img_size": format_img_size(counts.img_size),
            "task": counts.task,
            "head": counts.head if counts.num_classes else None,
            "num_classes": counts.num_classes,
            "tokens": counts.tokens,
            "params": counts.params,
            "params_total": counts.params_total,
            "params_backbone": counts.params_backbone,
            "params_pos_embed": counts.params_pos_embed,
            "macs_per_image": counts.macs,
            "macs_train_per_image": counts.macs_train,
            "flops_forward_per_image": counts.flops_forward,
            "flops_train_per_image": counts.flops_train,
            "flops_train_executed_per_image": self.flops_train_executed,
            "train": self.train,
            "batch_size": self.batch_size,
            "precision": self.precision,
            "activation_checkpointing": self.activation_checkpointing,
            "memory_bytes": self.memory.parts(),
            "peak_memory_bytes": self.memory.peak_bytes,
            "peak_memory_at": self.memory.peak_at,
            "time": None if self.time is None else asdict(self.time),
        }


def estimate_cost(
    model: str,
    *,
    patch_size: int,
    img_size: int | tuple[int, int],
    num_classes: int = 1000,
    task: str = "classification",
    head: str | None = None,
    pos_embed: PosEmbed = "learned",
    train: bool = True,
    batch_size: int = 1,
    micro_batch_size: int | None = None,
    precision: Precision | None = None,
    activation_checkpointing: bool = False,
    ema: bool = False,
    device: str | DeviceProfile | None = None,
    num_threads: int | None = None,
) -> Cost:
    """Tokens, parameters, FLOPs, memory and, on a `device`, time of `model` with a `head` for `task`.

    `device` is a name of `patchscale.costs.hardware.DEVICES` or of a profile (`patchscale cost --calibrate`); without
    one, memory is that of a GPU. `precision` and `num_threads` (which matter on a CPU only) are the profile's if not
    given, else bf16 and 1. A built-in model needs no torch; other timm names do. Raises `UserError` for a patch size
    that does not divide the image, an unknown model, task, head or device, for a timm name without torch, and for
    numbers that are none.
    """
    _check_numbers(
        patch_size=patch_size,
        num_classes=num_classes,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        num_threads=num_threads,
    )
    if pos_embed not in get_args(PosEmbed):
        raise UserError(f"pos_embed={pos_embed!r}: choose {' or '.join(get_args(PosEmbed))}")
    if precision is not None and precision not in get_args(Precision):
        raise UserError(f"precision={precision!r}: choose {' or '.join(get_args(Precision))}")
    counts = count(
        model,
        patch_size=patch_size,
        img_size=img_size,
        num_classes=num_classes,
        task=task,
        head=head,
        pos_embed=pos_embed,
    )
    found = None if device is None else find_device(device, precision=precision, num_threads=num_threads)
    kind, threads = "cuda", num_threads or 1
    if isinstance(found, DeviceProfile):
        kind, threads = found.device, num_threads or found.num_threads
        precision = precision or cast(Precision, found.precision)
    elif found is not None and found.name == "cpu":
        kind = "cpu"
    precision = precision or "bf16"
    if train:
        memory = train_memory(
            counts,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            precision=precision,
            activation_checkpointing=activation_checkpointing,
            ema=ema,
            device=kind,
            num_threads=threads,
        )
    else:
        memory = infer_memory(counts, batch_size=batch_size, precision=precision, device=kind, num_threads=threads)
    time = None
    if found is not None:
        time = step_time(
            counts,
            device=found if isinstance(found, DeviceProfile) else found.name,
            train=train,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size if train else None,
            precision=precision,
            activation_checkpointing=train and activation_checkpointing,
            num_threads=num_threads,
        )
    return Cost(
        counts=counts,
        train=train,
        batch_size=batch_size,
        precision=precision,
        activation_checkpointing=train and activation_checkpointing,
        memory=memory,
        time=time,
    )


def _check_numbers(*, num_classes: Any, **at_least_1: Any) -> None:
    """Raises `UserError` for what is no whole number, or too small."""
    for name, value in {"num_classes": num_classes, **at_least_1}.items():
        lowest = 0 if name == "num_classes" else 1
        if value is None and name in ("micro_batch_size", "num_threads"):
            continue
        try:
            too_small = index(value) < lowest
        except TypeError:
            too_small = True
        if too_small:
            raise UserError(f"{name}={value!r}: give a whole number, at least {lowest}")
