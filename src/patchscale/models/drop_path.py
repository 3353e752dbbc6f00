"""Stochastic depth (arXiv 1603.09382) whose draws belong to the image, however the batch is split.

Splitting a batch must not change what a training step computes. So each micro-batch draws for the whole batch, from the
same seed, and takes the rows of its own images.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import timm.layers
from torch import Tensor, nn

# Not a context variable: on CUDA the autograd engine recomputes checkpointed blocks in a thread of its own.
_rows: tuple[int, int] | None = None


@contextmanager
def batch_rows(start: int, total: int) -> Iterator[None]:
    """Inside, models are given images `start`, `start` + 1, ... of a batch of `total`.

    Must enclose the backward pass too, in which checkpointed blocks run again.
    """
    global _rows
    before, _rows = _rows, (start, total)
    try:
        yield
    finally:
        _rows = before


class DropPath(timm.layers.DropPath):
    """timm's, bit for bit; within `batch_rows` the rows of the mask that timm's draws for the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, ...]: each image is dropped, or divided by the probability of being kept."""
        if _rows is None or not self.training or not self.drop_prob:
            return super().forward(x)
        start, total = _rows
        assert start + len(x) <= total, f"images {start} to {start + len(x) - 1} of a batch of {total}"
        mask = super().forward(x.new_ones(total, *(1,) * (x.dim() - 1)))
        return x * mask[start : start + len(x)]


def own_drop_path(model: nn.Module) -> None:
    """Make timm's `DropPath` modules in `model` ours, in place; names and state dict stay as they are."""
    for module in model.modules():
        if type(module) is timm.layers.DropPath:
            module.__class__ = DropPath
