"""Image classification: the backbone's own head, cross-entropy, top-1 accuracy.

B images, K classes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from patchscale.config import RunConfig
from patchscale.data.datasets import Splits
from patchscale.tasks.base import Task, at_least_float32, build_backbone, check_targets, cross_entropy_sum


class ClassificationTask(Task):
    """Logits [B, K] from the backbone; targets are classes [B], or probabilities [B, K] under mixup and cutmix.

    Label smoothing applies to classes only: mixing has already smoothed its probabilities.
    """

    metric_name = "top1"

    def __init__(
        self, backbone: torch.nn.Module, num_classes: int, *, label_smoothing: float = 0.0, eval_protocol: str = ""
    ) -> None:
        super().__init__(backbone, num_classes, eval_protocol)
        self.label_smoothing = label_smoothing

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss (mean over images) and logits [B, K]."""
        logits: Tensor = self.backbone(images)
        wide = at_least_float32(logits)
        if targets.is_floating_point():
            loss = F.cross_entropy(wide, targets.to(wide.dtype))
        else:
            check_targets(targets, self.num_classes)
            loss = F.cross_entropy(wide, targets, label_smoothing=self.label_smoothing)
        return {"loss": loss, "logits": logits}

    def new_meter(self) -> "ClassificationMeter":
        """An empty meter."""
        return ClassificationMeter(self.num_classes)


class ClassificationMeter:
    """Mean cross-entropy and the share of images whose largest logit is their class."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.loss_sum: Tensor | float = 0.0
        self.correct: Tensor | int = 0
        self.images = 0

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch: logits [B, K], classes [B]."""
        check_targets(targets, self.num_classes)
        self.loss_sum = self.loss_sum + cross_entropy_sum(logits, targets)
        self.correct = self.correct + (logits.argmax(dim=1) == targets).sum()
        self.images += len(targets)

    def compute(self) -> dict[str, Any]:
        """Loss and top-1; raises `ValueError` without images."""
        if not self.images:
            raise ValueError("no images were evaluated")
        return {"loss": float(self.loss_sum) / self.images, "metric": int(self.correct) / self.images}


def build_classification(config: RunConfig, splits: Splits) -> ClassificationTask:
    """The task of a run, its backbone freshly initialised."""
    backbone = build_backbone(config.model, num_classes=splits.num_classes)
    return ClassificationTask(
        backbone,
        splits.num_classes,
        label_smoothing=config.training.label_smoothing,
        eval_protocol=splits.record["eval_protocol"],
    )
