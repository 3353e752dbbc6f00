"""Transforms keep what they promise; the untouched paths equal torchvision's."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from patchscale.data.seeding import seeded
from patchscale.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
    PictureTransform,
    PixelTransform,
    check_augment,
    colour_augmentation,
    eval_crop_ratio,
    evaluation_pixels,
    fit_pixels,
    normalised,
    to_tensor,
    window,
)
from patchscale.errors import UserError

AUGMENTS: tuple[Augment, ...] = ("none", "flip", "crop", "rand_augment", "three_augment")


def random_pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_tensor_is_torchvisions_normalisation(channels: int) -> None:
    pixels = random_pixels(0, 9, 7, channels)
    tensor = to_tensor(pixels)
    rgb = np.repeat(pixels, 3, axis=2) if channels == 1 else pixels
    expected = v2.functional.normalize(
        v2.functional.to_dtype(torch.from_numpy(rgb.copy()).permute(2, 0, 1), torch.float32, scale=True),
        list(IMAGENET_MEAN),
        list(IMAGENET_STD),
    )
    torch.testing.assert_close(tensor, expected)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()


@pytest.mark.parametrize("channels", [1, 3])
def test_normalising_a_batch_gives_the_bits_of_normalising_images(channels: int) -> None:
    pixels = random_pixels(0, 5, 9, 7, channels)
    batch = normalised(torch.from_numpy(pixels))
    assert torch.equal(batch, torch.stack([to_tensor(image) for image in pixels]))
    assert batch.is_contiguous()


@pytest.mark.parametrize(("img_size", "ratio"), [(64, 0.875), (128, 0.875), (224, 0.875), (256, 1), (384, 1)])
def test_crop_ratio_depends_on_the_image_only(img_size: int, ratio: float) -> None:
    assert eval_crop_ratio((img_size, img_size)) == ratio


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (224, 224), (97, 351), (500, 333)])
@pytest.mark.parametrize(("side", "ratio"), [(224, 0.875), (128, 1.0), (64, 0.875)])
def test_evaluation_equals_torchvisions_resize_and_crop(size: tuple[int, int], side: int, ratio: float) -> None:
    picture = Image.fromarray(random_pixels(1, *size, 3))
    expected = v2.Compose(
        [v2.Resize(int(side / ratio), v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(side)]
    )(picture)
    np.testing.assert_array_equal(evaluation_pixels(picture, (side, side), ratio), np.asarray(expected))


def test_evaluation_of_rectangles_keeps_the_aspect() -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, 100:] = 255
    out = evaluation_pixels(Image.fromarray(pixels), (16, 48), 1.0)
    assert out.shape == (16, 48, 3)
    assert (out[:, :22] == 0).all()
    assert (out[:, 26:] == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_small_pictures_are_resized_to_the_input(channels: int) -> None:
    pixels = random_pixels(0, 28, 28, channels)
    assert fit_pixels(pixels, 28, 28) is pixels
    out = fit_pixels(pixels, 14, 42)
    assert out.shape == (14, 42, channels)
    assert out.std() < pixels.std(), "not antialiased"


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 10**6))
def test_windows_stay_inside_and_are_consecutive(wanted: int, more: int, seed: int) -> None:
    length = wanted + more
    for generator in (None, random.Random(seed)):
        positions = window(length, wanted, generator)
        assert len(positions) == wanted
        assert 0 <= positions.min() <= positions.max() < length
        assert set(np.abs(np.diff(positions))) <= {1}


def test_a_window_reaches_an_eighth_beyond_either_end() -> None:
    generator = random.Random(0)
    starts = {tuple(window(16, 16, generator)[:3]) for _ in range(500)}
    assert starts == {(2, 1, 0), (1, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4)}


@pytest.mark.parametrize("augment", ["none", "flip", "crop"])
def test_the_label_map_moves_with_its_picture(augment: Augment) -> None:
    transform = PixelTransform(augment=augment, img_size=(16, 24), seed=0)
    labels = np.arange(20 * 26, dtype=np.uint16).reshape(20, 26)
    pixels = np.stack([labels % 256, labels // 256, labels * 0], axis=-1).astype(np.uint8)
    seen = set()
    for index in range(40):
        out, label_map = transform(pixels, labels, 0, index)  # type: ignore[arg-type]
        assert label_map is not None
        assert out.shape == (16, 24, 3)
        np.testing.assert_array_equal(out[..., 0] + 256 * out[..., 1].astype(int), label_map)
        seen.add(label_map.tobytes())
    assert len(seen) == {"none": 1, "flip": 2}.get(augment, len(seen))
    assert augment != "crop" or len(seen) > 30


def test_flips_are_fair() -> None:
    transform = PixelTransform(augment="flip", img_size=(4, 4), seed=0)
    pixels = random_pixels(0, 4, 4, 3)
    flipped = sum(not np.array_equal(transform(pixels, None, 3, k)[0], pixels) for k in range(2000))
    assert 900 < flipped < 1100


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("kind", ["pixels", "picture"])
def test_an_item_follows_from_seed_epoch_and_index(augment: Augment, kind: str) -> None:
    def augmented(seed: int, epoch: int, index: int) -> bytes:
        if kind == "pixels":
            transform = PixelTransform(augment=augment, img_size=(24, 16), seed=seed)
            return transform(random_pixels(0, 24, 16, 3), None, epoch, index)[0].tobytes()
        picture = Image.fromarray(random_pixels(0, 40, 50, 3))
        pixels, _ = PictureTransform(augment=augment, img_size=(24, 16), eval_ratio=1.0, seed=seed)(
            picture, None, epoch, index
        )
        assert pixels.shape == (24, 16, 3)
        assert pixels.flags.writeable
        return pixels.tobytes()

    random.seed(0)
    torch.manual_seed(0)
    first = [augmented(0, epoch, index) for epoch in range(3) for index in range(10)]
    random.seed(1)
    torch.manual_seed(1)
    again = [augmented(0, epoch, index) for epoch in reversed(range(3)) for index in reversed(range(10))]
    assert again[::-1] == first
    other = [augmented(1, epoch, index) for epoch in range(3) for index in range(10)]
    assert (other == first) == (augment == "none")
    assert len(set(first)) == {"none": 1, "flip": 2}.get(augment, len(set(first)))


def test_three_augment_always_changes_in_one_of_three_ways() -> None:
    picture = Image.fromarray(random_pixels(0, 32, 32, 3))
    grey = 0
    for index in range(60):
        with seeded(0, index):
            out = np.asarray(colour_augmentation("three_augment", (32, 32))(picture)).astype(int)
        grey += bool(np.ptp(out, axis=2).max() <= 2)
    assert 10 < grey < 32


def test_rand_augment_is_timms() -> None:
    from timm.data.auto_augment import RandAugment

    operations = colour_augmentation("rand_augment", (224, 224))
    assert isinstance(operations, RandAugment)
    assert operations.num_layers == 2
    assert len(operations.ops) == 15
    assert {op.magnitude for op in operations.ops} == {9}
    assert {op.magnitude_std for op in operations.ops} == {0.5}


def test_rand_augment_never_fails() -> None:
    """At its largest magnitude timm's posterise asks Pillow for 0 bits, an error since Pillow 13."""
    picture = Image.fromarray(random_pixels(0, 8, 8, 3))
    operations = colour_augmentation("rand_augment", (8, 8))
    for index in range(3000):
        with seeded("rand", index):
            operations(picture)


def test_augmentations_of_pictures_alone_are_refused_for_label_maps() -> None:
    for augment in AUGMENTS:
        check_augment(augment, with_label_maps=False)
    for augment in ("none", "flip", "crop"):
        check_augment(augment, with_label_maps=True)
    with pytest.raises(UserError, match=r"data.augment='rand_augment' .* use none, flip or crop"):
        check_augment("rand_augment", with_label_maps=True)
