"""AdamW, its weight-decay groups and its learning rate."""

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import AdamW

from patchscale.config import TrainingConfig

NOT_DECAYED = ("pos_embed", "cls_token", "dist_token")
"""Names that are exempt from weight decay wherever they are (position tables and class tokens)."""


def parameter_groups(task: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: decayed, and not decayed.

    Not decayed, as in the released code, are parameters of at most one dimension (biases, norms, the scan's A_log, D
    and dt_bias), position tables and class tokens, and besides what a submodule lists in `no_weight_decay()`.
    """
    exempt = set()
    for path, module in task.named_modules():
        listed: Callable[[], set[str]] | None = getattr(module, "no_weight_decay", None)
        if callable(listed):
            exempt |= {f"{path}.{name}".lstrip(".") for name in listed()}
    decayed: list[nn.Parameter] = []
    not_decayed: list[nn.Parameter] = []
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            bare = parameter.ndim <= 1 or name.rpartition(".")[2] in NOT_DECAYED or name in exempt
            (not_decayed if bare else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(task: nn.Module, training: TrainingConfig) -> AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), eps 1e-8, over `parameter_groups`."""
    groups = parameter_groups(task, training.weight_decay)
    return AdamW(groups, lr=training.learning_rate, betas=training.betas)


def learning_rate_at(step: int, total_steps: int, training: TrainingConfig) -> float:
    """Learning rate of `step`, counted from 0: linear warm-up, then half a cosine to the minimum at the last step.

    With w warm-up steps, step s < w uses warmup + (peak - warmup) s / w; later ones
    min + (peak - min) (1 + cos(pi (s - w) / (total_steps - 1 - w))) / 2.
    """
    peak, lowest = training.learning_rate, training.min_learning_rate
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
