"""Which tokens of an image belong to which rank.

The patches, in raster order, are cut into consecutive pieces, whose sizes differ by one at most; rank r of the group
has piece r. Prefix and class tokens are few and every rank has a copy of them.

B batch   N patches of the image   n patches of this rank's piece   D embed_dim
"""

from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from patchscale.models.sequence_parallel.collectives import gather, tie


class Piece:
    """The patches `start` to `stop` of `num_patches`, which this rank of `group` has."""

    def __init__(self, group: dist.ProcessGroup, num_patches: int) -> None:
        self.group = group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        bounds = [num_patches * rank // self.ranks for rank in range(self.ranks + 1)]
        self.num_patches = num_patches
        self.lengths = [stop - start for start, stop in pairwise(bounds)]
        self.start, self.stop = bounds[self.rank], bounds[self.rank + 1]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Piece":
        """Itself: a copy of a model works in the same group, which cannot be copied."""
        return self

    def rows(self, table: Tensor, *, before: int = 0, after: int = 0) -> Tensor:
        """Of a table [1, before + N + after, D], the rows of this piece's patches and all those around the patches."""
        patches = table[:, before + self.start : before + self.stop]
        parts = [table[:, :before], patches, table[:, table.shape[1] - after :]]
        return torch.cat([part for part in parts if part.shape[1]], dim=1)

    def gather_patches(self, patches: Tensor) -> Tensor:
        """[B, n, D] of each rank -> [B, N, D] on every rank."""
        longest = max(self.lengths)
        padded = torch.nn.functional.pad(patches, (0, 0, 0, longest - patches.shape[1]))
        gathered = gather(padded, self.group)
        return torch.cat([gathered[rank, :, :length] for rank, length in enumerate(self.lengths)], dim=1)

    def from_rank(self, rank: int, x: Tensor) -> Tensor:
        """The x of one rank, on every rank; same shape on all."""
        return gather(x, self.group)[rank]

    def from_reader_before(self, x: Tensor, readers: list[int]) -> Tensor:
        """The x of the rank that reads before this one, in the order `readers`; zeros on the first."""
        gathered, position = gather(x, self.group), readers.index(self.rank)
        if position == 0:
            return tie(torch.zeros_like(x), gathered)
        return gathered[readers[position - 1]]
