"""The order for shards of which not all are at hand: shards shuffled, images mixed within a window of shards.

An epoch shuffles the shards, takes `window` of them at a time, and shuffles the images of each window. So no more
than two windows of shards are in use at once, and a batch is still a function of (seed, step).
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchscale.data.datasets import TrainSplit
from patchscale.data.seeding import derive_seed
from patchscale.data.shards import ShardList
from patchscale.data.sources import PictureSource
from patchscale.training.order import TrainingOrder


def shards_of(split: TrainSplit) -> NDArray[np.int64]:
    """Which shard each image of a split of shards is in, [N]."""
    assert isinstance(split.source, PictureSource)
    assert isinstance(split.source.files, ShardList)
    return split.source.files.shards


class WindowOrder(TrainingOrder):
    """Step -> keys (epoch, index), endless; `shards` says which shard each image is in, [N]."""

    def __init__(self, seed: int, shards: ArrayLike, batch_size: int, window: int, **more: Any) -> None:
        shards = np.asarray(shards)
        super().__init__(seed, len(shards), batch_size, **more)
        by_shard = np.argsort(shards, kind="stable")
        self.members = np.split(by_shard, np.flatnonzero(np.diff(shards[by_shard])) + 1)
        self.window = window

    def _permutation(self, epoch: int) -> list[int]:
        if epoch not in self._permutations:
            generator = np.random.default_rng(derive_seed(self.seed, "order", epoch))
            shards = generator.permutation(len(self.members))
            windows = [shards[first : first + self.window] for first in range(0, len(shards), self.window)]
            mixed = [generator.permutation(np.concatenate([self.members[i] for i in window])) for window in windows]
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations[epoch] = np.concatenate(mixed).tolist()
        return self._permutations[epoch]
