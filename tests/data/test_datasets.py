"""Splits as the training loop reads them, for every kind of data set."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from patchscale.data.datasets import Splits, load_splits
from patchscale.data.named import DEBIAN_FASHION_MNIST
from patchscale.errors import UserError

from .conftest import MakeConfig, write_classes, write_pairs

needs_fashion_mnist = pytest.mark.skipif(
    not DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)

KINDS = ["scenes", "scenes-segmentation", "image_folder", "mask_folder"]


@pytest.fixture
def splits_of(tmp_path: Path, make_config: MakeConfig):
    """Small splits of a kind, with 16 x 24 px inputs."""

    def make(kind: str, augment: str = "crop", **more: object) -> Splits:
        fields: dict[str, object] = {"img_size": [16, 24], "augment": augment, **more}
        if kind.startswith("scenes"):
            fields |= {"name": "scenes", "train_images": 12, "val_images": 4, "test_images": 6}
        if kind.endswith("segmentation") or kind == "mask_folder":
            fields["task"] = "segmentation"
        if kind == "image_folder":
            write_classes(tmp_path / "classes", {"cat": 12, "dog": 8})
            fields |= {"name": kind, "root": str(tmp_path / "classes"), "val_fraction": 0.2}
        if kind == "mask_folder":
            write_pairs(tmp_path / "pairs", "train", 10)
            fields |= {"name": kind, "root": str(tmp_path / "pairs"), "val_fraction": 0.2, "num_classes": 3}
        return load_splits(make_config(**fields))

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_items_are_normalised_tensors_of_the_models_size(splits_of, kind: str) -> None:
    splits = splits_of(kind)
    for dataset, key in ((splits.train, (3, 1)), (splits.val, 0), (splits.test, 1)):
        image, target = dataset[key]
        assert (image.shape, image.dtype) == ((3, 16, 24), torch.float32)
        assert -2.2 < image.min() < image.max() < 2.7
        assert target.dtype == torch.int64
        if splits.record["task"] == "segmentation":
            assert target.shape == (16, 24)
            assert set(target.unique().tolist()) <= {*range(splits.num_classes), splits.ignore_index}
        else:
            assert target.shape == ()
            assert 0 <= target < splits.num_classes


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_is_plain_and_says_what_was_done(splits_of, kind: str) -> None:
    splits = splits_of(kind)
    record = json.loads(json.dumps(splits.record))
    assert record == splits.record
    assert record["images"] == {"train": len(splits.train), "val": len(splits.val), "test": len(splits.test)}
    assert record["num_classes"] == splits.num_classes == len(splits.class_names)
    assert len(record["fingerprint"]) == 64
    assert record["eval_protocol"]
    assert record["normalisation"]["mean"] == [0.485, 0.456, 0.406]
    if kind == "image_folder":
        assert sum(record["class_counts"]["train"].values()) == 12
        assert record["eval_crop_ratio"] == 0.875


class _Keyed(Dataset):
    """The training split under the plain numbers of a list of keys."""

    def __init__(self, dataset, keys) -> None:
        self.dataset, self.keys = dataset, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int):
        return self.dataset[self.keys[number]]


@pytest.mark.parametrize(
    ("kind", "augment"),
    [
        *[("image_folder", "three_augment"), ("image_folder", "rand_augment"), ("image_folder", "crop")],
        *[("scenes", "flip"), ("scenes", "rand_augment"), ("scenes-segmentation", "crop"), ("mask_folder", "crop")],
    ],
)
def test_batches_do_not_depend_on_loader_processes_or_history(splits_of, kind: str, augment: str) -> None:
    keys = [(epoch, index) for epoch in range(2) for index in (3, 1, 0, 5, 2, 4)]
    seen = []
    for num_workers in (0, 2):
        torch.manual_seed(num_workers)
        dataset = splits_of(kind, augment).train
        seen.append(list(DataLoader(_Keyed(dataset, keys), batch_size=4, num_workers=num_workers)))
    for (images, targets), (images_2, targets_2) in zip(*seen, strict=True):
        assert torch.equal(images, images_2)
        assert torch.equal(targets, targets_2)
    backwards = [dataset[key] for key in reversed(keys)][::-1]
    assert torch.equal(torch.stack([image for image, _ in backwards]), torch.cat([images for images, _ in seen[0]]))
    assert not torch.equal(dataset[0, 0][0], dataset[1, 0][0]) or augment == "flip"


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_not_augmented_and_the_seed_only_augments(splits_of, kind: str) -> None:
    first, second = splits_of(kind, "crop", seed=0), splits_of(kind, "crop", seed=1)
    plain = splits_of(kind, "none")
    for split in ("val", "test"):
        for index in range(len(getattr(first, split))):
            image = getattr(first, split)[index][0]
            assert torch.equal(image, getattr(second, split)[index][0])
            assert torch.equal(image, getattr(plain, split)[index][0])
    assert first.record["fingerprint"] == second.record["fingerprint"]
    assert not torch.equal(first.train[0, 0][0], second.train[0, 0][0])
    assert torch.equal(plain.train[0, 0][0], plain.train[7, 0][0])


@pytest.mark.parametrize("kind", KINDS)
def test_another_split_seed_is_another_split(splits_of, kind: str) -> None:
    assert splits_of(kind, split_seed=0).record["fingerprint"] != splits_of(kind, split_seed=1).record["fingerprint"]


def test_scenes_come_in_any_number_and_are_the_same_at_every_patch_size(make_config: MakeConfig) -> None:
    default = load_splits(make_config(name="scenes"))
    assert default.record["images"] == {"train": 4096, "val": 512, "test": 1024}
    assert (default.num_classes, default.ignore_index) == (10, None)
    coarse = load_splits(make_config(name="scenes", patch_size=16))
    assert torch.equal(default.test[5][0], coarse.test[5][0])
    assert coarse.record["fingerprint"] == default.record["fingerprint"]


def test_segmentation_scenes_have_a_background_class(make_config: MakeConfig) -> None:
    splits = load_splits(make_config(name="scenes", task="segmentation", train_images=8))
    assert splits.num_classes == 11
    assert splits.class_names[0] == "background"
    assert {0} < set(splits.train[0, 0][1].unique().tolist())


def test_scenes_that_do_not_fit_in_memory_are_composed_again(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(name="scenes", task="segmentation", train_images=8)
    kept = load_splits(config)
    monkeypatch.setattr("patchscale.data.sources.SCENE_MEMORY_BYTES", 0)
    composed = load_splits(config)
    for index in (3, 3, 1):
        for a, b in zip(kept.train[0, index], composed.train[0, index], strict=True):
            assert torch.equal(a, b)


def test_augmentations_for_pictures_only_are_refused_for_segmentation(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"data.augment='three_augment'"):
        load_splits(make_config(name="scenes", task="segmentation", augment="three_augment"))


def test_scenes_smaller_than_a_garment(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"set model.img_size to 16 or more"):
        load_splits(make_config(name="scenes", img_size=8))


@needs_fashion_mnist
def test_fashion_mnist_from_debian(tmp_path: Path, make_config: MakeConfig) -> None:
    fields = {"name": "fashion_mnist", "root": str(tmp_path), "img_size": 28}
    splits = load_splits(make_config(**fields, augment="none"))
    assert splits.record["images"] == {"train": 54_000, "val": 6_000, "test": 10_000}
    assert set(splits.record["class_counts"]["train"].values()) == {5_400}
    assert splits.class_names[9] == "Ankle boot"
    train, val = splits.train.source.indices, splits.val.source.indices
    assert np.intersect1d(train, val).size == 0
    image, label = splits.test[0]
    assert image.shape == (3, 28, 28)
    assert int(label) == 9

    small = load_splits(make_config(**fields, train_images=100, val_images=20, test_images=50))
    assert small.record["images"] == {"train": 100, "val": 20, "test": 50}
    assert set(small.record["class_counts"]["test"].values()) == {5}
    assert set(small.train.source.indices) < set(train)
    with pytest.raises(UserError, match=r"data.test_images=10001, but the split has 10000"):
        load_splits(make_config(**fields, test_images=10_001))
    resized = load_splits(make_config(**fields | {"img_size": [12, 40]}, augment="rand_augment"))
    assert resized.train[0, 0][0].shape == (3, 12, 40)
