"""Boxes without a decoder: one linear layer on the patch tokens tells class and box at every token.

The counterpart in detection of the linear head of segmentation. Training follows FCOS (arXiv 1904.01355) on one level,
without its convolutions and its centre-ness: a token answers for the smallest object in whose middle it lies.
B images, D features of the backbone, p patch size, T = H/p x W/p tokens, K classes with background 0.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import batched_nms, clip_boxes_to_image, generalized_box_iou_loss, sigmoid_focal_loss

from patchscale.models.heads.layers import at_least_float32
from patchscale.models.heads.sampling import Generators

MIDDLE = 0.5
"""Side of an object's middle as a part of its box; the token at the very middle counts always."""
PRIOR = 0.01
"""Share of tokens that are expected to be objects before training (focal loss, arXiv 1708.02002)."""
SCORE_THRESHOLD = 0.05
NMS_IOU = 0.6
CANDIDATES = 1000
"""Tokens of an image, the best ones, that are looked at."""
LARGEST_EXPONENT = 12.0
"""A side of 160,000 patches: keeps exponentials finite."""


class LinearDetector(nn.Module):
    """From a map of the backbone [B, D, H/p, W/p] to losses (training) or boxes (evaluation)."""

    def __init__(self, *, embed_dim: int, patch_size: int, num_classes: int, detections: int = 100) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.detections = detections
        self.head = nn.Linear(embed_dim, num_classes - 1 + 4)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        nn.init.constant_(self.head.bias[: num_classes - 1], -math.log((1 - PRIOR) / PRIOR))

    def forward(
        self,
        feature_map: Tensor,
        images: Tensor,
        targets: list[dict[str, Tensor]] | None = None,
        generators: Generators | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Boxes of each image, or in training losses [B] by name; `targets` and boxes as in `mask_rcnn.MaskRCNN`.

        There are no masks, and nothing is drawn.
        """
        height, width = feature_map.shape[-2:]
        predicted = at_least_float32(self.head(feature_map.flatten(2).transpose(1, 2)))
        logits, sides = predicted.split([predicted.shape[-1] - 4, 4], dim=-1)
        centres = self._centres(height, width, feature_map.device)
        boxes = self._boxes(centres, sides)
        if self.training:
            assert targets is not None
            return [], self._losses(centres, logits, boxes, targets)
        size = (images.shape[-2], images.shape[-1])
        return [self._best(*of_image, size) for of_image in zip(logits.sigmoid(), boxes, strict=True)], {}

    def _centres(self, height: int, width: int, device: torch.device) -> Tensor:
        """[T, 2]: x and y of each token's middle in pixels."""
        rows, columns = (
            (torch.arange(number, device=device, dtype=torch.float32) + 0.5) * self.patch_size
            for number in (height, width)
        )
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        return torch.stack([x.flatten(), y.flatten()], dim=1)

    def _boxes(self, centres: Tensor, sides: Tensor) -> Tensor:
        """[B, T, 4] from the logarithms of the distances to left, top, right and bottom in patches."""
        distances = self.patch_size * sides.clamp(max=LARGEST_EXPONENT).exp()
        return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1)

    def _losses(
        self, centres: Tensor, logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        classification, regression = [], []
        for of_image, found, target in zip(logits, boxes, targets, strict=True):
            owner = self._owners(centres, target["boxes"])
            tokens = torch.where(owner >= 0)[0]
            objects = owner[tokens]
            share = max(1, len(tokens))
            classes = target["labels"][objects] - 1
            # Computed again in the backward pass: else the loss would keep seven times the logits, of every image.
            summed = checkpoint(_focal_loss, of_image, tokens, classes, use_reentrant=False, preserve_rng_state=False)
            classification.append(summed / share)
            regression.append(
                generalized_box_iou_loss(found[tokens], target["boxes"][objects].to(found.dtype), reduction="sum")
                / share
            )
        return {
            "loss_classifier": torch.stack(classification),
            "loss_box_reg": torch.stack(regression),
        }

    def _owners(self, centres: Tensor, boxes: Tensor) -> Tensor:
        """[T]: the object that each token answers for, -1 for none."""
        if not len(boxes):
            return torch.full((len(centres),), -1, dtype=torch.int64, device=centres.device)
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        reach = MIDDLE * (boxes[:, 2:] - boxes[:, :2]) / 2
        reach = reach.clamp(min=self.patch_size / 2)  # the token that holds the middle lies no further from it
        within = ((centres[:, None] - middle).abs() <= reach).all(dim=-1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).expand_as(within).masked_fill(~within, math.inf)
        smallest, owner = areas.min(dim=1)
        return owner.masked_fill(smallest.isinf(), -1)

    def _best(self, scores: Tensor, boxes: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Boxes of one image after suppression by class, the best first; `size` is (height, width)."""
        candidates = scores.flatten()
        candidates, places = candidates.topk(min(CANDIDATES, len(candidates)))
        places = places[candidates > SCORE_THRESHOLD]
        tokens, classes = places // scores.shape[1], places % scores.shape[1]
        kept = clip_boxes_to_image(boxes[tokens], size)
        best = batched_nms(kept, scores[tokens, classes], classes, NMS_IOU)[: self.detections]
        return {"boxes": kept[best], "labels": classes[best] + 1, "scores": scores[tokens, classes][best]}


def _focal_loss(logits: Tensor, tokens: Tensor, classes: Tensor) -> Tensor:
    """Sum over logits [T, K - 1], of which those at `tokens` and their `classes` should be 1."""
    wanted = torch.zeros_like(logits)
    wanted[tokens, classes] = 1
    loss: Tensor = sigmoid_focal_loss(logits, wanted, reduction="sum")
    return loss
