"""Which images make up which training step.

All epochs are laid end to end, each a fresh permutation of the training images, and every step takes the next
`batch_size` of them. So each batch is full, each image is seen once per epoch, and a batch is a function of
(seed, step): a resumed run, or one with more loader processes, sees the same batches.

Repeated augmentation (arXiv 1901.09335): every image of the permutation is drawn k times in a row, each time augmented
differently, and an epoch ends after as many draws as there are images. So it sees n/k images, rounded up, k times each
(the last one perhaps less often), and draws of one image mostly meet in one batch, as under the released sampler.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from patchscale.data.seeding import derive_seed
from patchscale.errors import UserError


class Order(Protocol):
    """From the number of a batch to the keys of its images."""

    def __call__(self, number: int) -> Sequence[Any]:
        """Keys of batch `number`, as the data set's `__getitem__` takes them."""
        ...


class TrainingOrder:
    """Step -> keys (epoch, index), endless; with `repeats` k, draw r in epoch e has the key (e * k + r, index).

    `round_to` keeps an epoch to whole batches of draws, their number rounded down to a multiple of it before, and drops
    the rest of the permutation, as the released code does (256). Raises `UserError` if nothing would be left.
    """

    def __init__(
        self, seed: int, num_images: int, batch_size: int, *, repeats: int = 1, round_to: int | None = None
    ) -> None:
        self.seed = seed
        self.num_images = num_images
        self.batch_size = batch_size
        self.repeats = repeats
        self.draws = num_images
        """Draws of an epoch."""
        if round_to is not None:
            self.draws = num_images // round_to * round_to // batch_size * batch_size
            if not self.draws:
                raise UserError(
                    f"training.quirks: repeated_augment_drops_rest leaves nothing of {num_images} training images in "
                    f"batches of {batch_size}: an epoch is rounded down to {round_to} images and to whole batches"
                )
        self._permutations: dict[int, list[int]] = {}

    def __call__(self, number: int) -> list[tuple[int, int]]:
        """The keys of step `number`, counted from 0."""
        first = number * self.batch_size
        places = (divmod(place, self.draws) for place in range(first, first + self.batch_size))
        return [
            (epoch * self.repeats + place % self.repeats, self._permutation(epoch)[place // self.repeats])
            for epoch, place in places
        ]

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
