"""Mask R-CNN and Cascade Mask R-CNN on the simple feature pyramid of a plain backbone, at every patch size.

`patchscale.head_shapes.MaskRCNNShape` says of what they are made. Anchors, proposals, boxes, masks are torchvision's;
what is drawn and how losses are averaged is by image (`sampling.py`).
B images, D features of the backbone, C channels of the pyramid, p patch size, K classes with background 0.
"""

from collections import OrderedDict
from typing import Any

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead

from patchscale.head_shapes import MaskRCNNShape, detection_levels
from patchscale.models.heads.box_stages import BoxStages
from patchscale.models.heads.boxes import ASPECT_RATIOS, BoxPooling, StrideAnchors
from patchscale.models.heads.layers import at_least_float32
from patchscale.models.heads.proposals import Proposals
from patchscale.models.heads.pyramid import rescale
from patchscale.models.heads.sampling import Generators

SCORE_THRESHOLD = 0.05
NMS_IOU = 0.5
"""Boxes of a class that overlap a better one by more are dropped."""


class MaskRCNN(nn.Module):
    """From a map of the backbone [B, D, H/p, W/p] to losses (training) or detections (evaluation)."""

    def __init__(self, shape: MaskRCNNShape, *, embed_dim: int, patch_size: int, num_classes: int) -> None:
        super().__init__()
        if shape.anchors_per_place != len(ASPECT_RATIOS):
            raise ValueError(f"{shape.anchors_per_place} anchors a place; there are {len(ASPECT_RATIOS)} aspect ratios")
        levels = detection_levels(patch_size)
        self.pyramid = nn.ModuleList(
            _Level(shape.pyramid_widths(embed_dim, doublings), doublings, shape.channels) for doublings in levels
        )
        strides = [patch_size / 2.0**doublings for doublings in levels]
        self.proposals = Proposals(
            StrideAnchors([*strides, 2 * strides[-1]]),
            RPNHead(shape.channels, shape.anchors_per_place),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            anchors_trained=shape.train_anchors,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2 * shape.proposals, "testing": shape.proposals},
            post_nms_top_n={"training": 2 * shape.proposals, "testing": shape.proposals},
            nms_thresh=0.7,
        )
        self.boxes = _roi_heads(shape, strides, num_classes)

    def forward(
        self,
        feature_map: Tensor,
        images: Tensor,
        targets: list[dict[str, Tensor]] | None = None,
        generators: Generators | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of each image, or in training losses [B] by name; `generators` draw what is trained on.

        `targets` of an image: boxes [n, 4] (x1, y1, x2, y2 in pixels), labels [n] (1 to K - 1), masks [n, H, W] of 0
        and 1. Detections: boxes, labels, scores [n], the best first, and masks [n, 1, 28, 28] in [0, 1] on the boxes.
        """
        height, width = images.shape[-2:]
        sizes = [(height, width)] * len(images)
        maps = [level(feature_map) for level in self.pyramid]
        features = OrderedDict((str(number), level) for number, level in enumerate(maps))
        for_proposals = features | {"pool": F.max_pool2d(maps[-1], 1, stride=2)}
        generators = [None] * len(images) if generators is None else generators
        proposals, proposal_losses = self.proposals(ImageList(images, sizes), for_proposals, targets, generators)
        detections, losses = self.boxes(features, proposals, sizes, targets, generators)
        return detections, losses | proposal_losses


class _Level(nn.Module):
    """One level of the pyramid: rescaled, then a 1x1 and a 3x3 convolution with norms."""

    def __init__(self, widths: tuple[int, ...], doublings: int, channels: int) -> None:
        super().__init__()
        self.rescale = rescale(widths, doublings)
        self.project = nn.Sequential(
            nn.Conv2d(widths[-1], channels, 1, bias=False),
            LayerNorm2d(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            LayerNorm2d(channels),
        )

    def forward(self, feature_map: Tensor) -> Tensor:
        # float32, because the parts of torchvision that follow sort, compare and pool in it
        return at_least_float32(self.project(self.rescale(feature_map)))


class _AgnosticPredictor(nn.Module):
    """Class logits [N, K] and one movement [N, 4] for all classes."""

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(inputs, num_classes)
        self.bbox_pred = nn.Linear(inputs, 4)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(features), self.bbox_pred(features)


def _roi_heads(shape: MaskRCNNShape, strides: list[float], num_classes: int) -> BoxStages:
    mask_channels = (shape.channels,) * shape.mask_convs
    common: dict[str, Any] = {
        "box_roi_pool": BoxPooling(strides, shape.box_size),
        "boxes_trained": shape.train_boxes,
        "positive_fraction": shape.train_masks / shape.train_boxes,
        "score_thresh": SCORE_THRESHOLD,
        "nms_thresh": NMS_IOU,
        "detections_per_img": shape.detections,
        "mask_roi_pool": BoxPooling(strides, shape.mask_size),
        "mask_head": MaskRCNNHeads(shape.channels, mask_channels, 1),
        "mask_predictor": MaskRCNNPredictor(shape.channels, shape.channels, num_classes),
    }
    heads = [TwoMLPHead(shape.channels * shape.box_size**2, shape.box_hidden) for _ in range(shape.box_stages)]
    predictor = _AgnosticPredictor if shape.class_agnostic_boxes else FastRCNNPredictor
    predictors = [predictor(shape.box_hidden, num_classes) for _ in heads]
    return BoxStages(box_heads=heads, box_predictors=predictors, **common)
