import itertools

import pytest
import torch
from torch.utils.data import Dataset

from patchscale.config import TrainingConfig, build_config
from patchscale.data.datasets import load_splits
from patchscale.errors import RunFailed, UserError
from patchscale.training.batches import host_batches, load_batches
from patchscale.training.order import PlainOrder, TrainingOrder

CPU = torch.device("cpu")


class Keys(Dataset):
    """The image is its key (epoch, index)."""

    def __init__(self, bad=None):
        self.bad = bad

    def __getitem__(self, key):
        if key == self.bad:
            raise UserError("/data/cat.png: not an image")
        return torch.tensor(key, dtype=torch.float32), torch.tensor(0)


def batches(order, numbers, num_workers=0, dataset=None):
    loaded = load_batches(dataset or Keys(), order, numbers, num_workers=num_workers, device=CPU)
    return [images.int().tolist() for images, _ in loaded]


def test_every_image_is_seen_once_per_epoch_in_a_new_order():
    order = TrainingOrder(seed=3, num_images=10, batch_size=4)
    stream = list(itertools.chain.from_iterable(order(step) for step in range(5)))
    assert [epoch for epoch, _ in stream] == [0] * 10 + [1] * 10
    first, second = [index for _, index in stream[:10]], [index for _, index in stream[10:]]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second != list(range(10))


def test_a_batch_is_a_function_of_seed_and_step():
    forwards = TrainingOrder(seed=0, num_images=7, batch_size=5)
    backwards = TrainingOrder(seed=0, num_images=7, batch_size=5)
    steps = range(12)
    assert [forwards(s) for s in steps] == [backwards(s) for s in reversed(steps)][::-1]
    assert forwards(3) != TrainingOrder(seed=1, num_images=7, batch_size=5)(3)


def test_a_batch_may_be_larger_than_the_data_set():
    keys = TrainingOrder(seed=0, num_images=3, batch_size=8)(0)
    assert [epoch for epoch, _ in keys] == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_loader_processes_do_not_change_the_batches(num_workers):
    order = TrainingOrder(seed=0, num_images=50, batch_size=8)
    expected = [[list(key) for key in order(step)] for step in range(2, 12)]
    assert batches(order, range(2, 12), num_workers) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_fails_the_run_and_is_named(num_workers):
    order = TrainingOrder(seed=0, num_images=6, batch_size=2)
    bad = order(2)[1]
    with pytest.raises(RunFailed, match=r"batch 2: /data/cat.png: not an image") as caught:
        batches(order, range(4), num_workers, Keys(bad))
    assert caught.value.kind == "data"
    assert "__getitem__" in str(caught.value.__cause__)


def test_loading_draws_nothing_from_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    batches(TrainingOrder(seed=0, num_images=6, batch_size=2), range(3))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_of_bytes_arrive_as_the_images_of_the_split(num_workers):
    config = build_config(
        {
            "model": {"name": "vit_test", "patch_size": 4, "img_size": [16, 24]},
            "data": {"name": "scenes", "train_images": 12, "val_images": 4, "test_images": 6, "augment": "crop"},
        }
    )
    split = load_splits(config).train
    order = TrainingOrder(seed=0, num_images=12, batch_size=8)
    for number, (images, targets) in enumerate(
        load_batches(split, order, range(3), num_workers=num_workers, device=CPU)
    ):
        items = [split[key] for key in order(number)]
        assert torch.equal(images, torch.stack([image for image, _ in items]))
        assert targets.tolist() == [int(target) for _, target in items]
    ((images, _),) = host_batches(split, order, range(1), num_workers=num_workers)
    assert images.dtype == torch.uint8


def test_plain_order_covers_all_images_once():
    order = PlainOrder(num_images=10, batch_size=4)
    assert [order(number) for number in range(len(order))] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        (TrainingConfig(steps=7, batch_size=32), 7),
        (TrainingConfig(epochs=1, batch_size=32), 10),
        (TrainingConfig(epochs=1, batch_size=30), 11),
        (TrainingConfig(epochs=0.1, batch_size=32), 1),
        (TrainingConfig(epochs=0.001, batch_size=32), 1),
        (TrainingConfig(epochs=2.5, batch_size=64), 13),
    ],
)
def test_steps_are_epochs_rounded_up_to_full_batches(training, steps):
    assert training.num_steps(320) == steps
