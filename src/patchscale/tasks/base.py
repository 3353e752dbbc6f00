"""What a task is: a backbone with a head, a loss, a metric, and the rules of its evaluation."""

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patchscale.config import ModelConfig
from patchscale.models.registry import create_model


class Meter(Protocol):
    """Loss and metric over a data set, exact whatever the batch size: sums in float64, counts in int64."""

    def update(self, logits: Any, targets: Any) -> None:
        """Count one batch: what the task made of it, and the truth."""
        ...

    def merge(self, other: Any) -> None:
        """Count what another meter of the same kind, on the same device, has counted."""
        ...

    def compute(self) -> dict[str, Any]:
        """`loss` (plain mean cross-entropy), `metric` (a fraction), and the task's extras."""
        ...


class Task(nn.Module, ABC):
    """A model with its purpose; training calls it, evaluation reads its meter."""

    metric_name: str
    """Name of the metric, a fraction in [0, 1]."""

    def __init__(self, backbone: nn.Module, num_classes: int, eval_protocol: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.eval_protocol = eval_protocol

    @abstractmethod
    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """`loss` (a scalar, with the recipe's smoothing) and `logits` for images [B, 3, H, W]."""

    def loss_terms(self, targets: Tensor) -> Tensor:
        """How many terms `loss` is the mean of: images, unless a task says otherwise. A scalar int64.

        Parts of a batch are weighted by it, so that the gradients of the parts add up to those of the batch.
        """
        return torch.full((), len(targets), dtype=torch.int64, device=targets.device)

    @abstractmethod
    def new_meter(self) -> Meter:
        """An empty meter for one pass over a split."""


def build_backbone(model: ModelConfig, *, num_classes: int) -> nn.Module:
    """The configured model, freshly initialised; without a head for `num_classes=0`."""
    return create_model(
        model.name,
        patch_size=model.patch_size,
        img_size=model.img_size,
        num_classes=num_classes,
        pos_embed=model.pos_embed,
        drop_path_rate=model.drop_path_rate,
        drop_path_schedule=model.drop_path_schedule,
        layer_scale_init=model.layer_scale_init,
        flip_schedule=model.flip_schedule,
    )


def check_targets(targets: Tensor, num_classes: int, ignore_index: int | None = None) -> None:
    """Raises `ValueError` for a class that does not exist.

    On the CPU only: elsewhere looking would wait for the device, and its own cross-entropy asserts the same.
    """
    if targets.device.type != "cpu" or targets.numel() == 0:
        return
    wrong = (targets < 0) | (targets >= num_classes)
    if ignore_index is not None:
        wrong &= targets != ignore_index
    if bool(wrong.any()):
        raise ValueError(f"target {int(targets[wrong][0])} with {num_classes} classes; expected 0 to {num_classes - 1}")


def at_least_float32(logits: Tensor) -> Tensor:
    """`logits` in the precision in which losses are computed: bfloat16 becomes float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def cross_entropy_sum(logits: Tensor, targets: Tensor, ignore_index: int | None = None) -> Tensor:
    """Sum of the cross-entropies of logits [N, K] with classes [N], as a float64 scalar."""
    losses = F.cross_entropy(
        logits.float(), targets, reduction="none", ignore_index=-100 if ignore_index is None else ignore_index
    )
    if losses.device.type == "mps":  # it has no float64
        losses = losses.cpu()
    return losses.sum(dtype=torch.float64)
