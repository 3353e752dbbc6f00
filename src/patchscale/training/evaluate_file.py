"""A file of weights, of a run or from elsewhere, as a task on data, at any patch size and image size."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from patchscale.config import RunConfig
from patchscale.costs.counts import count
from patchscale.costs.memory import MEMORY_SHARE, infer_memory
from patchscale.data.datasets import EvalSplit, Splits, load_splits
from patchscale.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from patchscale.errors import UserError
from patchscale.head_shapes import default_head
from patchscale.models.adventurer import FlipSchedule
from patchscale.models.checkpoints import load_model, name_of
from patchscale.models.convert import Resampled, convert, model_sizes
from patchscale.models.weights import Weights, read_weights
from patchscale.tasks import Task, build_task
from patchscale.training.available_memory import available_bytes

Normalisation = Literal["imagenet", "inception"]
INCEPTION_MEAN_STD = 0.5
LARGEST_BATCH = 256
BATCH_OF_UNNAMED = 32


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Weights in a task, on the CPU and in evaluation mode, with the data they are to be measured on."""

    task: Task
    splits: Splits
    config: RunConfig
    """What was asked for, with the model and sizes that the task has now."""
    resampled: tuple[Resampled, ...]
    """Tensors that were carried to another patch size or image size than the file's."""


def load_file(
    path: Path,
    config: RunConfig,
    *,
    patch_size: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    name: str | None = None,
    flip_schedule: FlipSchedule | None = None,
    ema: bool = False,
) -> Loaded:
    """The weights in `path` and the data of `config`, of which the model and its sizes are replaced by the file's.

    Sizes in pixels are the file's unless given. Without a name of its own the model may be given one (a timm ViT).
    Raises `UserError` if the file cannot be read, its sizes cannot be had, or its classes are not those of the data.
    """
    model = load_model(path, name=name, flip_schedule=flip_schedule, ema=ema)
    resampled: tuple[Resampled, ...] = ()
    if patch_size is not None or img_size is not None:
        model, report = convert(model, patch_size=patch_size, img_size=img_size)
        resampled = report.resampled
    new_patch_size, new_img_size = model_sizes(model)
    sizes = replace(
        config.model,
        name=name_of(model) or config.model.name,
        patch_size=new_patch_size,
        img_size=new_img_size,
        flip_schedule=getattr(model, "flip_schedule", config.model.flip_schedule),
    )
    config = replace(config, model=sizes)
    splits = load_splits(config)
    if config.task == "classification" and model.num_classes != splits.num_classes:
        has = f"a head for {model.num_classes} classes" if model.num_classes else "no head"
        raise UserError(
            f"{path}: has {has}, {config.data.name} has {splits.num_classes} classes; evaluate it on its own data, "
            "or fine-tune it first (training.init_from)"
        )
    task = build_task(config, splits)
    task.backbone = model
    _load_head(task, read_weights(path, ema=ema), config)
    return Loaded(task=task.eval(), splits=splits, config=config, resampled=resampled)


def _load_head(task: Task, weights: Weights, config: RunConfig) -> None:
    """The head that stands behind the backbone, if the task has one."""
    own = {name: tensor.shape for name, tensor in task.state_dict().items() if not name.startswith("backbone.")}
    found = {name: tensor.shape for name, tensor in weights.task_head.items()}
    if own != found:
        head, patch_size = config.head or default_head(config.task), config.model.patch_size
        of_this_task = bool(found) and weights.header.get("task") == config.task
        its_head, its_patch_size = weights.header.get("head") or head, weights.patch_size
        if of_this_task and its_head != head:
            raise UserError(f"{weights.path}: its head is {its_head}, not {head}; give head={its_head}")
        if of_this_task and own.keys() != found.keys() and its_patch_size not in (None, (patch_size, patch_size)):
            raise UserError(
                f"{weights.path}: its head is built otherwise than {head} at {patch_size} px patches, whose pyramid "
                "follows the patch size; evaluate it at its own, or fine-tune it there (training.init_from)"
            )
        raise UserError(
            f"{weights.path}: has no head for {config.task} with {task.num_classes} classes; "
            "give the weights of such a run"
        )
    task.load_state_dict(weights.task_head, strict=False)


def split_of(splits: Splits, name: str) -> Dataset[Any]:
    """Images of "val", "test", or "all": with those for training, unaugmented."""
    if name == "all":
        transform = splits.val.transform
        kind = type(splits.val)
        return _Joined([kind(splits.train.source, transform), splits.val, splits.test])
    return splits.val if name == "val" else splits.test


class _Joined(ConcatDataset[Any]):
    """Splits one after the other; batches are made as theirs are."""

    def __init__(self, splits: list[EvalSplit]) -> None:
        super().__init__(splits)
        self.collate = splits[0].collate


def normalise_as(task: Task, normalisation: Normalisation) -> None:
    """Let `task` be given images as data sets make them (ImageNet's mean and standard deviation), and see another's.

    "inception" is (pixel - 0.5) / 0.5, with which timm's `augreg` and many Google weights were trained.
    """
    if normalisation == "imagenet":
        return
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))

    def renormalise(module: Any, arguments: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, targets = arguments
        pixels = images * std.to(images) + mean.to(images)
        return (pixels - INCEPTION_MEAN_STD) / INCEPTION_MEAN_STD, targets

    task.register_forward_pre_hook(renormalise)


def batch_size_that_fits(loaded: Loaded, device: torch.device) -> int:
    """Images of a forward pass: the largest power of two that memory should hold, at most `LARGEST_BATCH`.

    A model without a name has no known cost; it gets `BATCH_OF_UNNAMED`.
    """
    config, model = loaded.config, loaded.config.model
    if name_of(loaded.task.backbone) is None:
        return BATCH_OF_UNNAMED
    counts = count(
        model.name,
        patch_size=model.patch_size,
        img_size=model.img_size,
        num_classes=loaded.splits.num_classes,
        task=config.task,
        head=config.head,
        pos_embed=model.pos_embed,
    )
    available = MEMORY_SHARE * available_bytes(device)
    size = LARGEST_BATCH
    while size > 1:
        memory = infer_memory(
            counts,
            batch_size=size,
            precision=config.training.precision,
            device=device.type,
            num_threads=torch.get_num_threads(),
        )
        if memory.peak_bytes <= available:
            break
        size //= 2
    return size
