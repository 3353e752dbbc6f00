"""Scenes are exact, deterministic, and never share a garment between splits."""

import hashlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from patchscale.data.scenes import GARMENTS, Scene, SceneDataset, picture_pool
from patchscale.errors import UserError

SPLITS = ("train", "val", "test")
CANVASES = st.integers(16, 70) | st.tuples(st.integers(16, 70), st.integers(16, 70))


def assert_same(a: Scene, b: Scene) -> None:
    for name in ("image", "label_map", "boxes", "masks", "labels"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert a.image_class == b.image_class


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SPLITS), st.integers(0, 10**9), st.integers(0, 2**40), CANVASES)
def test_truth_is_exact(split: str, index: int, seed: int, canvas: int | tuple[int, int]) -> None:
    scene = SceneDataset(split, 10**9 + 1, canvas, seed)[index]
    height, width = (canvas, canvas) if isinstance(canvas, int) else canvas
    assert scene.image.shape == (height, width, 3)
    assert scene.image.dtype == np.uint8
    assert (scene.label_map.dtype, scene.labels.dtype, scene.boxes.dtype) == (np.int64, np.int64, np.float32)
    assert 1 <= len(scene.labels) <= 4
    assert scene.masks.shape == (len(scene.labels), height, width)
    assert scene.masks.sum(axis=0).max() <= 1, "masks overlap"
    assert scene.masks.any(axis=(1, 2)).all(), "an invisible garment is listed"
    assert set(scene.labels.tolist()) <= set(range(10))

    rebuilt = ((scene.labels[:, None, None] + 1) * scene.masks).sum(axis=0)
    np.testing.assert_array_equal(scene.label_map, rebuilt)

    areas = scene.masks.sum(axis=(1, 2))
    assert scene.image_class == scene.labels[areas.argmax()]

    for box, mask in zip(scene.boxes, scene.masks, strict=True):
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("split", SPLITS)
def test_a_scene_does_not_depend_on_the_order_of_access(split: str) -> None:
    scenes = SceneDataset(split, 40, 48, seed=3)
    forward = [scenes[k] for k in range(40)]
    for k in np.random.default_rng(0).permutation(40):
        assert_same(SceneDataset(split, 41, 48, seed=3)[int(k)], forward[k])


def test_seeds_splits_and_indices_give_different_scenes() -> None:
    images = [
        SceneDataset(split, 8, 24, seed)[index].image.tobytes()
        for split in SPLITS
        for seed in (0, 1)
        for index in range(8)
    ]
    assert len(set(images)) == len(images)


def test_the_bytes_are_pinned() -> None:
    """If this fails on purpose, raise SCENES_VERSION."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for canvas in (48, (64, 33)):
            for index in range(20):
                scene = SceneDataset(split, 20, canvas, seed=0)[index]
                digest.update(scene.image.tobytes())
                digest.update(scene.label_map.astype("<i8").tobytes())
    assert digest.hexdigest() == "111369e285aba0e001a287c9f42e4847296d7502a599a80a887c0f5512e52804"


def test_splits_have_disjoint_garments() -> None:
    pools = {split: {picture.tobytes() for picture, _ in picture_pool(split)} for split in SPLITS}
    assert {split: len(pool) for split, pool in pools.items()} == {"train": 2000, "val": 250, "test": 500}
    assert not pools["train"] & pools["val"]
    assert not pools["train"] & pools["test"]
    assert not pools["val"] & pools["test"]


@pytest.mark.parametrize(("split", "per_class"), [("train", 200), ("val", 25), ("test", 50)])
def test_pools_are_balanced_and_every_garment_has_a_mask(split: str, per_class: int) -> None:
    pool = picture_pool(split)
    assert np.bincount([label for _, label in pool]).tolist() == [per_class] * len(GARMENTS)
    masks = np.stack([np.asarray(picture)[..., 1] for picture, _ in pool])
    assert set(np.unique(masks)) == {0, 255}
    assert (masks > 0).mean(axis=(1, 2)).min() > 0.05


def test_garments_keep_their_share_of_the_canvas() -> None:
    """The same scene at twice the size: the same classes at nearly the same places."""
    for index in range(50):
        small, large = (SceneDataset("train", 50, side, seed=0)[index] for side in (48, 96))
        enlarged = np.asarray(Image.fromarray(small.label_map.astype(np.uint8)).resize((96, 96), 0))
        assert (enlarged == large.label_map).mean() > 0.9


def test_garments_are_large_enough_to_be_learned() -> None:
    sides = []
    for index in range(300):
        scene = SceneDataset("train", 300, 48, seed=0, max_garments=1)[index]
        sides.append((scene.boxes[:, 2:] - scene.boxes[:, :2]).max())
    assert np.min(sides) >= 8
    assert np.max(sides) <= 32
    assert np.mean(sides) > 18


def test_classes_are_about_balanced() -> None:
    scenes = SceneDataset("train", 1000, 24, seed=0)
    counts = np.bincount([scenes[k].image_class for k in range(1000)], minlength=10)
    # The class of the largest garment: thin sandals and trousers win less often.
    assert counts.min() > 25
    assert counts.max() < 200


def test_number_of_garments_is_bounded() -> None:
    scenes = SceneDataset("val", 200, 32, seed=1, max_garments=2)
    assert {len(scenes[k].labels) for k in range(200)} == {1, 2}


def test_composing_is_fast() -> None:
    """About 0.22 ms a scene of 48 px on one core; the bound leaves room for a busy machine."""
    scenes = SceneDataset("train", 1000, 48, seed=0)
    scenes[0]
    best = np.inf
    for start in range(0, 500, 100):
        began = time.process_time()
        for index in range(start, start + 100):
            scenes[index]
        best = min(best, (time.process_time() - began) / 100)
    assert best < 1e-3


def test_misuse_is_explained() -> None:
    with pytest.raises(UserError, match=r"8x8 px are too small .* set model.img_size to 16 or more"):
        SceneDataset("train", 10, 8, seed=0)
    with pytest.raises(UserError, match=r"no scenes for split 'dev'; choose one of train, val, test"):
        SceneDataset("dev", 10, 32, seed=0)  # type: ignore[arg-type]
    with pytest.raises(IndexError):
        SceneDataset("train", 10, 32, seed=0)[10]
