import numpy as np
import pytest
from PIL import Image

from patchscale.config import TrainingConfig, build_config
from patchscale.costs.workload import SCENE_TRAIN_IMAGES, workload
from patchscale.data.datasets import SCENES_PER_SPLIT, load_splits
from patchscale.data.named import DEBIAN_FASHION_MNIST
from patchscale.training.batches import number_of_steps


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_scenes_are_as_many_as_the_data_set_makes(task):
    config = build_config({"task": task, "model": {"img_size": 32}})
    splits = load_splits(config)
    found = workload(config)
    assert found.train_images == len(splits.train) == SCENE_TRAIN_IMAGES == SCENES_PER_SPLIT["train"]
    assert found.num_classes == splits.num_classes


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="needs Debian's dataset-fashion-mnist")
@pytest.mark.parametrize("options", [{}, {"val_fraction": 0.25}, {"train_images": 1000}])
def test_fashion_mnist_is_as_large_as_the_data_set(options, tmp_path):
    config = build_config(
        {
            "data": {"name": "fashion_mnist", "root": str(tmp_path), **options},
            "model": {"patch_size": 4, "img_size": 28},
        }
    )
    splits = load_splits(config)
    assert workload(config).train_images == len(splits.train)
    assert workload(config).num_classes == splits.num_classes


def test_a_folder_is_counted(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name / f"{number}.png")
    config = build_config({"data": {"name": "image_folder", "root": str(tmp_path)}})
    found = workload(config)
    assert found.train_images == len(load_splits(config).train)
    assert found.num_classes == 2


@pytest.mark.parametrize("duration", [{"epochs": 0.1}, {"epochs": 3}, {"steps": 7}, {"epochs": 0.001}])
@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_steps_are_those_of_the_training_loop(duration, batch_size):
    config = build_config({"training": {**duration, "batch_size": batch_size}, "data": {"train_images": 320}})
    steps = number_of_steps(TrainingConfig(**duration, batch_size=batch_size), 320)
    assert workload(config).images_seen == steps * batch_size
