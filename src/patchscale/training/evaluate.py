"""One pass over a split."""

import math
from contextlib import closing
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from patchscale.tasks import Task
from patchscale.tasks.base import Meter
from patchscale.training.batches import load_batches
from patchscale.training.collective import on_every_rank
from patchscale.training.device import Precision, autocast
from patchscale.training.distributed import ALONE, Ranks
from patchscale.training.order import PlainOrder


def evaluate(
    task: Task,
    dataset: Dataset[Any],
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision = "fp32",
    num_workers: int = 0,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Loss, metric and extras of `task` over all of `dataset`, in its order; the task's mode is restored.

    The loss is plain cross-entropy: no smoothing, no mixing. Several ranks take turns with the batches, and all get the
    outcome; those left over in the last round compute a batch that does not count, as sharded weights want all in it.
    """
    was_training = task.training
    task.eval()
    meter = task.new_meter()
    order = PlainOrder(len(dataset), batch_size)  # type: ignore[arg-type]
    rounds = range(ranks.group, math.ceil(len(order) / ranks.groups) * ranks.groups, ranks.groups)
    numbers = [min(number, len(order) - 1) for number in rounds]
    batches = load_batches(dataset, order, numbers, num_workers=num_workers, device=device)
    # Tensors of inference mode would stay behind where weights are gathered from shards.
    with closing(batches), torch.inference_mode() if ranks.size == 1 else torch.no_grad():
        for number, (images, targets) in zip(rounds, batches, strict=True):
            ranks.watch.moved(f"evaluating in round {1 + number // ranks.groups} of {len(rounds)}")
            with autocast(device, precision):
                logits = task(images, targets)["logits"]
            if number < len(order):
                meter.update(logits, targets)
    task.train(was_training)
    return merged(meter, task, ranks).compute()


def merged(meter: Meter, task: Task, ranks: Ranks) -> Meter:
    """A meter that has counted what those of all ranks have."""
    if ranks.size == 1:
        return meter
    counted = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in vars(meter).items()}
    total = task.new_meter()
    for rank, values in enumerate(on_every_rank(lambda: counted)):
        if rank % ranks.sharing == 0:  # ranks that share images have counted the same
            other = task.new_meter()
            vars(other).update(values)
            total.merge(other)
    return total
