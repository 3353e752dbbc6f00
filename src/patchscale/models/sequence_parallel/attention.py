"""Attention over tokens that are divided over ranks (Ulysses, arXiv 2309.14509).

Before the attention an all-to-all gives each rank all tokens of some heads, behind it another one gives back all heads
of its own tokens. In between runs torch's fused attention, as in one process: no mask, no padding, any number of
tokens.

B batch   m tokens of this rank: P prefix tokens, of which each rank has a copy, then its n patches
L = P+N tokens of the image   H heads, h = H / ranks   d channels of a head
"""

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention
from torch import Tensor

from patchscale.models.sequence_parallel.collectives import exchange
from patchscale.models.sequence_parallel.piece import Piece


class SequenceAttention(Attention):
    """timm's attention, [B, m, D] -> [B, m, D], every token attending to all tokens of all ranks."""

    piece: Piece
    num_prefix_tokens: int

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """The tokens of this rank; masks are not possible."""
        assert attn_mask is None
        assert not is_causal
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.unbind(2)
        q, k, v = self._all_tokens(torch.stack([self.q_norm(q), self.k_norm(k), v], dim=3)).unbind(3)
        q, k, v = (each.permute(1, 2, 0, 3) for each in (q, k, v))  # B h L d
        x = F.scaled_dot_product_attention(q, k, v)
        x = self._own_tokens(x.permute(2, 0, 1, 3)).flatten(2)
        norm = getattr(self, "norm", None)  # between attention and projection, in some models
        return self.proj_drop(self.proj(x if norm is None else norm(x)))

    def _all_tokens(self, x: Tensor) -> Tensor:
        """Own tokens of all heads [B, m, H, ...] -> all tokens of own heads [L, B, h, ...]; prefix from rank 0."""
        piece, prefix = self.piece, self.num_prefix_tokens
        if piece.rank:
            x = x[:, prefix:]
        rows_in = [length + (0 if rank else prefix) for rank, length in enumerate(piece.lengths)]
        by_rank = x.unflatten(2, (piece.ranks, -1)).movedim(2, 0).transpose(1, 2)  # ranks m B h ...
        return exchange(by_rank.flatten(0, 1), [x.shape[1]] * piece.ranks, rows_in, piece.group)

    def _own_tokens(self, x: Tensor) -> Tensor:
        """All tokens of own heads [L, B, h, d] -> own tokens, prefix among them, of all heads [B, m, H, d]."""
        piece, prefix = self.piece, self.num_prefix_tokens
        patches = x[prefix:].split(piece.lengths)
        rows = torch.cat([part for own in patches for part in (x[:prefix], own)])
        rows_out, own = [prefix + length for length in piece.lengths], prefix + piece.lengths[piece.rank]
        by_rank = exchange(rows, rows_out, [own] * piece.ranks, piece.group).unflatten(0, (piece.ranks, own))
        return by_rank.permute(2, 1, 0, 3, 4).flatten(2, 3)
