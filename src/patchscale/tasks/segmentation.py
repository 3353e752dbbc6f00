"""Semantic segmentation without a decoder: one linear layer on the tokens (arXiv 2502.03738, Table 2).

B images of H x W pixels, D features, K classes, p patch size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patchscale.config import RunConfig
from patchscale.data.datasets import Splits
from patchscale.tasks.base import Task, at_least_float32, build_backbone, check_targets, cross_entropy_sum


class SegmentationTask(Task):
    """Logits [B, K, H/p, W/p] from the normalised tokens, enlarged bilinearly to [B, K, H, W].

    Pixels labelled `ignore_index` count for nothing, neither in the loss nor in the metric.
    """

    metric_name = "mIoU"

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        num_features: int,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        eval_protocol: str = "",
    ) -> None:
        super().__init__(backbone, num_classes, eval_protocol)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.head = nn.Linear(num_features, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss (mean over labelled pixels, 0 if there is none) and logits [B, K, H, W] for label maps [B, H, W]."""
        features: Tensor = self.backbone.forward_feature_map(images)  # type: ignore[operator]
        # float32 before enlarging, so that bf16 autocast does not round between pixels
        logits = at_least_float32(self.head(features.movedim(1, -1)).movedim(-1, 1))
        if logits.shape[-2:] != targets.shape[-2:]:
            logits = F.interpolate(logits, size=targets.shape[-2:], mode="bilinear", align_corners=False)
        check_targets(targets, self.num_classes, self.ignore_index)
        # Pixels in a row: the two-dimensional loss has no deterministic CUDA kernel, this one has.
        loss_sum = F.cross_entropy(
            _pixels(logits),
            targets.flatten(),
            ignore_index=self._ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        return {"loss": loss_sum / self.loss_terms(targets).clamp(min=1), "logits": logits}

    def loss_terms(self, targets: Tensor) -> Tensor:
        """Labelled pixels."""
        return (targets != self._ignore_index).sum()

    @property
    def _ignore_index(self) -> int:
        return -100 if self.ignore_index is None else self.ignore_index  # torch's own default, which no label has

    def new_meter(self) -> "SegmentationMeter":
        """An empty meter."""
        return SegmentationMeter(self.num_classes, self.ignore_index)


class SegmentationMeter:
    """Mean cross-entropy over labelled pixels, and intersection over union from the data set's confusion matrix."""

    def __init__(self, num_classes: int, ignore_index: int | None = None) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.loss_sum: Tensor | float = 0.0
        self.confusion: Tensor = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        """Pixels by true class (row) and predicted class (column)."""

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch: logits [B, K, H, W], label maps [B, H, W]."""
        check_targets(targets, self.num_classes, self.ignore_index)
        self.loss_sum = self.loss_sum + cross_entropy_sum(_pixels(logits), targets.flatten(), self.ignore_index)
        predicted, true = logits.argmax(dim=1).flatten(), targets.flatten()
        if self.ignore_index is not None:
            labelled = true != self.ignore_index
            predicted, true = predicted[labelled], true[labelled]
        pairs = torch.bincount(true * self.num_classes + predicted, minlength=self.num_classes**2)
        self.confusion = self.confusion.to(pairs.device) + pairs.view(self.num_classes, self.num_classes)

    def merge(self, other: "SegmentationMeter") -> None:
        """Count what another meter has counted."""
        self.loss_sum = self.loss_sum + other.loss_sum
        self.confusion = self.confusion + other.confusion

    def compute(self) -> dict[str, Any]:
        """Loss, mIoU (mean over classes that occur in label or prediction), pixel accuracy, IoU by class.

        A class that never occurs has IoU None. Raises `ValueError` without labelled pixels.
        """
        confusion = self.confusion.cpu()
        pixels = int(confusion.sum())
        if not pixels:
            raise ValueError("no labelled pixels were evaluated")
        hits = confusion.diagonal()
        unions = confusion.sum(dim=0) + confusion.sum(dim=1) - hits
        class_iou = [hit / union if union else None for hit, union in zip(hits.tolist(), unions.tolist(), strict=True)]
        occurring = [iou for iou in class_iou if iou is not None]
        return {
            "loss": float(self.loss_sum) / pixels,
            "metric": sum(occurring) / len(occurring),
            "pixel_accuracy": int(hits.sum()) / pixels,
            "class_iou": class_iou,
        }


def _pixels(logits: Tensor) -> Tensor:
    """[B, K, H, W] -> [B * H * W, K]."""
    return logits.movedim(1, -1).flatten(0, -2)


def build_segmentation(config: RunConfig, splits: Splits) -> SegmentationTask:
    """The task of a run, backbone and head freshly initialised."""
    backbone = build_backbone(config.model, num_classes=0)
    return SegmentationTask(
        backbone,
        splits.num_classes,
        num_features=int(backbone.num_features),  # type: ignore[arg-type]
        ignore_index=splits.ignore_index,
        label_smoothing=config.training.label_smoothing,
        eval_protocol=f"{splits.record['eval_protocol']}; linear head, bilinear logits",
    )
