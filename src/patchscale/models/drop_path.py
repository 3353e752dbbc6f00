"""Stochastic depth (arXiv 1603.09382) whose draws belong to the image, however the batch is split.

Splitting a batch must not change what a training step computes. So each micro-batch draws for the whole batch, from the
same seed, and takes the rows of its own images.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import timm.layers
import torch
from torch import Tensor, nn

from patchscale.errors import UserError

# Of a batch of B images, the numbers [B] of those at hand and of those after them. A tensor, because compiled code is
# made anew for every other int that it meets in a global. Not a context variable: on CUDA the autograd engine
# recomputes checkpointed blocks in a thread of its own.
_rows: Tensor | None = None


@contextmanager
def batch_rows(
    start: int, total: int, device: torch.device | str = "cpu", *, held: Tensor | None = None
) -> Iterator[None]:
    """Inside, models are given images `start`, `start` + 1, ... of a batch of `total`.

    A process that has some images of the batch only says which it holds: `held` [n] are their numbers, and `start`
    counts in them. `device` is that of the images; from another, every drop path waits for a copy. Must enclose the
    backward pass too, in which checkpointed blocks run again.
    """
    global _rows
    rows = torch.arange(start, start + total, device=device)
    if held is not None:
        rows[: len(held) - start] = held[start:]
        rows[len(held) - start :] = total  # there are no more
    before, _rows = _rows, rows
    try:
        yield
    finally:
        _rows = before


def rows_at_hand(images: int) -> list[int]:
    """Numbers within their batch of the `images` that a model is given now."""
    return list(range(images)) if _rows is None else _rows[:images].tolist()


class DropPath(timm.layers.DropPath):
    """timm's, bit for bit; within `batch_rows` the rows of the mask that timm's draws for the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, ...]: each image is dropped, or divided by the probability of being kept."""
        if _rows is None or not self.training or not self.drop_prob:
            return super().forward(x)
        mask = super().forward(x.new_ones(len(_rows), *(1,) * (x.dim() - 1)))
        return x * mask[_rows[: len(x)].to(x.device)]


def constant_drop_path(model: nn.Module, rate: float) -> None:
    """Give every block of a timm ViT the same rate, in place, where timm's rates grow from 0 with depth.

    Raises `UserError` for a model whose blocks have no drop path of timm's.
    """
    blocks = [block for block in getattr(model, "blocks", ()) if hasattr(block, "drop_path1")]
    if not blocks:
        raise UserError(f"{type(model).__name__} has no drop path to make constant; use drop_path_schedule='linear'")
    for block in blocks:
        block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)


def own_drop_path(model: nn.Module) -> None:
    """Make timm's `DropPath` modules in `model` ours, in place; names and state dict stay as they are."""
    for module in model.modules():
        if type(module) is timm.layers.DropPath:
            module.__class__ = DropPath
