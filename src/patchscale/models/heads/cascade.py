"""Cascade R-CNN (arXiv 1906.09756): boxes pass several stages, each trained on better ones than the stage before.

N boxes of all images together, K classes with background 0.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import boxes as box_ops

IOU_THRESHOLDS = (0.5, 0.6, 0.7)
BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
"""Factors of the regression targets, which shrink from stage to stage."""
SMOOTH_L1_BETA = 1 / 9
"""As in torchvision's single stage."""


class CascadeRoIHeads(RoIHeads):
    """torchvision's heads with several box stages; boxes are not regressed for each class, and there is one mask head.

    A stage takes all boxes of the stage before, as moved there. Its objects are those boxes that overlap one by its own
    threshold. At inference the stages' class probabilities are averaged, and the last stage's boxes taken.
    """

    def __init__(self, *, box_heads: Sequence[nn.Module], box_predictors: Sequence[nn.Module], **options: Any) -> None:
        super().__init__(
            box_head=None,
            box_predictor=None,
            fg_iou_thresh=IOU_THRESHOLDS[0],
            bg_iou_thresh=IOU_THRESHOLDS[0],
            bbox_reg_weights=BOX_WEIGHTS[0],
            **options,
        )
        self.box_heads = nn.ModuleList(box_heads)
        self.box_predictors = nn.ModuleList(box_predictors)
        self.coders = [BoxCoder(weights) for weights in BOX_WEIGHTS]
        self.matchers = [Matcher(iou, iou, allow_low_quality_matches=False) for iou in IOU_THRESHOLDS]

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of each image (evaluation), or losses by name (training)."""
        if self.training:
            assert targets is not None
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detections(features, proposals, image_shapes), {}

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        boxes, matched, labels, _ = self.select_training_samples(list(proposals), targets)
        mask_loss = self._mask_loss(features, boxes, matched, labels, image_shapes, targets)
        losses = {"loss_mask": mask_loss}
        objects = [target["boxes"] for target in targets]
        classes = [target["labels"] for target in targets]
        for stage, coder in enumerate(self.coders):
            if stage:
                self.proposal_matcher = self.matchers[stage]
                matched, labels = self.assign_targets_to_proposals(boxes, objects, classes)
                self.proposal_matcher = self.matchers[0]
            logits, deltas = self._stage(stage, features, boxes, image_shapes)
            goals = coder.encode([_of(own, found) for own, found in zip(objects, matched, strict=True)], boxes)
            classification, regression = _box_losses(logits, deltas, torch.cat(labels), torch.cat(goals))
            losses |= {f"loss_classifier_{stage + 1}": classification, f"loss_box_reg_{stage + 1}": regression}
            boxes = _moved(coder, deltas.detach(), boxes, image_shapes)
        return losses

    def _stage(
        self, stage: int, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Logits [N, K] and deltas [N, 4] of a stage."""
        pooled = self.box_roi_pool(features, boxes, image_shapes)
        if self.training:
            pooled = _scaled_gradient(pooled, 1 / len(self.coders))  # the stages' gradients add up in the backbone
        logits, deltas = self.box_predictors[stage](self.box_heads[stage](pooled))
        return logits, deltas

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> Tensor:
        """Of the boxes that hit an object in the first stage."""
        hits = [torch.where(of_image > 0)[0] for of_image in labels]
        of_objects = [box[hit] for box, hit in zip(boxes, hits, strict=True)]
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, of_objects, image_shapes)))
        loss: Tensor = maskrcnn_loss(
            logits,
            of_objects,
            [target["masks"] for target in targets],
            [target["labels"] for target in targets],
            [found[hit] for found, hit in zip(matched, hits, strict=True)],
        )
        return loss

    def _detections(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        probabilities = []
        for stage, coder in enumerate(self.coders):
            logits, deltas = self._stage(stage, features, boxes, image_shapes)
            probabilities.append(logits.float().softmax(-1))
            boxes = _moved(coder, deltas, boxes, image_shapes)
        found = self._kept(torch.stack(probabilities).mean(0), boxes)
        pooled = self.mask_roi_pool(features, [image["boxes"] for image in found], image_shapes)
        masks = maskrcnn_inference(self.mask_predictor(self.mask_head(pooled)), [image["labels"] for image in found])
        return [image | {"masks": of_image} for image, of_image in zip(found, masks, strict=True)]

    def _kept(self, probabilities: Tensor, boxes: list[Tensor]) -> list[dict[str, Tensor]]:
        """Boxes, labels and scores of each image after suppression by class, the best first."""
        kept = []
        for own, of_image in zip(boxes, probabilities.split([len(own) for own in boxes]), strict=True):
            where, classes = torch.where(of_image[:, 1:] > self.score_thresh)
            candidates, scores, labels = own[where], of_image[where, classes + 1], classes + 1
            sized = box_ops.remove_small_boxes(candidates, min_size=1e-2)
            candidates, scores, labels = candidates[sized], scores[sized], labels[sized]
            best = box_ops.batched_nms(candidates, scores, labels, self.nms_thresh)[: self.detections_per_img]
            kept.append({"boxes": candidates[best], "labels": labels[best], "scores": scores[best]})
        return kept


def _of(objects: Tensor, matched: Tensor) -> Tensor:
    """The object of each box; zeros in an image without any."""
    return objects[matched] if len(objects) else objects.new_zeros(len(matched), 4)


def _moved(coder: BoxCoder, deltas: Tensor, boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> list[Tensor]:
    """Boxes as a stage moves them, cut at the border of their image."""
    moved = coder.decode(deltas, boxes).reshape(-1, 4).split([len(own) for own in boxes])
    return [box_ops.clip_boxes_to_image(own, size) for own, size in zip(moved, image_shapes, strict=True)]


def _box_losses(logits: Tensor, deltas: Tensor, labels: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy over all boxes, and smooth L1 of those that hit an object; both means over all boxes."""
    objects = torch.where(labels > 0)[0]
    regression = F.smooth_l1_loss(deltas[objects], goals[objects], beta=SMOOTH_L1_BETA, reduction="sum")
    return F.cross_entropy(logits, labels), regression / max(1, len(labels))


def _scaled_gradient(values: Tensor, factor: float) -> Tensor:
    """The same values, whose gradient is multiplied by `factor`."""
    return values * factor + (values * (1 - factor)).detach()
