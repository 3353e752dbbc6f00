"""Which images make up which training step, and loading them.

All epochs are laid end to end, each a fresh permutation of the training images, and every step takes the next
`batch_size` of them. So each batch is full, each image is seen once per epoch, and a batch is a function of
(seed, step): a resumed run, or one with more loader processes, sees the same batches.
"""

import ctypes
import math
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from patchscale.data.seeding import derive_seed
from patchscale.errors import RunFailed, UserError

Batch = tuple[Tensor, Tensor]
"""images [B, 3, H, W] and targets: classes [B], or label maps [B, H, W]."""


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


def load_batches(
    dataset: Dataset[Any], order: Order, numbers: range, *, num_workers: int, device: torch.device
) -> Iterator[Batch]:
    """Yield the batches `numbers`, on `device`.

    Raises `RunFailed("data")` if an image cannot be read, naming it in the words of the data set.
    """
    loader = DataLoader(
        _Batches(dataset, order),
        sampler=numbers,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        worker_init_fn=_follow_the_training_process,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # its own, so that making a loader draws nothing from the global one
    )
    for batch in loader:
        if isinstance(batch, _LoadingError):
            raise RunFailed("data", batch.message) from _LoaderTraceback(batch.traceback)
        images, targets = batch
        yield images.to(device, non_blocking=True), targets.to(device, non_blocking=True)


@dataclass(frozen=True)
class _LoadingError:
    """An error in a loader process; as a value it comes across with its words intact."""

    message: str
    traceback: str


class _LoaderTraceback(Exception):
    """Where loading failed, in the words of the process that loaded."""


class _Batches(Dataset[Batch | _LoadingError]):
    """Whole batches by number, so that a loader can start at any step."""

    def __init__(self, dataset: Dataset[Any], order: Order) -> None:
        self.dataset = dataset
        self.order = order

    def __getitem__(self, number: int) -> Batch | _LoadingError:
        try:
            images, targets = default_collate([self.dataset[key] for key in self.order(number)])
        except MemoryError:
            raise
        except Exception as error:
            words = str(error) if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {error}"
            return _LoadingError(f"batch {number}: {words}", traceback.format_exc())
        return images, targets


def _as_it_is(batch: Any) -> Any:
    return batch


def _follow_the_training_process(worker: int) -> None:
    """Live exactly as long as the training process."""
    # A terminal sends Ctrl-C to the whole process group; the training process decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A loader holds a copy of the run's lock: outliving a killed run, as it would for seconds, it would block a resume.
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
