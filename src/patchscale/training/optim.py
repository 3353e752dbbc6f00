"""The optimizer, its parameter groups (weight decay, learning rate by depth), and its learning rate."""

import math
import re
from collections.abc import Callable
from typing import Any

import timm.optim
import torch
from torch import nn
from torch.optim import AdamW

from patchscale.config import TrainingConfig

NOT_DECAYED = ("pos_embed", "cls_token", "dist_token")
"""Names that are exempt from weight decay wherever they are (position tables and class tokens)."""
_BLOCK = re.compile(r"^backbone\.(?:layers|blocks)\.(\d+)\.")
_EMBEDDING = re.compile(r"^backbone\.(?:patch_embed|pos_embed|cls_token|dist_token|reg_token|mask_token|norm_pre)\b")


def parameter_groups(task: nn.Module, weight_decay: float, layer_decay: float | None = None) -> list[dict[str, Any]]:
    """Two groups, decayed and not decayed; with `layer_decay` two for every depth, each with its `lr_scale`.

    Not decayed, as in the released code, are parameters of at most one dimension (biases, norms, the scan's A_log, D
    and dt_bias), position tables and class tokens, and besides what a submodule lists in `no_weight_decay()`.
    """
    exempt = set()
    for path, module in task.named_modules():
        listed: Callable[[], set[str]] | None = getattr(module, "no_weight_decay", None)
        if callable(listed):
            exempt |= {f"{path}.{name}".lstrip(".") for name in listed()}
    depth = _depth(task)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            bare = parameter.ndim <= 1 or name.rpartition(".")[2] in NOT_DECAYED or name in exempt
            layer = depth + 1 if layer_decay is None else layer_id(name, depth)
            group: dict[str, Any] = {"params": [], "weight_decay": 0.0 if bare else weight_decay}
            if layer_decay is not None:
                group["lr_scale"] = layer_decay ** (depth + 1 - layer)
            groups.setdefault((layer, bare), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def layer_id(name: str, depth: int) -> int:
    """0 for the embedding, i + 1 for block i, depth + 1 for all that follows the blocks; `name` is that in a task."""
    if block := _BLOCK.match(name):
        return int(block[1]) + 1
    return 0 if _EMBEDDING.match(name) else depth + 1


def _depth(task: nn.Module) -> int:
    blocks = [int(block[1]) for name, _ in task.named_parameters() if (block := _BLOCK.match(name))]
    return max(blocks, default=-1) + 1


class Lamb(timm.optim.Lamb):
    """timm's; its state is plain numbers beside tensors by parameter, as checkpoints want it."""

    def state_dict(self) -> dict[str, Any]:
        """As every optimizer's, with the number of steps, which timm keeps as a tensor, as a number."""
        state = super().state_dict()
        for group in state["param_groups"]:
            if "step" in group:
                group["step"] = int(group["step"])
        return state


def build_optimizer(task: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), eps 1e-8, or timm's LAMB, over `parameter_groups`.

    LAMB scales the step of every decayed tensor to the norm of the tensor. Clipping of gradients, which is part of
    timm's, is left to `training.clip_grad_norm`.
    """
    groups = parameter_groups(task, training.weight_decay, training.layer_decay)
    if training.optimizer == "lamb":
        return Lamb(groups, lr=training.learning_rate, betas=training.betas, max_grad_norm=None)
    return AdamW(groups, lr=training.learning_rate, betas=training.betas)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group its part of `learning_rate`: all of it, or less where `layer_decay` slows a layer."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)


def learning_rate_at(step: int, total_steps: int, training: TrainingConfig) -> float:
    """Learning rate of `step`, counted from 0: linear warm-up, then half a cosine to the minimum at the last step.

    With w warm-up steps, step s < w uses warmup + (peak - warmup) s / w; later ones
    min + (peak - min) (1 + cos(pi (s - w) / (total_steps - 1 - w))) / 2. Under the quirk `schedule_one_epoch_late` it
    is that of the epoch in `released_learning_rates`.
    """
    peak, lowest = training.learning_rate, training.min_learning_rate
    if "schedule_one_epoch_late" in training.quirks:
        assert training.epochs is not None  # the config saw to it
        epochs = int(training.epochs)
        rates = released_learning_rates(
            epochs,
            peak,
            warmup_epochs=round(training.warmup_fraction * epochs),
            warmup_learning_rate=training.warmup_learning_rate,
            min_learning_rate=lowest,
        )
        return rates[step * epochs // total_steps]
    warmup_steps = round(training.warmup_fraction * total_steps)
    if step < warmup_steps:
        start = training.warmup_learning_rate
        return start + (peak - start) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * progress)) / 2


def released_learning_rates(
    total_epochs: int,
    learning_rate: float,
    *,
    warmup_epochs: int = 5,
    warmup_learning_rate: float = 1e-6,
    min_learning_rate: float = 1e-5,
) -> list[float]:
    """Learning rate of each epoch as the released Adventurer and DeiT scripts really apply it.

    The scheduler is stepped after epoch e with e instead of e + 1, so epochs 0 and 1 both run at schedule time 0 and
    epoch e at time e - 1. Warm-up is linear over times 0 .. warmup_epochs - 1; the cosine is not shifted by it.
    """

    def at_time(t: int) -> float:
        if t < warmup_epochs:
            return warmup_learning_rate + (learning_rate - warmup_learning_rate) * t / warmup_epochs
        cosine = (1 + math.cos(math.pi * t / total_epochs)) / 2
        return min_learning_rate + (learning_rate - min_learning_rate) * cosine

    return [at_time(max(0, epoch - 1)) for epoch in range(total_epochs)]
