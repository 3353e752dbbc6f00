"""Which images make up which training step.

All epochs are laid end to end, each a fresh permutation of the training images, and every step takes the next
`batch_size` of them. So each batch is full, each image is seen once per epoch, and a batch is a function of
(seed, step): a resumed run, or one with more loader processes, sees the same batches.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from patchscale.data.seeding import derive_seed


class Order(Protocol):
    """From the number of a batch to the keys of its images."""

    def __call__(self, number: int) -> Sequence[Any]:
        """Keys of batch `number`, as the data set's `__getitem__` takes them."""
        ...


class TrainingOrder:
    """Step -> keys (epoch, index), endless."""

    def __init__(self, seed: int, num_images: int, batch_size: int) -> None:
        self.seed = seed
        self.num_images = num_images
        self.batch_size = batch_size
        self._permutations: dict[int, list[int]] = {}

    def __call__(self, number: int) -> list[tuple[int, int]]:
        """The keys of step `number`, counted from 0."""
        first = number * self.batch_size
        places = (divmod(place, self.num_images) for place in range(first, first + self.batch_size))
        return [(epoch, self._permutation(epoch)[place]) for epoch, place in places]

    def _permutation(self, epoch: int) -> list[int]:
        if epoch not in self._permutations:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            # A batch needs this epoch or, where it crosses a border, the one before as well.
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations[epoch] = torch.randperm(self.num_images, generator=generator).tolist()
        return self._permutations[epoch]


class PlainOrder:
    """Batch number -> consecutive indices; the last batch may be smaller."""

    def __init__(self, num_images: int, batch_size: int) -> None:
        self.num_images = num_images
        self.batch_size = batch_size

    def __call__(self, number: int) -> list[int]:
        """The indices of batch `number`, counted from 0."""
        first = number * self.batch_size
        return list(range(first, min(first + self.batch_size, self.num_images)))

    def __len__(self) -> int:
        return math.ceil(self.num_images / self.batch_size)
