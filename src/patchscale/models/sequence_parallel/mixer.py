"""Adventurer's mixer on a piece of an image: what was read before comes from the ranks that have it.

A rank needs two things of those that read before it, and both are small: the last d_conv - 1 inputs of the convolution
from its neighbour, and the state of the scan. It finds what its own piece does to a state (`scan.py`), learns what the
other pieces do, and so knows its true initial state before it scans: ranks work at the same time. Blocks that read
backwards move no tokens, only the order of ranks is turned round:

    forwards    rank 0: mean, patches    rank 1: patches    ...    rank R-1: patches, class token
    backwards   rank R-1: mean, patches turned round    ...    rank 0: patches turned round, class token

B batch   n patches of this rank   D embed_dim   E width of the mixer   H heads   P headdim   N d_state
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from patchscale.models.causal_conv import causal_conv
from patchscale.models.mamba2 import Mamba2Mixer
from patchscale.models.mixing import Left, Parameters, mix_by_stretches
from patchscale.models.reading_order import Stretch
from patchscale.models.sequence_parallel.collectives import gather, tie
from patchscale.models.sequence_parallel.piece import Piece
from patchscale.models.sequence_parallel.scan import written_state


class SequenceMixer(Mamba2Mixer):
    """Mixes [B, n+1, D], this rank's patches and its copy of the class token, with those of all ranks."""

    piece: Piece

    def forward(self, u: Tensor, mean: Tensor | None = None, backwards: bool = False) -> Tensor:
        """[B, n+1, D] -> [B, n+1, D]; the `mean` [B, 1, D] of all ranks' tokens is read first of all."""
        assert mean is not None
        readers = list(range(self.piece.ranks))[:: -1 if backwards else 1]
        is_first, is_last = readers[0] == self.piece.rank, readers[-1] == self.piece.rank
        order = piece_order(u.shape[1] - 1, is_first, is_last, backwards, self._tokens_per_stretch(u))
        projected, projected_mean = self.in_proj(u), self.in_proj(mean)

        halo = self.piece.from_reader_before(self._last_conv_inputs(projected, backwards), readers)
        halo = tie(halo, projected_mean)  # which only the first rank reads
        left = (halo, self._initial_state(order, projected, projected_mean, halo, readers))
        mixed = self._mix_in_order(order, projected, projected_mean, left)

        mixed_class = self.piece.from_rank(readers[-1], mixed[:, -1:])
        return self.out_proj(torch.cat([mixed[:, : self.piece.stop - self.piece.start], mixed_class], dim=1))

    def _last_conv_inputs(self, projected: Tensor, backwards: bool) -> Tensor:
        """Of this rank's patches, those that the next rank's convolution still meets, in the order they are read."""
        halo = self.conv1d.kernel_size[0] - 1
        patches = projected[:, :-1, self.d_inner : -self.num_heads]
        return patches[:, :halo].flip(1) if backwards else patches[:, patches.shape[1] - halo :]

    def _initial_state(
        self, order: list[Stretch], projected: Tensor, mean: Tensor, halo: Tensor, readers: list[int]
    ) -> Tensor:
        """The state [B, H, P, N] in which the ranks that read before this one leave the scan."""
        conv_bias = self.conv1d.bias
        assert conv_bias is not None
        parameters = {
            "conv1d.weight": self.conv1d.weight,
            "conv1d.bias": conv_bias,
            "dt_bias": self.dt_bias,
            "A_log": self.A_log,
        }
        wide = torch.promote_types(projected.dtype, torch.float32)
        state = projected.new_zeros(len(projected), self.num_heads, self.headdim, self.d_state, dtype=wide)
        nothing = (halo, state, state[..., 0, 0].clone())
        _, (_, written, log_decay) = mix_by_stretches(self._write, parameters, order, projected, mean, nothing)

        all_written, all_log_decay = gather(written, self.piece.group), gather(log_decay, self.piece.group)
        for rank in readers[: readers.index(self.piece.rank)]:
            state = all_log_decay[rank].exp()[..., None, None] * state + all_written[rank]
        return tie(state, all_written, all_log_decay)

    def _write(
        self, parameters: Parameters, projected: Tensor, left: Left | None, is_last: bool
    ) -> tuple[Tensor, Left]:
        """What a stretch does to convolution and state, without outputs; as `_mix`, for `mix_by_stretches`."""
        assert left is not None
        before, state, log_decay = left
        _, xBC, dt = projected.split([self.d_inner, self.d_inner + 2 * self.d_state, self.num_heads], dim=-1)
        convolved, after = causal_conv(xBC, before, parameters["conv1d.weight"], parameters["conv1d.bias"])
        x, B, _ = F.silu(convolved).split([self.d_inner, self.d_state, self.d_state], dim=-1)
        x = x.unflatten(-1, (self.num_heads, self.headdim))
        written, here = written_state(x, dt, -torch.exp(parameters["A_log"]), B, parameters["dt_bias"])
        return projected[..., :0], (after, here.exp()[..., None, None] * state + written, log_decay + here)


def piece_order(patches: int, is_first: bool, is_last: bool, backwards: bool, tokens_per_stretch: int) -> list[Stretch]:
    """Stretches of a piece, in the order they are read: the first rank reads the mean, the last one the class token."""
    bounds = [
        (start, min(start + tokens_per_stretch, patches)) for start in range(0, max(patches, 1), tokens_per_stretch)
    ]
    if backwards:
        bounds = [(patches - stop, patches - start) for start, stop in bounds]
    last = len(bounds) - 1
    return [
        Stretch(start, stop, backwards, after_mean=is_first and i == 0, with_class=is_last and i == last)
        for i, (start, stop) in enumerate(bounds)
    ]
