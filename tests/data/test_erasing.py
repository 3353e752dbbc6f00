"""Random erasing and the simple random crop, against timm's, torchvision's and what they must leave alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.conftest import MakeConfig, picture, write_classes

from patchscale.data.datasets import load_splits
from patchscale.data.seeding import seeded
from patchscale.data.transforms import Erasing, PictureTransform
from patchscale.errors import UserError
from patchscale.training.batches import load_batches
from patchscale.training.order import TrainingOrder


def test_erasing_is_timms_in_pixel_mode() -> None:
    from timm.data.random_erasing import RandomErasing

    ours = Erasing(probability=0.25, seed=3)
    for index in range(50):
        image = torch.full((3, 32, 48), 7.0)
        with seeded(3, "erase", 2, index):
            expected = RandomErasing(0.25, mode="pixel", device="cpu")(image.clone())
        assert torch.equal(ours(image, 2, index), expected)


def test_a_rectangle_of_a_quarter_of_the_images_becomes_standard_noise() -> None:
    erasing = Erasing(probability=0.25, seed=0)
    erased, areas, noise = 0, [], []
    for index in range(1000):
        image = erasing(torch.full((3, 40, 40), 7.0), 0, index)
        changed = (image != 7).all(dim=0)
        assert torch.equal(changed, (image != 7).any(dim=0))
        if not changed.any():
            continue
        erased += 1
        rows, columns = (changed.any(dim=axis).nonzero().flatten() for axis in (1, 0))
        height, width = (int(each.max() - each.min() + 1) for each in (rows, columns))
        assert int(changed.sum()) == height * width, "one whole rectangle"
        areas.append(height * width / 1600)
        noise.append(image[:, changed].flatten())
    assert 200 < erased < 300
    assert 0.015 < min(areas) < 0.06
    assert 0.25 < max(areas) < 0.36
    values = torch.cat(noise)
    assert abs(float(values.mean())) < 0.02
    assert float(values.std()) == pytest.approx(1, abs=0.02)


def test_training_images_are_erased_alone_and_the_same_by_either_way(make_config: MakeConfig) -> None:
    plain = load_splits(make_config(name="scenes", train_images=8, augment="none"))
    erased = load_splits(make_config(name="scenes", train_images=8, augment="none", random_erasing=1.0))
    order = TrainingOrder(0, 8, 8)
    for splits, differ in ((plain, 0), (erased, 8)):
        ((images, _),) = load_batches(splits.train, order, range(1), num_workers=0, device=torch.device("cpu"))
        assert images.dtype == torch.float32
        assert (
            sum(not torch.equal(image, plain.train[key][0]) for image, key in zip(images, order(0), strict=True))
            == differ
        )
        assert all(torch.equal(image, splits.train[key][0]) for image, key in zip(images, order(0), strict=True))
    assert torch.equal(erased.val[0][0], plain.val[0][0])
    assert torch.equal(erased.test[0][0], plain.test[0][0])


def test_the_same_image_is_erased_differently_each_time_it_is_drawn(make_config: MakeConfig) -> None:
    splits = load_splits(make_config(name="scenes", train_images=8, augment="none", random_erasing=1.0))
    first, second, again = (splits.train[epoch, 3][0] for epoch in (0, 1, 0))
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_the_simple_crop_moves_a_covering_picture_by_up_to_four_pixels() -> None:
    transform = PictureTransform(augment="crop", img_size=(24, 24), eval_ratio=1.0, crop="simple")
    original = picture(0, (48, 36))
    resized = original.resize((24, 32), Image.Resampling.BICUBIC)
    padded = np.pad(np.asarray(resized), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    windows = {
        side.tobytes(): (top, left, flipped)
        for top in range(padded.shape[0] - 23)
        for left in range(padded.shape[1] - 23)
        for flipped, side in enumerate(
            (padded[top : top + 24, left : left + 24], padded[top : top + 24, left : left + 24][:, ::-1])
        )
    }
    places = [windows[transform(original, None, 0, index)[0].tobytes()] for index in range(400)]
    assert {left for _, left, _ in places} == set(range(9))
    assert {top for top, _, _ in places} == set(range(17))
    assert 150 < sum(flipped for _, _, flipped in places) < 250


def test_the_simple_crop_of_a_run_is_for_training_alone(make_config: MakeConfig, tmp_path) -> None:
    write_classes(tmp_path, {"a": 8, "b": 8})
    folder = {"name": "image_folder", "root": str(tmp_path), "augment": "crop"}
    simple, resized = (load_splits(make_config(**folder, crop=crop)) for crop in ("simple", "resized"))
    assert not torch.equal(simple.train[0, 0][0], resized.train[0, 0][0])
    assert torch.equal(simple.val[0][0], resized.val[0][0])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"name": "scenes", "crop": "simple", "augment": "crop"}, "data.crop='simple' is for data sets of pictures"),
        ({"name": "image_folder", "root": ".", "crop": "simple"}, "data.augment='flip' has none"),
    ],
)
def test_a_crop_that_would_change_nothing_is_refused(make_config: MakeConfig, data, words) -> None:
    with pytest.raises(UserError, match=words):
        make_config(**data)


def test_erasing_has_no_label_maps(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"data\.random_erasing has no label maps to follow"):
        make_config(task="segmentation", name="scenes", random_erasing=0.25)


def test_repeated_draws_of_an_image_are_augmented_differently(make_config: MakeConfig) -> None:
    splits = load_splits(make_config(name="scenes", train_images=12, augment="crop", repeated_augment=3))
    keys = TrainingOrder(0, 12, 6, repeats=3)(0)
    assert len({index for _, index in keys}) == 2
    assert len({splits.train[key][0].numpy().tobytes() for key in keys}) >= 5
