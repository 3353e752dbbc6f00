"""Which anchors and boxes of an image are trained on, and losses that belong to one image each.

Both so that a step computes the same however its batch is divided: every image has draws of its own, and its loss is a
mean over its own boxes. torchvision draws for the batch, and averages masks over it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = Sequence[torch.Generator | None]
"""One for each image; None draws from torch's global generator."""


def sample(
    labels: Tensor, number: int, positive_fraction: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Places of objects (labels from 1 on) and of background (0) among `labels` [n], drawn at random.

    At most `number` together and at most `positive_fraction` of it objects; background fills up.
    """
    objects, background = torch.where(labels >= 1)[0], torch.where(labels == 0)[0]
    wanted = min(len(objects), int(number * positive_fraction))
    return _some(objects, wanted, generator), _some(background, number - wanted, generator)


def _some(places: Tensor, number: int, generator: torch.Generator | None) -> Tensor:
    return places[torch.randperm(len(places), generator=generator, device=places.device)[:number]]


def image_means(values: Tensor, counts: Sequence[int], of: Sequence[int] | None = None) -> Tensor:
    """[N] -> [B]: the sum of each image's `counts` values over so many, or over `of`; 0 for an image without any."""
    parts = zip(values.split(list(counts)), counts if of is None else of, strict=True)
    return torch.stack([part.sum() / max(1, number) for part, number in parts])
