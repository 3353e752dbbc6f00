"""What a run starts with, all of it from the config and its seed: data, model, optimizer, and the loss of a step."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.utils.data import Dataset

from patchscale.config import RunConfig, TrainingConfig
from patchscale.costs.counts import Counts, count
from patchscale.data.datasets import Splits, load_splits
from patchscale.data.seeding import seeded
from patchscale.models.adventurer import Adventurer
from patchscale.models.drop_path import batch_rows
from patchscale.models.patch_embed import initialise_as_released
from patchscale.models.ssd.selection import resolve_backend
from patchscale.quirks import SAMPLER_ROUNDS_TO
from patchscale.tasks import Task, build_task
from patchscale.training.batches import Batch, load_batches
from patchscale.training.checkpoint import Totals, TrainingState
from patchscale.training.compilation import compile_backbone
from patchscale.training.device import autocast
from patchscale.training.evaluate import evaluate
from patchscale.training.optim import build_optimizer
from patchscale.training.order import TrainingOrder


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The parts of one run."""

    config: RunConfig
    device: torch.device
    splits: Splits
    cost: Counts
    steps: int
    order: TrainingOrder
    mixup: Mixup | None
    task: Task
    state: TrainingState

    def mix(self, step: int, images: Tensor, targets: Tensor) -> Batch:
        """The batch after mixup or cutmix, which are drawn from (seed, step); writes to `images`."""
        if self.mixup is None:
            return images, targets
        with seeded(self.config.seed, "step", step):
            return self.mixup(images, targets)

    def loss(self, step: int, images: Tensor, targets: Tensor) -> Tensor:
        """Training loss of a mixed batch or a part of it; drop path is drawn from (seed, step)."""
        with seeded(self.config.seed, "step", step), autocast(self.device, self.config.training.precision):
            loss: Tensor = self.task(images, targets)["loss"]
            return loss

    def backward(self, step: int, images: Tensor, targets: Tensor, micro_batch_size: int) -> Tensor:
        """Add the gradients of the loss of a mixed batch, and return that loss.

        A batch in parts gives the same to rounding: every part counts by its share of images or labelled pixels.
        """
        parts = micro_batches(len(images), micro_batch_size)
        losses = []
        for rows in parts:
            with batch_rows(rows.start, len(images), images.device):
                loss = self.loss(step, images[rows], targets[rows])
                if len(parts) > 1:
                    loss = loss * (self.task.loss_terms(targets[rows]).to(loss) / self.task.loss_terms(targets))
                loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def batches(self, steps: range, *, num_workers: int | None = None) -> Iterator[Batch]:
        """The training batches of `steps`, on the device."""
        if num_workers is None:
            num_workers = self.config.execution.num_workers
        return load_batches(self.splits.train, self.order, steps, num_workers=num_workers, device=self.device)

    def evaluate(self, dataset: Dataset[Any], batch_size: int) -> dict[str, Any]:
        """Loss and metric on a split, with the moving average of the weights if there is one."""
        task = self.state.evaluated
        assert isinstance(task, Task)
        return evaluate(
            task,
            dataset,
            batch_size=batch_size,
            device=self.device,
            precision=self.config.training.precision,
            num_workers=self.config.execution.num_workers,
        )


def micro_batches(batch_size: int, micro_batch_size: int) -> list[slice]:
    """The rows of each part of a batch; the last may be smaller."""
    starts = range(0, batch_size, micro_batch_size)
    return [slice(start, min(start + micro_batch_size, batch_size)) for start in starts]


def set_up(config: RunConfig, device: torch.device) -> Setup:
    """Load the data and build everything at step 0; raises `UserError` for what the config asks in vain."""
    training = config.training
    splits = load_splits(config)
    with seeded(config.seed, "init"):
        task = build_task(config, splits)
        initialise_as_released(task.backbone, training.quirks)
    task.to(device).train()
    if isinstance(task.backbone, Adventurer):
        task.backbone.set_ssd_backend(config.execution.ssd_backend)
        # Refused now, if it cannot run here.
        resolve_backend(config.execution.ssd_backend, device, option="execution.ssd_backend ")
    ema = _moving_average(task, training)
    if config.execution.compile:
        compile_backbone(task.backbone)
    return Setup(
        config=config,
        device=device,
        splits=splits,
        cost=count(  # before training, so that a model without a known cost is refused early
            config.model.name,
            patch_size=config.model.patch_size,
            img_size=config.model.img_size,
            num_classes=splits.num_classes,
            task=config.task,
            pos_embed=config.model.pos_embed,
        ),
        steps=training.num_steps(len(splits.train)),
        order=_order(config, len(splits.train)),
        mixup=_mixup(config, splits.num_classes),
        task=task,
        state=TrainingState(
            task=task,
            optimizer=build_optimizer(task, training),
            ema=ema,
            totals=Totals(),
            evaluates_ema=training.eval_weights == "ema",
        ),
    )


def _mixup(config: RunConfig, num_classes: int) -> Mixup | None:
    """timm's Mixup: one of mixup and cutmix for every batch, label smoothing folded into the targets."""
    training = config.training
    if not (training.mixup or training.cutmix):
        return None
    return Mixup(
        mixup_alpha=training.mixup,
        cutmix_alpha=training.cutmix,
        label_smoothing=training.label_smoothing,
        num_classes=num_classes,
    )


def _order(config: RunConfig, num_images: int) -> TrainingOrder:
    drops = "repeated_augment_drops_rest" in config.training.quirks
    return TrainingOrder(
        config.seed,
        num_images,
        config.training.batch_size,
        repeats=config.data.repeated_augment,
        round_to=SAMPLER_ROUNDS_TO if drops else None,
    )


def _moving_average(task: Task, training: TrainingConfig) -> ModelEmaV3 | None:
    """timm's moving average with its warm-up of the decay, so that short runs are not held by their first weights."""
    if training.ema_decay is None:
        return None
    return ModelEmaV3(task, decay=training.ema_decay, use_warmup="ema_without_warmup" not in training.quirks)
