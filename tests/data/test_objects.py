"""Pictures with objects: resized, cropped and flipped together, the same whoever asks; batches in loader processes."""

import numpy as np
import pytest
import torch
from PIL import Image

from patchscale.config import build_config
from patchscale.data.datasets import load_splits
from patchscale.data.detection import FILL, ObjectTransform
from patchscale.data.objects import Objects
from patchscale.data.run_lengths import encode_masks
from patchscale.training.batches import host_batches, load_batches
from patchscale.training.order import TrainingOrder

CANVAS = (48, 64)


def picture_of(size=(60, 40), boxes=((5, 10, 25, 40), (0, 0, 40, 60), (20, 50, 22, 53))):
    """A picture whose objects are rectangles, each of its own colour, the first in front."""
    height, width = size
    pixels = np.zeros((height, width, 3), np.uint8)
    masks = np.zeros((len(boxes), height, width), np.uint8)
    for place, (left, top, right, bottom) in reversed(list(enumerate(boxes))):
        pixels[top:bottom, left:right] = 80 * (place + 1)
        masks[: place + 1, top:bottom, left:right] = 0
        masks[place, top:bottom, left:right] = 1
    objects = Objects(
        size=size,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.arange(1, len(boxes) + 1),
        masks=encode_masks(masks),
        crowd=np.zeros(len(boxes), np.bool_),
        areas=masks.sum((1, 2)).astype(np.float64),
    )
    return Image.fromarray(pixels), objects


def test_evaluation_keeps_the_aspect_and_fills_with_the_mean_colour():
    pixels, target = ObjectTransform(augment="none", img_size=CANVAS)(*picture_of(), 0, 7)
    assert pixels.shape == (*CANVAS, 3)
    assert (pixels[:, 32:] == FILL).all()  # 60 x 40 becomes 48 x 32
    assert not (pixels[:, :32] == FILL).all(axis=-1).any()
    assert target["scale"] == (0.8, 0.8)
    assert target["number"] == 7
    expected = np.array([[5, 10, 25, 40], [0, 0, 40, 60], [20, 50, 22, 53]]) * 0.8
    np.testing.assert_allclose(target["boxes"].numpy(), expected, rtol=1e-6)
    assert target["labels"].tolist() == [1, 2, 3]
    assert target["masks"][0, 8:32, 4:20].all()
    assert target["masks"].shape == (3, *CANVAS)
    assert target["masks"][:, :, 32:].sum() == 0
    assert target["areas"].tolist() == picture_of()[1].areas.tolist()


def test_what_is_too_small_is_left_out():
    _, target = ObjectTransform(augment="none", img_size=(12, 16))(*picture_of(), 0, 0)
    assert target["labels"].tolist() == [1, 2]  # the third is 0.4 px wide


@pytest.mark.parametrize("augment", ["flip", "shortest_edge", "large_scale_jitter"])
def test_picture_boxes_and_masks_move_together(augment):
    """Where a mask is, the picture has its object's colour, and the box is around it."""
    transform = ObjectTransform(augment=augment, img_size=CANVAS, seed=1)
    scales, flips = [], 0
    for epoch in range(60):
        picture, objects = picture_of(size=(48, 64), boxes=((6, 8, 30, 30), (26, 16, 58, 44)))
        pixels, target = transform(picture, objects, epoch, 3)
        scales.append(target["scale"][0])
        for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
            assert (box[2:] - box[:2] >= 1).all()
            rows, columns = np.nonzero(mask.numpy())
            found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (found[:2] >= box[:2].numpy() - 1).all()
            assert (found[2:] <= box[2:].numpy() + 1).all()
            if scales[-1] > 0.5:
                inside = mask.numpy().astype(bool)
                assert np.median(pixels[inside].mean(axis=-1)) == 80 * int(label)
        if len(target["boxes"]) == 2 and scales[-1] <= 1:
            flips += bool(target["boxes"][0, 0] > target["boxes"][1, 0])
    if augment == "flip":
        assert set(scales) == {1.0}
        assert 18 < flips < 42
    elif augment == "shortest_edge":
        assert len({round(scale, 2) for scale in scales}) == 6
        assert (min(scales), max(scales)) == pytest.approx((0.8, 1.0), abs=0.02)
    else:
        assert min(scales) < 0.3
        assert max(scales) > 1.7


def test_a_picture_without_objects():
    for augment in ("none", "large_scale_jitter"):
        pixels, target = ObjectTransform(augment=augment, img_size=CANVAS)(*picture_of(boxes=()), 0, 0)
        assert target["boxes"].shape == (0, 4)
        assert target["masks"].shape == (0, *CANVAS)
        assert pixels.shape == (*CANVAS, 3)


def splits_of(**data):
    values = {
        "task": "detection",
        "model": {"name": "vit_test", "patch_size": 8, "img_size": [32, 48]},
        "data": {"name": "scenes", "train_images": 20, "val_images": 4, "test_images": 4, **data},
    }
    return load_splits(build_config(values))


def same(one, other):
    assert torch.equal(one[0], other[0])
    for first, second in zip(one[1], other[1], strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, second[name]), name
            elif name != "objects":
                assert value == second[name], name


def test_batches_do_not_depend_on_loader_processes_or_what_was_drawn_before():
    split = splits_of(augment="large_scale_jitter").train
    order = TrainingOrder(0, 20, 6)
    here = list(host_batches(split, order, range(5), num_workers=0))
    torch.manual_seed(9)
    with_two = list(host_batches(split, order, range(5), num_workers=2))
    (last,) = host_batches(split, order, [4], num_workers=0)
    for one, other in zip(here, with_two, strict=True):
        same(one, other)
    same(here[4], last)
    again = split.collate([split.item(key) for key in TrainingOrder(0, 20, 6)(4)])
    same(again, last)
    assert not torch.equal(split.item((0, 3))[0], split.item((1, 3))[0])


def test_batches_on_the_device_are_what_the_split_gives():
    split = splits_of(augment="none").val
    ((images, targets),) = load_batches(split, lambda number: [0, 1], [0], num_workers=0, device=torch.device("cpu"))
    same((images, targets), split.collate([split[0], split[1]]))
    assert images.dtype == torch.float32


def test_scenes_tell_their_visible_garments():
    split = splits_of(augment="none").test
    scene = split.source.scenes[2]
    _, target = split.item(2)
    assert target["boxes"].tolist() == scene.boxes.tolist()
    assert target["labels"].tolist() == (scene.labels + 1).tolist()
    assert np.array_equal(target["masks"].numpy(), scene.masks)
    assert target["objects"].areas.tolist() == scene.masks.sum((1, 2)).tolist()
