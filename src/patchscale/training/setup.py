"""What a run starts with, all of it from the config and its seed: data, model, optimizer, and the loss of a step."""

import math
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import Dataset

from patchscale.config import ExecutionConfig, RunConfig, TrainingConfig
from patchscale.costs.counts import Counts, count
from patchscale.data.datasets import Splits, TrainSplit, load_splits
from patchscale.data.seeding import seeded
from patchscale.errors import UserError
from patchscale.models.adventurer import Adventurer
from patchscale.models.drop_path import batch_rows
from patchscale.models.patch_embed import initialise_as_released
from patchscale.models.ssd.selection import resolve_backend
from patchscale.quirks import SAMPLER_ROUNDS_TO
from patchscale.tasks import Task, build_task
from patchscale.training.batches import Batch, load_batches
from patchscale.training.checkpoint import Totals, TrainingState
from patchscale.training.collective import on_every_rank
from patchscale.training.compilation import compile_backbone
from patchscale.training.device import autocast
from patchscale.training.distributed import ALONE, Ranks, RowsOrder, rows_of_part
from patchscale.training.evaluate import evaluate
from patchscale.training.memory import needs_whole_batch
from patchscale.training.optim import build_optimizer
from patchscale.training.order import TrainingOrder
from patchscale.training.shard_order import WindowOrder, shards_of
from patchscale.training.sharding import fill, synchronised, train_together


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
    ranks: Ranks
    together: nn.Module
    """What training steps call: the task, or DDP around it."""
    rows: list[int]
    """Of a batch, the rows that this rank has."""
    most_rows: int
    """So many has the rank with the most."""

    @cached_property
    def _held(self) -> Tensor | None:
        return None if self.ranks.size == 1 else torch.tensor(self.rows, device=self.device)

    def batch_rows(self, start: int, images: Tensor) -> AbstractContextManager[None]:
        """Around the passes of the rank's images from `start` on; `images` are all of them."""
        batch_size = len(images) if self._held is None else self.config.training.batch_size
        return batch_rows(start, batch_size, images.device, held=self._held)

    def mix(self, step: int, images: Tensor, targets: Tensor) -> Batch:
        """The batch after mixup or cutmix, which are drawn from (seed, step); writes to `images`."""
        if self.mixup is None:
            return images, targets
        with seeded(self.config.seed, "step", step):
            return self.mixup(images, targets)

    def loss(self, step: int, images: Tensor, targets: Tensor) -> Tensor:
        """Training loss of a mixed batch or a part of it; drop path is drawn from (seed, step)."""
        return self._loss(self.task, step, images, targets)

    def _loss(self, model: nn.Module, step: int, images: Tensor, targets: Tensor) -> Tensor:
        with seeded(self.config.seed, "step", step), autocast(self.device, self.config.training.precision):
            loss: Tensor = model(images, targets)["loss"]
            return loss

    def backward(self, step: int, images: Tensor, targets: Tensor, micro_batch_size: int) -> Tensor:
        """Add the gradients of the loss of a mixed batch, and return that loss; given this rank's rows of the batch.

        A batch in parts gives the same to rounding: every part counts by its share of images or labelled pixels. A rank
        with fewer parts than others begins with passes that count for nothing, as sharded weights want all in each.
        """
        parts = micro_batches(len(images), micro_batch_size)
        idle = max(0, math.ceil(self.most_rows / micro_batch_size) - len(parts)) if self.ranks.size > 1 else 0
        whole = idle + len(parts) == 1 and self.ranks.size == 1
        terms = self.ranks.sum(self.task.loss_terms(targets)).clamp(min=1)
        losses = []
        for number, rows in enumerate([parts[0]] * idle + parts, start=1):
            last = number == idle + len(parts)
            with self.batch_rows(rows.start, images), synchronised(self.together, last=last):
                loss = self._loss(self.together, step, images[rows], targets[rows])
                if not whole:
                    counted = self.task.loss_terms(targets[rows]).to(loss) if number > idle else 0.0
                    loss = loss * (counted / terms)
                # Ranks that share images have the same loss, and their gradients are added up too.
                loss.backward(None if self.ranks.sharing == 1 else torch.full_like(loss, 1 / self.ranks.sharing))
            losses.append(loss.detach())
        return self.ranks.sum(torch.stack(losses).sum())

    def batches(self, steps: range, *, num_workers: int | None = None) -> Generator[Batch, None, None]:
        """This rank's rows of the training batches of `steps`, on the device."""
        if num_workers is None:
            num_workers = self.config.execution.num_workers
        order = self.order if self.ranks.size == 1 else RowsOrder(self.order, self.rows)
        return load_batches(self.splits.train, order, steps, num_workers=num_workers, device=self.device)

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
            ranks=self.ranks,
        )

    @contextmanager
    def whole_at_first(self) -> Iterator[TrainingState]:
        """The state with whole weights, to be changed before the first step; sharded ones get what a twin is given."""
        if self.together is not self.task or self.ranks.size == 1:
            yield self.state
            return
        twin = _drawn(self.config, self.splits)
        yield replace(self.state, task=twin, ema=None)
        for model in (self.task, None if self.state.ema is None else self.state.ema.module):
            if model is not None:
                fill(model, twin.state_dict())


def micro_batches(batch_size: int, micro_batch_size: int) -> list[slice]:
    """The rows of each part of a batch; the last may be smaller."""
    starts = range(0, batch_size, micro_batch_size)
    return [slice(start, min(start + micro_batch_size, batch_size)) for start in starts]


def set_up(config: RunConfig, device: torch.device, ranks: Ranks = ALONE) -> Setup:
    """Load the data and build everything at step 0; raises `UserError` for what the config asks in vain."""
    training, execution = config.training, config.execution
    with ranks.watch.preparing("preparing the data"):
        splits = load_splits(config)
    _require_same_data_on_all_ranks(splits.record)
    ranks.watch.moved("building the model")
    rows = [
        rows_of_part(training.batch_size, part, ranks.groups, paired=bool(training.mixup or training.cutmix))
        for part in range(ranks.groups)
    ]
    task = _drawn(config, splits).train()
    if ranks.size > 1 and (reason := needs_whole_batch(task.backbone)):
        raise UserError(f"model {config.model.name!r} needs its whole batch in one pass ({reason}): use one process")
    if ranks.sharing > 1:
        _share_images(task, ranks, execution)
    if isinstance(task.backbone, Adventurer):
        task.backbone.set_ssd_backend(config.execution.ssd_backend)
        # Refused now, if it cannot run here.
        resolve_backend(config.execution.ssd_backend, device, option="execution.ssd_backend ")
    ema = _moving_average(task, training)
    together = train_together(task, None if ema is None else ema.module, ranks, device, parallel=execution.parallel)
    if execution.compile:
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
            head=config.head,
            pos_embed=config.model.pos_embed,
        ),
        steps=training.num_steps(len(splits.train)),
        order=_order(config, splits.train),
        mixup=_mixup(config, splits.num_classes),
        task=task,
        state=TrainingState(
            task=task,
            optimizer=build_optimizer(task, training),
            ema=ema,
            totals=Totals(),
            evaluates_ema=training.eval_weights == "ema",
        ),
        ranks=ranks,
        together=together,
        rows=rows[ranks.group],
        most_rows=max(len(part) for part in rows),
    )


def _require_same_data_on_all_ranks(record: dict[str, Any]) -> None:
    """Ranks of another machine may see another folder."""
    fingerprints = on_every_rank(lambda: record["fingerprint"])
    for rank, fingerprint in enumerate(fingerprints):
        if fingerprint != fingerprints[0]:
            raise UserError(
                f"rank {rank} has other data than rank 0 (fingerprint {fingerprint[:12]}, not {fingerprints[0][:12]}); "
                "give all machines the same data.root"
            )


def _share_images(task: Task, ranks: Ranks, execution: ExecutionConfig) -> None:
    """Divide the tokens of every image over the ranks of a group, in place."""
    from patchscale.models.sequence_parallel import shard_sequence

    if execution.compile:
        raise UserError("execution.compile does not go with execution.sequence_parallel; leave out one of them")
    assert ranks.mesh is not None
    shard_sequence(task.backbone, ranks.mesh["sp"].get_group())


def _drawn(config: RunConfig, splits: Splits) -> Task:
    """The task with its first weights, the same on all ranks."""
    with seeded(config.seed, "init"):
        task = build_task(config, splits)
        initialise_as_released(task.backbone, config.training.quirks)
    return task


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


def _order(config: RunConfig, train: TrainSplit) -> TrainingOrder:
    drops = "repeated_augment_drops_rest" in config.training.quirks
    more: dict[str, Any] = {
        "repeats": config.data.repeated_augment,
        "round_to": SAMPLER_ROUNDS_TO if drops else None,
    }
    window = config.data.shuffle_window
    if window is not None:
        return WindowOrder(config.seed, shards_of(train), config.training.batch_size, window, **more)
    return TrainingOrder(config.seed, len(train), config.training.batch_size, **more)


def _moving_average(task: Task, training: TrainingConfig) -> ModelEmaV3 | None:
    """timm's moving average with its warm-up of the decay, so that short runs are not held by their first weights."""
    if training.ema_decay is None:
        return None
    return ModelEmaV3(task, decay=training.ema_decay, use_warmup="ema_without_warmup" not in training.quirks)
