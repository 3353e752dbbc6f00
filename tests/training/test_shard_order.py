import itertools

import numpy as np
import pytest

from patchscale.training.shard_order import WindowOrder

SHARDS = np.random.default_rng(0).permutation(np.repeat(np.arange(7), 5))
"""Seven shards of five images, which are numbered across them."""


def test_every_image_once_per_epoch_and_few_shards_at_a_time():
    order = WindowOrder(3, SHARDS, 5, window=2)
    stream = list(itertools.chain.from_iterable(order(step) for step in range(14)))
    assert [epoch for epoch, _ in stream] == [0] * 35 + [1] * 35
    epochs = [[index for _, index in stream[:35]], [index for _, index in stream[35:]]]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(35))
    assert epochs[0] != epochs[1]
    windows = [[set(SHARDS[epoch[first : first + 10]]) for first in range(0, 35, 10)] for epoch in epochs]
    assert [len(window) for window in windows[0]] == [2, 2, 2, 1]
    assert windows[0] != windows[1], "shards are shuffled anew"
    changes = np.count_nonzero(np.diff(SHARDS[epochs[0][:10]]))
    assert changes > 2, "images of a window are mixed"


def test_a_batch_is_a_function_of_seed_and_step():
    forwards, backwards = WindowOrder(0, SHARDS, 4, window=3), WindowOrder(0, SHARDS, 4, window=3)
    steps = range(20)
    assert [forwards(s) for s in steps] == [backwards(s) for s in reversed(steps)][::-1]
    assert forwards(3) != WindowOrder(1, SHARDS, 4, window=3)(3)
    assert forwards(3) != WindowOrder(0, SHARDS, 4, window=2)(3)


@pytest.mark.parametrize("window", [1, 7, 100])
def test_any_window_will_do(window):
    keys = [WindowOrder(0, SHARDS, 35, window=window, repeats=1)(epoch) for epoch in range(2)]
    assert all(sorted(index for _, index in epoch) == list(range(35)) for epoch in keys)
