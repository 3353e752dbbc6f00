"""One pass over a split, and a trained run brought back to do it."""

from typing import Any

import torch
from torch.utils.data import Dataset

from patchscale.data.datasets import Splits, load_splits
from patchscale.errors import UserError
from patchscale.runs.record import RunDirectory
from patchscale.tasks import Task, build_task
from patchscale.training.batches import load_batches
from patchscale.training.checkpoint import WEIGHTS, load_weights
from patchscale.training.device import Precision, autocast
from patchscale.training.order import PlainOrder


@torch.inference_mode()
def evaluate(
    task: Task,
    dataset: Dataset[Any],
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision = "fp32",
    num_workers: int = 0,
) -> dict[str, Any]:
    """Loss, metric and extras of `task` over all of `dataset`, in its order; the task's mode is restored.

    The loss is plain cross-entropy: no smoothing, no mixing.
    """
    was_training = task.training
    task.eval()
    meter = task.new_meter()
    order = PlainOrder(len(dataset), batch_size)  # type: ignore[arg-type]
    batches = load_batches(dataset, order, range(len(order)), num_workers=num_workers, device=device)
    for images, targets in batches:
        with autocast(device, precision):
            logits = task(images, targets)["logits"]
        meter.update(logits, targets)
    task.train(was_training)
    return meter.compute()


def load_trained(run: RunDirectory) -> tuple[Task, Splits]:
    """The task with its final weights (the moving average, if the run kept one), on the CPU, and its data.

    Raises `UserError` if the run is not finished or its weights are damaged.
    """
    config = run.config()
    weights = run.checkpoint_dir / WEIGHTS
    if not weights.exists():
        raise UserError(
            f"{run.path}: no final weights (the run is {run.status()['state']}); "
            f"finish it with: patchscale train --run-dir {run.path}"
        )
    splits = load_splits(config)
    task = build_task(config, splits)
    load_weights(weights, task)
    return task.eval(), splits
