"""Object detection and instance masks: COCO's average precision, on the last feature map of any backbone.

B images of H x W pixels, K classes with background 0. A target is `patchscale.data.detection.Target`, one an image.

The loss of an image is the sum of the head's losses with equal weights, each averaged over the image's own anchors,
boxes and masks. That of a batch is the mean over images, in training as in evaluation; the test loss differs in that
augmentation and stochastic depth are off, and that what is drawn for it depends on the picture's number alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from patchscale.config import RunConfig
from patchscale.data.datasets import Splits
from patchscale.data.detection import Target
from patchscale.data.run_lengths import encode_masks
from patchscale.data.seeding import derive_seed
from patchscale.errors import UserError
from patchscale.head_shapes import HeadShape, LinearDetectorShape, MaskRCNNShape, default_head, head_shape
from patchscale.models.drop_path import rows_at_hand
from patchscale.models.heads.linear_detector import LinearDetector
from patchscale.models.heads.mask_rcnn import MaskRCNN
from patchscale.tasks.base import Task, build_backbone
from patchscale.tasks.coco_metric import CocoMetric

MASK_THRESHOLD = 0.5
PASTED_AT_ONCE = 10_000_000
"""Pixels of masks that are laid on a picture at a time."""


class DetectionTask(Task):
    """Losses in training; in evaluation what was found in each image, and the image's loss."""

    metric_name = "box_ap"

    def __init__(
        self, backbone: nn.Module, head: nn.Module, num_classes: int, *, with_masks: bool, eval_protocol: str = ""
    ) -> None:
        super().__init__(backbone, num_classes, eval_protocol)
        self.head = head
        self.with_masks = with_masks

    def forward(self, images: Tensor, targets: list[Target]) -> dict[str, Any]:  # type: ignore[override]
        """`loss`, and as `logits` in evaluation a dictionary an image: boxes, labels, scores, masks, loss."""
        if self.training:
            (draw,) = torch.randint(2**62, (1,)).tolist()  # follows from seed and step
            seeds = [derive_seed(draw, row) for row in rows_at_hand(len(images))]
        else:
            seeds = [derive_seed("test loss", target["number"]) for target in targets]
        feature_map: Tensor = self.backbone.forward_feature_map(images)  # type: ignore[operator]
        if self.training:
            return {"loss": self._losses(feature_map, images, targets, seeds).mean(), "logits": []}
        found, _ = self.head(feature_map, images)
        self.head.train()
        losses = self._losses(feature_map, images, targets, seeds)
        self.head.eval()
        logits = [of_image | {"loss": loss} for of_image, loss in zip(found, losses, strict=True)]
        return {"loss": losses.mean(), "logits": logits}

    def _losses(self, feature_map: Tensor, images: Tensor, targets: list[Target], seeds: Sequence[int]) -> Tensor:
        """[B]"""
        generators = [torch.Generator(feature_map.device).manual_seed(seed) for seed in seeds]
        _, losses = self.head(feature_map, images, [learnable(target) for target in targets], generators)
        return torch.stack([*losses.values()]).sum(dim=0)

    def loss_terms(self, targets: list[Target]) -> Tensor:  # type: ignore[override]
        """Images."""
        device = next(self.parameters()).device
        return torch.full((), len(targets), dtype=torch.int64, device=device)

    def new_meter(self) -> "DetectionMeter":
        """An empty meter."""
        return DetectionMeter(with_masks=self.with_masks)


class DetectionMeter:
    """COCO's numbers in the pixels of the annotated pictures, and the mean of the images' losses."""

    def __init__(self, *, with_masks: bool) -> None:
        self.with_masks = with_masks
        self.coco = CocoMetric(with_masks=with_masks)
        self.loss_sum = 0.0
        self.images = 0

    def update(self, found: list[dict[str, Tensor]], targets: list[Target]) -> None:
        """Count a batch: what was found in each image, and the truth about it."""
        for of_image, target in zip(found, targets, strict=True):
            objects = target["objects"]
            uncut = in_pixels(of_image["boxes"], target["scale"])
            boxes, shown = in_the_picture(of_image["boxes"], target["scale"], objects.size)
            self.coco.add(
                number=target["number"],
                size=objects.size,
                boxes=objects.boxes,
                labels=objects.labels.tolist(),
                masks=objects.masks,
                crowd=objects.crowd.tolist(),
                areas=objects.areas.tolist(),
                found_boxes=boxes.cpu().numpy().astype(np.float64),
                found_labels=of_image["labels"][shown].tolist(),
                found_scores=of_image["scores"][shown].tolist(),
                found_masks=_pasted(of_image["masks"][shown], uncut[shown], objects.size) if self.with_masks else None,
            )
            self.loss_sum += float(of_image["loss"])
            self.images += 1

    def merge(self, other: "DetectionMeter") -> None:
        """Count what another meter has counted."""
        self.coco.merge(other.coco)
        self.loss_sum += other.loss_sum
        self.images += other.images

    def compute(self) -> dict[str, Any]:
        """Loss, box AP as the metric (0 where there is no object), and the other numbers of COCO by name."""
        if not self.images:
            raise ValueError("no images were evaluated")
        numbers = self.coco.compute()
        metric = numbers.pop("box_ap")
        return {"loss": self.loss_sum / self.images, "metric": metric or 0.0, **numbers}


def learnable(target: Target) -> Target:
    """What a head is trained on: boxes, labels and masks, but of no crowd."""
    kept = ~target["crowd"]
    return {name: target[name][kept] for name in ("boxes", "labels", "masks")}


def in_pixels(boxes: Tensor, scale: tuple[float, float]) -> Tensor:
    """Boxes [m, 4] of the canvas in pixels of the picture, also what lies beside it."""
    across, down = scale
    return boxes / boxes.new_tensor([across, down, across, down])


def in_the_picture(boxes: Tensor, scale: tuple[float, float], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes [m, 4] of the canvas in pixels of the picture, cut at its border, and which of n they are.

    Left out is what lies beside the picture altogether.
    """
    height, width = size
    boxes = in_pixels(boxes, scale).clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
    shown = torch.where((boxes[:, 2:] > boxes[:, :2]).all(dim=1))[0]
    return boxes[shown], shown


def _pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Run lengths of masks [n, 1, 28, 28] laid on a picture at their boxes, which may reach beyond it."""
    encoded: list[dict[str, Any]] = []
    at_once = max(1, PASTED_AT_ONCE // (size[0] * size[1]))
    for first in range(0, len(masks), at_once):
        some = slice(first, first + at_once)
        pasted = paste_masks_in_image(masks[some], boxes[some], size)[:, 0]
        encoded += encode_masks((pasted >= MASK_THRESHOLD).to(torch.uint8).cpu().numpy())
    return encoded


def build_head(shape: HeadShape, *, embed_dim: int, patch_size: int, num_classes: int) -> nn.Module:
    """The detector of this shape, freshly initialised."""
    sizes = {"embed_dim": embed_dim, "patch_size": patch_size, "num_classes": num_classes}
    if isinstance(shape, LinearDetectorShape):
        return LinearDetector(detections=shape.detections, **sizes)
    assert isinstance(shape, MaskRCNNShape)
    return MaskRCNN(shape, **sizes)


def build_detection(config: RunConfig, splits: Splits) -> DetectionTask:
    """The task of a run, backbone and head freshly initialised; raises `UserError` for masks that the data lack."""
    name = config.head or default_head("detection")
    shape = head_shape(name, task="detection")
    with_masks = isinstance(shape, MaskRCNNShape)
    for part in splits.record.get("parts_without_masks", ()):
        if with_masks:
            what = "training" if part == "train" else f"the part {part}"
            raise UserError(
                f"data set {splits.record['root']}: no object for {what} has a mask, and head={name!r} learns masks, "
                "which are measured; use head=linear"
            )
    backbone = build_backbone(config.model, num_classes=0)
    head = build_head(
        shape,
        embed_dim=int(backbone.num_features),  # type: ignore[arg-type]
        patch_size=config.model.patch_size,
        num_classes=splits.num_classes,
    )
    kinds = "boxes and masks" if with_masks else "boxes"
    assert isinstance(shape, LinearDetectorShape | MaskRCNNShape)  # the others are not for detection
    protocol = f"{splits.record['eval_protocol']}; {name}, COCO AP of {kinds}, at most {shape.detections} an image"
    return DetectionTask(backbone, head, splits.num_classes, with_masks=with_masks, eval_protocol=protocol)
