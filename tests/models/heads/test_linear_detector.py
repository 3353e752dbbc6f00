"""One linear layer finds boxes at every stride: it answers for the right objects, and learns to."""

import pytest
import torch
from torchvision.ops import box_iou

from patchscale.costs.heads import count_head
from patchscale.head_shapes import LinearDetectorShape
from patchscale.models.heads.linear_detector import LinearDetector


def target(*boxes, labels=None):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [1] * len(boxes), dtype=torch.int64),
    }


def test_a_token_answers_for_the_smallest_object_in_whose_middle_it_lies():
    head = LinearDetector(embed_dim=4, patch_size=8, num_classes=3)
    centres = head._centres(4, 4, torch.device("cpu"))
    assert centres[5].tolist() == [12, 12]
    large, small = [0.0, 0.0, 32.0, 32.0], [18.0, 2.0, 22.0, 6.0]
    owner = head._owners(centres, target(large, small)["boxes"]).reshape(4, 4)
    assert owner.tolist() == [[-1, -1, 1, -1], [-1, 0, 0, -1], [-1, 0, 0, -1], [-1, -1, -1, -1]]
    assert (head._owners(centres, torch.empty(0, 4)) == -1).all()


@pytest.mark.parametrize("patch_size", [64, 32, 16, 14, 8, 4, 2, 1])
def test_every_object_has_a_token_at_every_stride(patch_size):
    torch.manual_seed(0)
    head = LinearDetector(embed_dim=4, patch_size=patch_size, num_classes=3)
    grid = (2, 3) if patch_size > 8 else (56 // patch_size, 112 // patch_size)
    height, width = grid[0] * patch_size, grid[1] * patch_size
    centres = head._centres(*grid, torch.device("cpu"))
    for _ in range(20):
        corner = torch.rand(2) * torch.tensor([width - 3.0, height - 3.0])
        box = torch.cat([corner, torch.minimum(corner + 2 + 40 * torch.rand(2), torch.tensor([width, height]))])
        assert (head._owners(centres, box[None]) == 0).any()


@pytest.mark.parametrize("patch_size", [14, 8, 2])
def test_it_learns_boxes_from_maps_that_tell_them(patch_size):
    torch.manual_seed(0)
    grid = (112 // patch_size, 112 // patch_size)
    head = LinearDetector(embed_dim=16, patch_size=patch_size, num_classes=4).train()
    truths = [target([8, 8, 50, 60], [60, 40, 100, 110], labels=[1, 3]), target([20, 30, 90, 80], labels=[2]), target()]
    centres = head._centres(*grid, torch.device("cpu"))
    maps = torch.zeros(3, 16, *grid)
    for of_image, truth in zip(maps, truths, strict=True):  # features: whose token it is, and the logarithmic distances
        owner = head._owners(centres, truth["boxes"])
        for token in torch.where(owner >= 0)[0]:
            box, (row, column) = truth["boxes"][owner[token]], divmod(token.item(), grid[1])
            distances = torch.cat([centres[token] - box[:2], box[2:] - centres[token]]) / patch_size
            of_image[truth["labels"][owner[token]], row, column] = 1
            of_image[4:8, row, column] = distances.clamp(min=0.05).log()
    images = torch.zeros(3, 3, 112, 112)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(150):
        _, losses = head(maps, images, truths)
        optimizer.zero_grad()
        sum(losses.values()).sum().backward()
        optimizer.step()
    found, losses = head.eval()(maps, images)
    assert losses == {}
    for of_image, truth in zip(found, truths, strict=True):
        sure = of_image["scores"] > 0.5
        assert sorted(of_image["labels"][sure].tolist()) == sorted(truth["labels"].tolist())
        if len(truth["boxes"]):
            assert box_iou(truth["boxes"], of_image["boxes"][sure]).max(dim=1).values.min() > 0.9


def test_parts_of_a_batch_count_by_their_images():
    torch.manual_seed(0)
    head = LinearDetector(embed_dim=8, patch_size=8, num_classes=3).train()
    maps, images = torch.randn(3, 8, 4, 4), torch.zeros(3, 3, 32, 32)
    truths = [target([2, 2, 20, 20]), target(), target([4, 4, 30, 30], [10, 0, 28, 9])]
    _, whole = head(maps, images, truths)
    parts = [head(maps[n : n + 1], images[n : n + 1], truths[n : n + 1])[1] for n in range(3)]
    for name, loss in whole.items():
        torch.testing.assert_close(loss, torch.cat([part[name] for part in parts]))


def test_it_has_the_parameters_that_costs_state():
    head = LinearDetector(embed_dim=48, patch_size=8, num_classes=11)
    counts = count_head(LinearDetectorShape(), embed_dim=48, grid=(4, 4), patch_size=8, img_size=32, num_classes=11)
    assert counts.params == {"head": sum(parameter.numel() for parameter in head.parameters())}
    assert counts.macs == {"head": 16 * 48 * 14}


def test_a_step_keeps_what_is_counted():
    """Of 4,096 tokens and 80 classes: the map, the logits, and little of the tokens that lie in objects."""
    head = LinearDetector(embed_dim=16, patch_size=2, num_classes=81).train()
    maps = torch.randn(1, 16, 64, 64, requires_grad=True)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        truth = target([10, 10, 40, 40], [60, 20, 100, 90], labels=[1, 80])
        _, losses = head(maps, torch.empty(1, 3, 128, 128), [truth])
    counts = count_head(LinearDetectorShape(), embed_dim=16, grid=(64, 64), patch_size=2, img_size=128, num_classes=81)
    assert sum(size for size, _ in kept.values()) < 1.25 * 4 * counts.kept_numbers
    sum(loss.sum() for loss in losses.values()).backward()
    assert maps.grad.isfinite().all()
    assert head.head.weight.grad[[0, 79]].abs().sum(dim=1).min() > 0
