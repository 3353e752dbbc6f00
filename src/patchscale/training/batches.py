"""Loading batches: whole ones by number, in loader processes that live as long as the training process.

A loader process decodes, augments and packs bytes; what is left, from bytes to what a model reads, is done on the
device, in one place: `to_device`. Images cross from process to process, and to a GPU, at a quarter of their size.
"""

import ctypes
import signal
import sys
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from patchscale.data.transforms import normalised
from patchscale.errors import RunFailed, UserError
from patchscale.training.fetch_ahead import fetched_ahead
from patchscale.training.order import Order

Batch = tuple[Tensor, Any]
"""images [B, 3, H, W] and targets: classes [B], label maps [B, H, W], or a list with a dictionary an image."""


def load_batches(
    dataset: Dataset[Any], order: Order, numbers: Sequence[int], *, num_workers: int, device: torch.device
) -> Generator[Batch, None, None]:
    """Yield the batches `numbers`, on `device`, ready for a model; closed early, it ends the loader processes.

    Raises `RunFailed("data")` if an image cannot be read, naming it in the words of the data set.
    """
    on_cpu = device.type == "cpu"
    made = host_batches(
        dataset, order, numbers, num_workers=num_workers, pin_memory=device.type == "cuda", as_bytes=not on_cpu
    )
    with closing(made) as batches:
        for images, targets in batches:
            yield (images, targets) if on_cpu else to_device(images, targets, device)


def host_batches(
    dataset: Dataset[Any],
    order: Order,
    numbers: Sequence[int],
    *,
    num_workers: int,
    pin_memory: bool = False,
    as_bytes: bool = True,
) -> Generator[Batch, None, None]:
    """Yield the batches `numbers` in host memory: as loader processes make them, or ready for a model on the CPU."""
    loader = DataLoader(
        _Batches(dataset, order),
        sampler=numbers,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        worker_init_fn=_follow_the_training_process,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # its own, so that making a loader draws nothing from the global one
    )
    loaded = iter(loader)  # not in a thread: loader processes die with the one that starts them
    ready: Iterator[Any] = loaded if as_bytes else map(_on_cpu, loaded)
    batches: AbstractContextManager[Iterator[Any]] = nullcontext(ready)
    if num_workers and not pin_memory:  # to pin memory torch has such a thread itself
        batches = closing(fetched_ahead(ready))
    try:
        with batches as each:
            for batch in each:
                if isinstance(batch, _LoadingError):
                    raise RunFailed("data", batch.message) from _LoaderTraceback(batch.traceback)
                yield batch
    finally:
        if num_workers:
            # torch would, once nothing refers to them any more; but the traceback of an error does.
            loaded._shutdown_workers()  # type: ignore[attr-defined]


def _on_cpu(batch: "Batch | _LoadingError") -> "Batch | _LoadingError":
    return batch if isinstance(batch, _LoadingError) else to_device(batch[0], batch[1], torch.device("cpu"))


def to_device(images: Tensor, targets: Any, device: torch.device) -> Batch:
    """A batch on the device; images of bytes become float32, normalised, to the last bit as `to_tensor` makes them."""
    images, targets = images.to(device, non_blocking=True), _on_device(targets, device)
    return normalised(images) if images.dtype == torch.uint8 else images, targets


def _on_device(targets: Any, device: torch.device) -> Any:
    """Tensors, also those in lists and dictionaries; all else stays as it is."""
    if isinstance(targets, Tensor):
        return targets.to(device, non_blocking=True)
    if isinstance(targets, list):
        return [_on_device(each, device) for each in targets]
    if isinstance(targets, dict):
        return {name: _on_device(each, device) for name, each in targets.items()}
    return targets


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
        self.item = getattr(dataset, "item", dataset.__getitem__)
        self.collate = getattr(dataset, "collate", default_collate)
        self.order = order

    def __getitem__(self, number: int) -> Batch | _LoadingError:
        try:
            images, targets = self.collate([self.item(key) for key in self.order(number)])
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
