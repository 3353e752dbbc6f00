import numpy as np
import pytest
from PIL import Image

from patchscale.config import build_config
from patchscale.costs.workload import workload
from patchscale.data.datasets import load_splits
from patchscale.data.named import DEBIAN_FASHION_MNIST
from patchscale.data.shard_writer import write_shards


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_scenes_are_as_many_as_the_data_set_makes(task):
    config = build_config({"task": task, "model": {"img_size": 32}})
    splits = load_splits(config)
    found = workload(config)
    assert found.train_images == len(splits.train)
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
    write_shards(tmp_path, tmp_path / "shards", shard_bytes=1000)
    assert workload(build_config({"data": {"name": "shards", "root": str(tmp_path / "shards")}})) == found
    elsewhere = build_config({"data": {"name": "shards", "root": "http://127.0.0.1:9/shards"}})
    assert workload(elsewhere).train_images is None
