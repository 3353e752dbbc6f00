"""In which order a causal mixer reads an image: its mean, its patches forwards or backwards, its class token.

    forwards    [mean, patch 0, patch 1, ..., patch N-1, class]
    backwards   [mean, patch N-1, ..., patch 1, patch 0, class]

What lies before and behind the mixing treats each token by itself, so tokens stay in raster order there, and a long
sequence is cut and turned stretch by stretch: it is never copied as a whole.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stretch:
    """Tokens read one after another: those from `start` to `stop` of the raster, and what joins them."""

    start: int
    stop: int
    backwards: bool
    after_mean: bool
    """The mean is read before these tokens."""
    with_class: bool
    """The last token of the raster, which is not among these, is read after them."""

    def read(self, tokens: Tensor, mean: Tensor | None) -> Tensor:
        """The stretch out of `tokens` [B, L, C] in raster order and their `mean` [B, 1, C]."""
        parts = [tokens[:, self.start : self.stop]]
        if self.backwards:
            parts = [parts[0].flip(1)]
        if self.after_mean and mean is not None:
            parts.insert(0, mean)
        if self.with_class:
            parts.append(tokens[:, -1:])
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def write(self, stretch: Tensor, tokens: Tensor, mean: Tensor | None) -> None:
        """Put a stretch back where `read` took it from."""
        if self.after_mean:
            if mean is not None:
                mean.copy_(stretch[:, :1])
            stretch = stretch[:, 1:]
        if self.with_class:
            tokens[:, -1:] = stretch[:, -1:]
            stretch = stretch[:, :-1]
        tokens[:, self.start : self.stop] = stretch.flip(1) if self.backwards else stretch

    def restore(self, stretch: Tensor) -> Tensor:
        """What was read in this one stretch in raster order; the mean is dropped."""
        stretch = stretch[:, 1:] if self.after_mean else stretch
        if not self.backwards:
            return stretch
        if not self.with_class:
            return stretch.flip(1)
        return torch.cat([stretch[:, :-1].flip(1), stretch[:, -1:]], dim=1)


def reading_order(length: int, *, has_mean: bool, backwards: bool, tokens_per_stretch: int) -> list[Stretch]:
    """Stretches, in the order they are read, of `length` tokens of which the last stays last."""
    movable = length - 1 if backwards else length
    starts = range(0, max(movable, 1), tokens_per_stretch)
    bounds = [(start, min(start + tokens_per_stretch, movable)) for start in starts]
    if backwards:
        bounds = [(movable - stop, movable - start) for start, stop in bounds]
    last = len(bounds) - 1
    return [
        Stretch(start, stop, backwards, after_mean=has_mean and i == 0, with_class=backwards and i == last)
        for i, (start, stop) in enumerate(bounds)
    ]
