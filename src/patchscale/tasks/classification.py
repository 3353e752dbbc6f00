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

    Label smoothing applies to classes only: mixing has already smoothed its probabilities. `loss` is "cross_entropy",
    or "bce", the mean over images and classes of the cross-entropy of a sigmoid for each class.
    """

    metric_name = "top1"

    def __init__(
        self,
        backbone: torch.nn.Module,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        loss: str = "cross_entropy",
        eval_protocol: str = "",
    ) -> None:
        super().__init__(backbone, num_classes, eval_protocol)
        self.label_smoothing = label_smoothing
        self.loss = loss

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss (mean over images) and logits [B, K]."""
        logits: Tensor = self.backbone(images)
        wide = at_least_float32(logits)
        if not targets.is_floating_point():
            check_targets(targets, self.num_classes)
        if self.loss == "bce":
            loss = F.binary_cross_entropy_with_logits(wide, self._yes_or_no(targets).to(wide.dtype))
        elif targets.is_floating_point():
            loss = F.cross_entropy(wide, targets.to(wide.dtype))
        else:
            loss = F.cross_entropy(wide, targets, label_smoothing=self.label_smoothing)
        return {"loss": loss, "logits": logits}

    def _yes_or_no(self, targets: Tensor) -> Tensor:
        """[B, K], 1 for every class that an image has or has been mixed with, whatever its share, as in DeiT III."""
        return targets > 0 if targets.is_floating_point() else F.one_hot(targets, self.num_classes)

    def new_meter(self) -> "ClassificationMeter":
        """An empty meter."""
        return ClassificationMeter(self.num_classes)


class ClassificationMeter:
    """Mean cross-entropy, and the share of images whose class is the largest logit (top-1) or in the largest five."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.loss_sum: Tensor | float = 0.0
        self.in_top5: Tensor | int = 0
        self.correct: Tensor | int = 0
        """Images by class whose class was found, [K]."""
        self.images: Tensor | int = 0
        """Images by class, [K]."""

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch: logits [B, K], classes [B]."""
        check_targets(targets, self.num_classes)
        self.loss_sum = self.loss_sum + cross_entropy_sum(logits, targets)
        hits = logits.argmax(dim=1) == targets
        self.correct = self.correct + torch.bincount(targets[hits], minlength=self.num_classes)
        self.images = self.images + torch.bincount(targets, minlength=self.num_classes)
        if self.num_classes > 5:
            self.in_top5 = self.in_top5 + (logits.topk(5, dim=1).indices == targets[:, None]).sum()

    def merge(self, other: "ClassificationMeter") -> None:
        """Count what another meter has counted."""
        self.loss_sum = self.loss_sum + other.loss_sum
        self.in_top5 = self.in_top5 + other.in_top5
        self.correct = self.correct + other.correct
        self.images = self.images + other.images

    def compute(self) -> dict[str, Any]:
        """Loss, top-1, top-5 (with more than five classes), and top-1 by class, None for a class without images.

        Raises `ValueError` without images.
        """
        images = torch.as_tensor(self.images)
        total = int(images.sum())
        if not total:
            raise ValueError("no images were evaluated")
        by_class = list(zip(torch.as_tensor(self.correct).tolist(), images.tolist(), strict=True))
        return {
            "loss": float(self.loss_sum) / total,
            "metric": sum(correct for correct, _ in by_class) / total,
            **({"top5": int(self.in_top5) / total} if self.num_classes > 5 else {}),
            "class_top1": [correct / count if count else None for correct, count in by_class],
        }


def build_classification(config: RunConfig, splits: Splits) -> ClassificationTask:
    """The task of a run, its backbone freshly initialised."""
    backbone = build_backbone(config.model, num_classes=splits.num_classes)
    return ClassificationTask(
        backbone,
        splits.num_classes,
        label_smoothing=config.training.label_smoothing,
        loss=config.training.loss,
        eval_protocol=splits.record["eval_protocol"],
    )
