"""Detection heads at every stride; parameters as costs state them; parts equal torchvision's where those are right."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from patchscale.costs.heads import count_head
from patchscale.head_shapes import HEADS, level_grid
from patchscale.models.heads.boxes import BoxPooling, StrideAnchors
from patchscale.models.heads.mask_rcnn import MaskRCNN

SMALL = {"channels": 16, "box_hidden": 32, "mask_convs": 1, "train_boxes": 32, "train_masks": 8, "proposals": 50}
SHAPES = {
    "mask_rcnn": replace(HEADS["mask_rcnn"]["detection"], **SMALL),
    "cascade_mask_rcnn": replace(HEADS["cascade_mask_rcnn"]["detection"], **SMALL),
}


def targets_of(*counts, size=(64, 96)):
    """Objects that are their boxes, `counts` of them in each image."""
    height, width = size
    targets = []
    for number in counts:
        corners = torch.rand(number, 2) * torch.tensor([width / 2, height / 2])
        boxes = torch.cat([corners, corners + 4 + torch.rand(number, 2) * torch.tensor([width / 3, height / 3])], 1)
        masks = torch.zeros(number, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().long().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        targets.append({"boxes": boxes, "labels": torch.randint(1, 4, (number,)), "masks": masks})
    return targets


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("patch_size", [64, 32, 16, 14, 8, 4, 2, 1])
def test_every_stride_trains_and_detects(name, patch_size):
    torch.manual_seed(0)
    height, width = (64, 128) if patch_size != 14 else (56, 84)
    head = MaskRCNN(SHAPES[name], embed_dim=8, patch_size=patch_size, num_classes=4)
    images = torch.randn(2, 3, height, width)
    feature_map = torch.randn(2, 8, height // patch_size, width // patch_size, requires_grad=True)
    _, losses = head.train()(feature_map, images, targets_of(3, 0, size=(height, width)))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert feature_map.grad.isfinite().all()
    assert feature_map.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in head.parameters())

    head.eval()
    for part in head.boxes.modules():  # everything is an object of class 1
        if hasattr(part, "cls_score"):
            nn.init.zeros_(part.cls_score.weight)
            part.cls_score.bias.data = torch.tensor([-5.0, 5.0, -5.0, -5.0])
    with torch.inference_mode():
        detections, losses = head(feature_map, images)
    assert losses == {}
    for found in detections:
        number = len(found["boxes"])
        assert 0 < number <= SHAPES[name].detections
        assert found["masks"].shape == (number, 1, 28, 28)
        assert (found["labels"] == 1).all()
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"][:, 2] <= width).all()
        assert (found["scores"].diff() <= 0).all()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("patch_size", [64, 16, 14, 4, 1])
@pytest.mark.parametrize("whole", [False, True])
def test_they_have_the_parameters_that_costs_state(name, patch_size, whole):
    shape = HEADS[name]["detection"] if whole else SHAPES[name]
    with torch.device("meta"):
        head = MaskRCNN(shape, embed_dim=48, patch_size=patch_size, num_classes=11)
    counts = count_head(
        shape, embed_dim=48, grid=(4, 4), patch_size=patch_size, img_size=4 * patch_size, num_classes=11
    )
    masks = (head.boxes.mask_head, head.boxes.mask_predictor)
    mask_params = sum(p.numel() for part in masks for p in part.parameters())
    assert counts.params == {
        "pyramid": sum(p.numel() for p in head.pyramid.parameters()),
        "rpn": sum(p.numel() for p in head.proposals.parameters()),
        "box_head": sum(p.numel() for p in head.boxes.parameters()) - mask_params,
        "mask_head": mask_params,
    }


def test_anchors_and_pooling_equal_those_of_torchvision_at_powers_of_two():
    torch.manual_seed(0)
    strides = (4, 8, 16, 32)
    grids = [level_grid((32, 64), -level) for level in range(4)]
    maps = {str(number): torch.randn(2, 5, *grid) for number, grid in enumerate(grids)}
    images = ImageList(torch.empty(2, 3, 128, 256), [(128, 256)] * 2)
    theirs = AnchorGenerator(tuple((8 * stride,) for stride in strides), ((0.5, 1.0, 2.0),) * 4)
    for mine, other in zip(
        StrideAnchors(strides)(images, [*maps.values()]), theirs(images, [*maps.values()]), strict=True
    ):
        torch.testing.assert_close(mine, other)
    boxes = [target["boxes"] * 1.2 for target in targets_of(40, 30, size=(100, 200))]
    pooling = BoxPooling(strides, 7)
    other = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, sampling_ratio=2)
    other(maps, boxes, [(128, 256)] * 2)  # finds the levels' scales
    assert [1 / scale for scale in other.scales] == list(strides)
    # Its levels are the same; its samples are not half a pixel aligned, as those of ViTDet and Detectron2 are.
    assert torch.equal(pooling.level_of(torch.cat(boxes)), other.map_levels(boxes))


def test_boxes_are_read_where_they_are():
    rows = torch.arange(16, dtype=torch.float32)[:, None].expand(16, 16) + 0.5  # the row's middle, in places
    for stride in (1.0, 3.5, 4.0):
        pooling = BoxPooling([stride], 2)
        box = torch.tensor([[2.0, 4.0, 6.0, 12.0]]) * stride  # rows 4 to 12 of the map
        found = pooling({"0": rows[None, None]}, [box], [(56, 56)])
        torch.testing.assert_close(found[0, 0, :, 0], torch.tensor([6.0, 10.0]), rtol=0, atol=0.01)


def test_boxes_without_objects_and_images_without_boxes():
    pooling = BoxPooling([4, 8], 3)
    maps = {"0": torch.randn(2, 5, 8, 8), "1": torch.randn(2, 5, 4, 4)}
    assert pooling(maps, [torch.empty(0, 4), torch.empty(0, 4)], [(32, 32)] * 2).shape == (0, 5, 3, 3)
    torch.manual_seed(0)
    for shape in SHAPES.values():
        head = MaskRCNN(shape, embed_dim=8, patch_size=8, num_classes=4).train()
        _, losses = head(torch.randn(2, 8, 8, 12), torch.randn(2, 3, 64, 96), targets_of(0, 0))
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
