"""Semantic segmentation: a linear layer on the tokens (arXiv 2502.03738, Table 2), or UPerNet on maps of four blocks.

B images of H x W pixels, D features, K classes, p patch size.
"""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patchscale.config import RunConfig
from patchscale.data.datasets import Splits
from patchscale.data.windows import View, WindowTarget
from patchscale.head_shapes import UperNetShape, default_head, head_shape, tapped_blocks
from patchscale.models.adventurer import Adventurer
from patchscale.models.heads.upernet import UperNet
from patchscale.tasks.base import Task, at_least_float32, build_backbone, check_targets, cross_entropy_sum

MEASURED_AT_ONCE = 50_000_000
"""Logits of a picture's own size that are copied at a time: of 150 classes a picture of 0.3 megapixels."""


class SegmentationTask(Task):
    """Logits [B, K, h, w] of the head, enlarged bilinearly to [B, K, H, W].

    Pixels labelled `ignore_index` count for nothing, neither in the loss nor in the metric.
    """

    metric_name = "mIoU"

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        num_features: int,
        head: nn.Module | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        eval_protocol: str = "",
    ) -> None:
        super().__init__(backbone, num_classes, eval_protocol)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.head = head or linear_head(num_features, num_classes)
        self.tapped = tapped_blocks(_depth(backbone)) if isinstance(head, UperNet) else None

    def forward(self, images: Tensor, targets: Any) -> dict[str, Any]:
        """Loss (mean over labelled pixels, 0 if there is none) and logits [B, K, H, W] for label maps [B, H, W].

        Given the windows of B pictures and a `WindowTarget` for each there is no loss; `logits` has a list a picture,
        of `ViewLogits`.
        """
        if isinstance(targets, list):
            return {"logits": self._of_windows(images, targets)}
        logits = enlarged(self._coarse(images), targets.shape[-2:])
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

    def _coarse(self, images: Tensor) -> Tensor:
        """[B, K, h, w]; float32 before enlarging, so that bf16 autocast does not round between pixels."""
        if self.tapped is not None:
            logits: Tensor = self.head(self.backbone.forward_feature_maps(images, self.tapped))  # type: ignore[operator]
        else:
            features: Tensor = self.backbone.forward_feature_map(images)  # type: ignore[operator]
            logits = self.head(features.movedim(1, -1)).movedim(-1, 1)
        return at_least_float32(logits)

    def _of_windows(self, images: Tensor, targets: list[WindowTarget]) -> list[list["ViewLogits"]]:
        """As many windows pass the model at a time as there are pictures, which is what memory was planned for."""
        coarse = torch.cat([self._coarse(some) for some in images.split(len(targets))])
        of_views = iter(coarse.split([len(view.corners) for target in targets for view in target["views"]]))
        window = (images.shape[-2], images.shape[-1])
        return [[ViewLogits(next(of_views), view, window) for view in target["views"]] for target in targets]

    def loss_terms(self, targets: Tensor) -> Tensor:
        """Labelled pixels."""
        return (targets != self._ignore_index).sum()

    @property
    def _ignore_index(self) -> int:
        return -100 if self.ignore_index is None else self.ignore_index  # torch's own default, which no label has

    def new_meter(self) -> "SegmentationMeter":
        """An empty meter."""
        return SegmentationMeter(self.num_classes, self.ignore_index)


class ViewLogits(NamedTuple):
    """A view as the head tells it; enlarged one by one, as at full size all views of a picture may take gigabytes."""

    coarse: Tensor
    """[n, K, h, w], of its windows."""
    view: View
    window: tuple[int, int]
    """Height and width in pixels."""

    def at(self, size: Sequence[int]) -> Tensor:
        """[1, K, *size]"""
        return enlarged(merged(self.coarse, self.view, self.window)[None], size)


class SegmentationMeter:
    """Mean cross-entropy over labelled pixels, and intersection over union from the data set's confusion matrix."""

    def __init__(self, num_classes: int, ignore_index: int | None = None) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.loss_sum: Tensor | float = 0.0
        self.confusion: Tensor = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        """Pixels by true class (row) and predicted class (column)."""

    def update(self, logits: Any, targets: Any) -> None:
        """Count a batch: logits [B, K, H, W] and label maps [B, H, W], or of each picture its views and its target.

        Views are enlarged to the picture's own label map; of several, probabilities are averaged.
        """
        if isinstance(targets, list):
            for views, target in zip(logits, targets, strict=True):
                label_map = target["label_map"]
                of_picture = averaged(view.at(label_map.shape) for view in views)
                rows = max(1, MEASURED_AT_ONCE // (prod(of_picture.shape) // label_map.shape[0]))
                strips = zip(of_picture.split(rows, dim=2), label_map[None].split(rows, dim=1), strict=True)
                for strip, labels in strips:
                    self.update(strip, labels)
            return
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
        """Loss, mIoU (mean over classes that occur in label or prediction), pixel and mean class accuracy, by class.

        A class that never occurs has IoU None; one without labelled pixels has no accuracy. Raises `ValueError` without
        labelled pixels.
        """
        confusion = self.confusion.cpu()
        pixels = int(confusion.sum())
        if not pixels:
            raise ValueError("no labelled pixels were evaluated")
        hits, labelled = confusion.diagonal(), confusion.sum(dim=1)
        class_iou = _ratios(hits, confusion.sum(dim=0) + labelled - hits)
        class_accuracy = _ratios(hits, labelled)
        return {
            "loss": float(self.loss_sum) / pixels,
            "metric": _mean_known(class_iou),
            "pixel_accuracy": int(hits.sum()) / pixels,
            "mean_accuracy": _mean_known(class_accuracy),
            "class_iou": class_iou,
            "class_accuracy": class_accuracy,
        }


def _ratios(numbers: Tensor, of: Tensor) -> list[float | None]:
    return [part / whole if whole else None for part, whole in zip(numbers.tolist(), of.tolist(), strict=True)]


def _mean_known(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def enlarged(logits: Tensor, size: Sequence[int]) -> Tensor:
    """[B, K, h, w] -> [B, K, *size], bilinearly."""
    if logits.shape[-2:] == torch.Size(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def merged(coarse: Tensor, view: View, window: Sequence[int]) -> Tensor:
    """Logits [n, K, h, w] of a view's windows -> [K, *view.size]; where windows overlap, their mean."""
    height, width = view.size
    total = coarse.new_zeros(coarse.shape[1], height, width)
    times = coarse.new_zeros(height, width)
    for of_window, (top, left) in zip(coarse, view.corners, strict=True):
        place = (slice(top, min(top + window[0], height)), slice(left, min(left + window[1], width)))
        inside = times[place].shape  # less than the window where the picture is smaller
        total[:, *place] += enlarged(of_window[None], window)[0, :, : inside[0], : inside[1]]
        times[place] += 1
    mean = total / times
    return mean.flip(-1) if view.flipped else mean


def averaged(views: Iterable[Tensor]) -> Tensor:
    """Logits of one view as they are; of several [1, K, H, W] the logarithm of their mean probabilities.

    One view is held at a time.
    """
    rest = iter(views)
    mean, count = next(rest), 1
    for view in rest:
        if count == 1:
            mean = mean.softmax(dim=1)
        mean += view.softmax(dim=1)
        count += 1
        del view  # before the next one is made
    return mean if count == 1 else mean.div_(count).clamp_(min=torch.finfo(mean.dtype).tiny).log_()


def _pixels(logits: Tensor) -> Tensor:
    """[B, K, H, W] -> [B * H * W, K]."""
    return logits.movedim(1, -1).flatten(0, -2)


def _depth(backbone: nn.Module) -> int:
    blocks = backbone.layers if isinstance(backbone, Adventurer) else backbone.blocks
    return len(blocks)  # type: ignore[arg-type]


def linear_head(embed_dim: int, num_classes: int) -> nn.Linear:
    """A layer for the tokens, freshly initialised."""
    head = nn.Linear(embed_dim, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


def build_segmentation(config: RunConfig, splits: Splits) -> SegmentationTask:
    """The task of a run, backbone and head freshly initialised."""
    name = config.head or default_head("segmentation")
    shape = head_shape(name, task="segmentation")
    backbone = build_backbone(config.model, num_classes=0)
    num_features, classes = int(backbone.num_features), splits.num_classes  # type: ignore[arg-type]
    head: nn.Module = linear_head(num_features, classes)
    if isinstance(shape, UperNetShape):
        head = UperNet(shape, embed_dim=num_features, patch_size=config.model.patch_size, num_classes=classes)
    return SegmentationTask(
        backbone,
        classes,
        num_features=num_features,
        head=head,
        ignore_index=splits.ignore_index,
        label_smoothing=config.training.label_smoothing,
        eval_protocol=f"{splits.record['eval_protocol']}; {name} head, bilinear logits",
    )
