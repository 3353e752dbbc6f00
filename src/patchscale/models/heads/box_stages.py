"""The second half of Mask R-CNN (arXiv 1703.06870) and of Cascade R-CNN (arXiv 1906.09756): proposals become objects.

Boxes pass one or several stages, each trained on better ones than the stage before. N boxes of all images together, B
images, K classes with background 0.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, project_masks_on_boxes
from torchvision.ops import boxes as box_ops

from patchscale.models.heads.layers import at_least_float32
from patchscale.models.heads.sampling import Generators, image_means, sample

IOU_THRESHOLDS = (0.5, 0.6, 0.7)
BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
"""Factors of the regression targets, which shrink from stage to stage."""
SMOOTH_L1_BETA = 1 / 9
"""As in torchvision's single stage."""
MIN_SIDE = 1e-2
"""Pixels; smaller boxes are no detections, as in torchvision."""
MASKS_TOGETHER = 16
"""oneDNN keeps a program for every batch size that a convolution meets: without rounding up, the memory of a run with
small heads grew from 0.9 to 2.3 GB in 280 steps."""

Targets = list[dict[str, Tensor]]


class BoxStages(RoIHeads):
    """torchvision's heads with one or more box stages, draws and losses by image, and one mask head.

    A stage takes all boxes of the stage before, as moved there. Its objects are those boxes that overlap one by its own
    threshold. At inference the stages' class probabilities are averaged, and the last stage's boxes taken. Boxes may be
    moved for each class (`box_predictors` tell 4 K numbers) if there is one stage, else for all classes alike.
    """

    def __init__(
        self,
        *,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[nn.Module],
        boxes_trained: int,
        positive_fraction: float,
        **options: Any,
    ) -> None:
        super().__init__(
            box_head=None,
            box_predictor=None,
            fg_iou_thresh=IOU_THRESHOLDS[0],
            bg_iou_thresh=IOU_THRESHOLDS[0],
            bbox_reg_weights=BOX_WEIGHTS[0],
            batch_size_per_image=boxes_trained,
            positive_fraction=positive_fraction,
            **options,
        )
        self.box_heads = nn.ModuleList(box_heads)
        self.box_predictors = nn.ModuleList(box_predictors)
        self.boxes_trained = boxes_trained
        self.positive_fraction = positive_fraction
        stages = len(self.box_heads)
        self.coders = [BoxCoder(weights) for weights in BOX_WEIGHTS[:stages]]
        self.matchers = [Matcher(iou, iou, allow_low_quality_matches=False) for iou in IOU_THRESHOLDS[:stages]]

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None,
        generators: Generators,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of each image (evaluation), or losses [B] by name (training)."""
        if self.training:
            assert targets is not None
            return [], self._losses(features, proposals, image_shapes, targets, generators)
        return self._detections(features, proposals, image_shapes), {}

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets,
        generators: Generators,
    ) -> dict[str, Tensor]:
        objects = [target["boxes"].to(own.dtype) for target, own in zip(targets, proposals, strict=True)]
        classes = [target["labels"] for target in targets]
        boxes, matched, labels = self._sampled(proposals, objects, classes, generators)
        losses = {"loss_mask": self._mask_losses(features, boxes, matched, labels, image_shapes, targets)}
        for stage, coder in enumerate(self.coders):
            if stage:
                matched, labels = self._matched(stage, boxes, objects, classes)
            logits, deltas = self._stage(stage, features, boxes, image_shapes)
            goals = coder.encode([_of(own, found) for own, found in zip(objects, matched, strict=True)], boxes)
            classification, regression = _box_losses(logits, deltas, labels, torch.cat(goals))
            name = f"_{stage + 1}" if len(self.coders) > 1 else ""
            losses |= {f"loss_classifier{name}": classification, f"loss_box_reg{name}": regression}
            if stage + 1 < len(self.coders):
                boxes = _moved(coder, deltas.detach()[:, 0], boxes, image_shapes)
        return losses

    @torch.no_grad()
    def _sampled(
        self, proposals: list[Tensor], objects: list[Tensor], classes: list[Tensor], generators: Generators
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Proposals and the objects themselves, drawn as `sample` does; with number and class of each one's object."""
        boxes = [torch.cat([own, of_image]) for own, of_image in zip(proposals, objects, strict=True)]
        matched, labels = self._matched(0, boxes, objects, classes)
        for image, generator in enumerate(generators):
            chosen = torch.cat(sample(labels[image], self.boxes_trained, self.positive_fraction, generator))
            boxes[image], matched[image], labels[image] = (each[image][chosen] for each in (boxes, matched, labels))
        return boxes, matched, labels

    def _matched(
        self, stage: int, boxes: list[Tensor], objects: list[Tensor], classes: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Of each box the object that it overlaps most, and the class by this stage's threshold."""
        self.proposal_matcher = self.matchers[stage]
        matched, labels = self.assign_targets_to_proposals(boxes, objects, classes)
        return matched, labels

    def _stage(
        self, stage: int, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Logits [N, K] and deltas [N, 1 or K, 4] of a stage."""
        pooled = self.box_roi_pool(features, boxes, image_shapes)
        if self.training and len(self.coders) > 1:
            pooled = _scaled_gradient(pooled, 1 / len(self.coders))  # the stages' gradients add up in the backbone
        logits, deltas = self.box_predictors[stage](self.box_heads[stage](pooled))
        return at_least_float32(logits), at_least_float32(deltas).unflatten(1, (-1, 4))

    def _mask_losses(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets,
    ) -> Tensor:
        """[B]: mean over pixels and over the boxes that hit an object in the first stage."""
        hits = [torch.where(of_image > 0)[0] for of_image in labels]
        of_objects = [box[hit] for box, hit in zip(boxes, hits, strict=True)]
        logits = self._mask_logits(features, of_objects, image_shapes)
        side = logits.shape[-1]
        goals = [
            project_masks_on_boxes(target["masks"], own, found[hit], side).to(logits.dtype)
            for target, own, found, hit in zip(targets, of_objects, matched, hits, strict=True)
            if len(hit)
        ]
        counts = [len(hit) for hit in hits]
        if not goals:
            return image_means(logits.flatten(1).sum(1), counts)  # zeros, through which gradients of zero pass
        classes = torch.cat([of_image[hit] for of_image, hit in zip(labels, hits, strict=True)])
        chosen = logits[torch.arange(len(classes), device=classes.device), classes]
        losses = F.binary_cross_entropy_with_logits(chosen, torch.cat(goals), reduction="none")
        return image_means(losses.flatten(1).mean(1), counts)

    def _mask_logits(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """[M, K, 28, 28] of M boxes; empty ones fill up to a multiple of `MASKS_TOGETHER`."""
        pooled = self.mask_roi_pool(features, boxes, image_shapes)
        filled = F.pad(pooled, (0, 0, 0, 0, 0, 0, 0, -len(pooled) % MASKS_TOGETHER))
        return at_least_float32(self.mask_predictor(self.mask_head(filled))[: len(pooled)])

    def _detections(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        probabilities = []
        for stage, coder in enumerate(self.coders):
            logits, deltas = self._stage(stage, features, boxes, image_shapes)
            probabilities.append(logits.softmax(-1))
            if stage + 1 < len(self.coders):
                boxes = _moved(coder, deltas[:, 0], boxes, image_shapes)
        counts = [len(own) for own in boxes]
        by_class = [
            _moved(self.coders[-1], each, boxes, image_shapes) for each in deltas.unbind(1)
        ]  # one for all classes, or for each
        own_boxes = [torch.stack(of_image, dim=1) for of_image in zip(*by_class, strict=True)]
        found = self._kept(torch.stack(probabilities).mean(0).split(counts), own_boxes)
        logits = self._mask_logits(features, [image["boxes"] for image in found], image_shapes)
        masks = maskrcnn_inference(logits, [image["labels"] for image in found])
        return [image | {"masks": of_image} for image, of_image in zip(found, masks, strict=True)]

    def _kept(self, probabilities: Sequence[Tensor], boxes: list[Tensor]) -> list[dict[str, Tensor]]:
        """Boxes, labels and scores of each image after suppression by class, the best first."""
        kept = []
        for own, of_image in zip(boxes, probabilities, strict=True):
            where, classes = torch.where(of_image[:, 1:] > self.score_thresh)
            labels = classes + 1
            candidates = own[where, labels if own.shape[1] > 1 else 0]
            scores = of_image[where, labels]
            sized = box_ops.remove_small_boxes(candidates, min_size=MIN_SIDE)
            candidates, scores, labels = candidates[sized], scores[sized], labels[sized]
            best = box_ops.batched_nms(candidates, scores, labels, self.nms_thresh)[: self.detections_per_img]
            kept.append({"boxes": candidates[best], "labels": labels[best], "scores": scores[best]})
        return kept


def _of(objects: Tensor, matched: Tensor) -> Tensor:
    """The object of each box; zeros in an image without any."""
    return objects[matched] if len(objects) else objects.new_zeros(len(matched), 4)


def _moved(coder: BoxCoder, deltas: Tensor, boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> list[Tensor]:
    """Boxes as `deltas` [N, 4] move them, cut at the border of their image."""
    moved = coder.decode(deltas, boxes).reshape(-1, 4).split([len(own) for own in boxes])
    return [box_ops.clip_boxes_to_image(own, size) for own, size in zip(moved, image_shapes, strict=True)]


def _box_losses(logits: Tensor, deltas: Tensor, labels: list[Tensor], goals: Tensor) -> tuple[Tensor, Tensor]:
    """[B] each: cross-entropy over all boxes, and smooth L1 of those that hit an object; both means over all boxes."""
    counts, classes = [len(of_image) for of_image in labels], torch.cat(labels)
    objects = torch.where(classes > 0)[0]
    found = deltas[objects, classes[objects] if deltas.shape[1] > 1 else 0]
    regression = F.smooth_l1_loss(found, goals[objects], beta=SMOOTH_L1_BETA, reduction="none").sum(1)
    by_box = regression.new_zeros(len(classes)).index_put((objects,), regression)
    return image_means(F.cross_entropy(logits, classes, reduction="none"), counts), image_means(by_box, counts)


def _scaled_gradient(values: Tensor, factor: float) -> Tensor:
    """The same values, whose gradient is multiplied by `factor`."""
    return values * factor + (values * (1 - factor)).detach()
