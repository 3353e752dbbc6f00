"""torchvision's region proposal network (arXiv 1506.01497) with draws and losses by image; A anchors an image."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers

from patchscale.models.heads.layers import at_least_float32
from patchscale.models.heads.sampling import Generators, image_means, sample

SMOOTH_L1_BETA = 1 / 9
"""As in torchvision."""


class Proposals(RegionProposalNetwork):
    """From levels [B, C, h, w] to proposals [n, 4] of each image and, in training, two losses [B]."""

    def __init__(self, *parts: Any, anchors_trained: int, positive_fraction: float, **options: Any) -> None:
        super().__init__(*parts, batch_size_per_image=anchors_trained, positive_fraction=positive_fraction, **options)
        self.anchors_trained = anchors_trained
        self.positive_fraction = positive_fraction

    def forward(
        self,
        images: ImageList,
        features: OrderedDict[str, Tensor],
        targets: list[dict[str, Tensor]] | None,
        generators: Generators,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals are cut at the image's border, the best first; they pass no gradients on."""
        levels = list(features.values())
        objectness, deltas = self.head(levels)
        (anchors, *_) = self.anchor_generator(images, levels)
        per_level = [logits[0].numel() for logits in objectness]
        flat_objectness, flat_deltas = concat_box_prediction_layers(objectness, deltas)
        batch = len(images.image_sizes)
        logits = at_least_float32(flat_objectness).view(batch, len(anchors))
        moves = at_least_float32(flat_deltas).view(batch, len(anchors), 4)
        with torch.no_grad():
            decoded = self.box_coder.decode(moves.detach().flatten(0, 1), [anchors] * batch)
            proposals, _ = self.filter_proposals(
                decoded.view(batch, -1, 4), logits.flatten()[:, None], images.image_sizes, per_level
            )
        if not self.training:
            return proposals, {}
        assert targets is not None
        return proposals, self._losses(anchors, logits, moves, targets, generators)

    def _losses(
        self,
        anchors: Tensor,
        logits: Tensor,
        moves: Tensor,
        targets: list[dict[str, Tensor]],
        generators: Generators,
    ) -> dict[str, Tensor]:
        labels, matched = self.assign_targets_to_anchors([anchors] * len(targets), targets)
        objectness, regression = [], []
        for image, generator in enumerate(generators):
            objects, background = sample(labels[image], self.anchors_trained, self.positive_fraction, generator)
            chosen = torch.cat([objects, background])
            goals = self.box_coder.encode_single(matched[image][objects].to(anchors.dtype), anchors[objects])
            objectness.append(
                F.binary_cross_entropy_with_logits(
                    logits[image, chosen], labels[image][chosen].to(logits.dtype), reduction="none"
                )
            )
            regression.append(
                F.smooth_l1_loss(moves[image, objects], goals, beta=SMOOTH_L1_BETA, reduction="none").sum(1)
            )
        chosen_counts = [len(of_image) for of_image in objectness]
        object_counts = [len(of_image) for of_image in regression]
        return {
            "loss_objectness": image_means(torch.cat(objectness), chosen_counts),
            "loss_rpn_box_reg": image_means(torch.cat(regression), object_counts, chosen_counts),
        }
