"""Detection heads at every stride; parameters as costs state them; parts equal torchvision's where those are right."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
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
    assert all(loss.isfinite().all() for loss in losses.values())
    sum(losses.values()).sum().backward()
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
        assert all(loss.isfinite().all() for loss in losses.values())
        sum(losses.values()).sum().backward()


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


@pytest.mark.parametrize("name", SHAPES)
def test_the_losses_of_an_image_are_its_own(name):
    """Whatever else is in the batch; an image without objects among them."""
    torch.manual_seed(0)
    head = MaskRCNN(SHAPES[name], embed_dim=8, patch_size=8, num_classes=4).double().train()
    maps, images = torch.randn(3, 8, 8, 12).double(), torch.randn(3, 3, 64, 96)
    targets = targets_of(3, 0, 2)
    _, together = head(maps, images, targets, seeds(5, 6, 7))
    for number in range(3):
        own = slice(number, number + 1)
        _, alone = head(maps[own], images[own], targets[own], seeds(5 + number))
        for part, losses in together.items():
            torch.testing.assert_close(losses[own], alone[part], rtol=1e-9, atol=1e-12, msg=f"{part} of {number}")
    _, again = head(maps, images, targets, seeds(5, 6, 8))
    assert (torch.stack([*again.values()]) != torch.stack([*together.values()])).any(0).tolist() == [False, False, True]


def test_one_stage_is_torchvisions():
    """Same weights, same images: same detections; and, where nothing is drawn, the same losses."""
    torch.manual_seed(0)
    shape = replace(SHAPES["mask_rcnn"], train_boxes=4000, train_masks=1000)  # all of them
    head = MaskRCNN(shape, embed_dim=8, patch_size=8, num_classes=4)
    mine = head.boxes
    theirs = RoIHeads(
        *(mine.box_roi_pool, mine.box_heads[0], mine.box_predictors[0]),
        *(0.5, 0.5, 4000, 0.25, None, 0.05, 0.5, 100),
        *(mine.mask_roi_pool, mine.mask_head, mine.mask_predictor),
    )
    nn.init.normal_(mine.box_predictors[0].cls_score.weight, std=0.3)
    levels = {str(n): torch.randn(1, 16, 16 // 2**n, 24 // 2**n) for n in range(4)}
    targets, sizes = targets_of(3), [(64, 96)]
    proposals = [target["boxes"].repeat(20, 1) + 3 * torch.randn(20 * len(target["boxes"]), 4) for target in targets]
    proposals = [torch.cat([own[:, :2].clamp(min=0), own[:, 2:] + 8], 1) for own in proposals]
    (found,), _ = mine.eval()(levels, proposals, sizes, None, [None])
    (expected,), _ = theirs.eval()(levels, proposals, sizes)
    assert found.keys() == expected.keys()
    assert len(found["boxes"]) > 3
    for part, value in expected.items():
        torch.testing.assert_close(found[part], value)
    _, losses = mine.train()(levels, list(proposals), sizes, targets, [None])
    _, expected = theirs.train()(levels, list(proposals), sizes, targets)
    for part, value in expected.items():
        torch.testing.assert_close(losses[part][0], value)


def test_proposals_are_torchvisions():
    torch.manual_seed(0)
    head = MaskRCNN(replace(SHAPES["mask_rcnn"], train_anchors=10**6), embed_dim=8, patch_size=8, num_classes=4)
    mine = head.proposals
    numbers = {"training": 100, "testing": 50}
    theirs = RegionProposalNetwork(mine.anchor_generator, mine.head, 0.7, 0.3, 10**6, 0.5, numbers, numbers, 0.7)
    levels = {str(n): torch.randn(1, 16, 16 // 2**n, 24 // 2**n) for n in range(5)}
    images, targets = ImageList(torch.empty(1, 3, 64, 96), [(64, 96)]), targets_of(3)
    for training in (False, True):
        found, losses = mine.train(training)(images, levels, targets, [None])
        expected, expected_losses = theirs.train(training)(images, levels, targets)
        torch.testing.assert_close(found, expected)
        for part, value in expected_losses.items():
            torch.testing.assert_close(losses[part][0], value)


@pytest.mark.parametrize("name", SHAPES)
def test_under_bfloat16_boxes_keep_their_places(name):
    torch.manual_seed(0)
    head = MaskRCNN(SHAPES[name], embed_dim=8, patch_size=8, num_classes=4).train()
    maps, images, targets = torch.randn(2, 8, 8, 12), torch.randn(2, 3, 64, 96), targets_of(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        _, losses = head(maps, images, targets, seeds(1, 2))
        found, _ = head.eval()(maps, images)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {image["boxes"].dtype for image in found} == {torch.float32}
    sum(losses.values()).sum().backward()
