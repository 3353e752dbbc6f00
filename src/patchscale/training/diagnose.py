"""Which tensor stopped being finite first: repeat the step that failed, with a look at every module."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def first_non_finite(task: nn.Module, images: Tensor, compute_loss: Callable[[], Tensor]) -> str | None:
    """Name the first non-finite tensor of a step, in the order the step meets them; None if all are finite.

    That order is: images, parameters, outputs of modules (innermost first), the loss, gradients from the loss
    back to the input. `compute_loss` repeats the forward pass with the same seed and unchanged parameters.
    """
    if not _finite(images):
        return f"{_kind(images)} in the input images"
    for name, parameter in task.named_parameters():
        if not _finite(parameter):
            return f"{_kind(parameter)} in parameter {name}"
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if not found and not _finite(tensor):
                    found.append(f"{_kind(tensor)} in {name} output")

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in task.named_modules() if name]
    try:
        loss = compute_loss()
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return found[0]
    if not _finite(loss):
        return f"{_kind(loss)} in the loss itself"
    task.zero_grad()
    loss.backward()
    for name, parameter in reversed(list(task.named_parameters())):
        if parameter.grad is not None and not _finite(parameter.grad):
            return f"{_kind(parameter.grad)} in the gradient of {name}"
    return None


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _kind(tensor: Tensor) -> str:
    return "nan" if bool(torch.isnan(tensor).any()) else "inf"


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [tensor for item in output for tensor in _tensors(item)]
    return []
