"""The scan as matrix products within chunks, in plain PyTorch: any device, any length, memory linear in tokens.

Method: Dao and Gu 2024 (arXiv 2405.21060), section 6. Unrolled, the recurrence lets token l read each token s <= l:

    y_l = sum_s  (C_l . B_s)  exp(a_l - a_s)  dt_s x_s          a = cumulative sum of dt A, from the chunk's start

Within a chunk that sum is one product with a lower-triangular matrix; between chunks the state carries the rest:

    1. y      = (C B^T * decay from s to l) (dt x)
    2. writes = B^T (decay from s to the end of the chunk * dt x)
    3. state  = decay over the whole chunk * state + writes          chunk after chunk
    4. y     += decay from the start of the chunk to l * C (state before the chunk)

b images   l tokens   k chunks   q tokens of a chunk   g groups   r heads of a group   p headdim   n d_state
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Fastest forward and backward on CPU among 16 to 256 at 18 to 4,098 tokens (measured 2026-11-22, float32).
CHUNK_SIZE = 64
# Longer sequences go by in segments of this many chunks, and each segment is computed again in the backward pass.
# Kept for the backward: the inputs and one state a segment. Working memory: that of one segment, whatever the length.
CHUNKS_PER_SEGMENT = 16


def ssd_chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    *,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    chunk_size: int | None,
    initial_state: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Output, in the dtype of `x`, and the final state if it is asked for; arguments as in `ssd_scan`.

    Decays and states are at least float32, also where `x`, `B` and `C` are bfloat16 and under autocast.
    """
    chunk = chunk_length(x.shape[1], chunk_size or CHUNK_SIZE)
    with _without_autocast(x.device.type):
        wide = torch.promote_types(x.dtype, torch.float32)
        dt = dt.to(wide)
        if dt_bias is not None:
            dt = dt + dt_bias.to(wide)
        if dt_softplus:
            dt = F.softplus(dt)
        sequences = ((x * dt[..., None]).to(x.dtype), dt * A.to(wide), B.to(x.dtype), C.to(x.dtype))

        if x.shape[1] <= chunk * CHUNKS_PER_SEGMENT:
            y, state = _scan_segment(*sequences, initial_state, chunk, return_final_state)
        else:
            outputs, state = [], initial_state
            for segment in zip(*(s.split(chunk * CHUNKS_PER_SEGMENT, dim=1) for s in sequences), strict=True):
                y, state = checkpoint(
                    _scan_segment, *segment, state, chunk, True, use_reentrant=False, preserve_rng_state=False
                )
                outputs.append(y)
            y = torch.cat(outputs, dim=1)

        if D is not None:
            y = torch.addcmul(y, D.to(wide)[:, None], x.to(wide))
    return y.to(x.dtype), state if return_final_state else None


def chunk_length(length: int, chunk_size: int) -> int:
    """Tokens per chunk: about `chunk_size`, such that the chunks are equal and padding is less than one token each.

    6 tokens are one chunk of 6, 66 one of 66, 258 four of 65 (for `chunk_size` 64).
    """
    chunks = max(1, round(length / chunk_size))
    return -(-length // chunks)


def _without_autocast(device: str) -> AbstractContextManager[object]:
    available = torch.amp.is_autocast_available(device)  # not on the meta device
    return torch.autocast(device, enabled=False) if available else nullcontext()


def _scan_segment(
    dt_x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, state: Tensor | None, chunk: int, want_state: bool
) -> tuple[Tensor, Tensor | None]:
    """Scan [b, l, ...] chunk by chunk from `state` [b, h, p, n]; output (at least float32) and the next state."""
    b, length, heads, p = dt_x.shape
    g, n = B.shape[2:]
    r = heads // g
    k = -(-length // chunk)
    if padding := k * chunk - length:  # zeros at the end write nothing and decay nothing
        dt_x, log_decay, B, C = (F.pad(s, (0, 0) * (s.dim() - 2) + (0, padding)) for s in (dt_x, log_decay, B, C))

    narrow, wide = dt_x.dtype, log_decay.dtype
    dt_x = dt_x.reshape(b, k, chunk, g, r, p)
    a = log_decay.reshape(b, k, chunk, g, r).cumsum(dim=2)
    B, C = (M.reshape(b, k, chunk, g, n).transpose(2, 3) for M in (B, C))  # b k g q n: shared by the group's heads

    # 1. Mask before exp: above the diagonal a_l - a_s is positive and exp of it may overflow, and inf * 0 is NaN.
    a_by_head = a.permute(0, 1, 3, 4, 2)  # b k g r q
    future = torch.full((chunk, chunk), -torch.inf, dtype=wide, device=a.device).triu(diagonal=1)
    decay = (a_by_head[..., :, None] - a_by_head[..., None, :]).add_(future).exp_()
    scores = (C @ B.transpose(-1, -2))[:, :, :, None] * decay  # b k g r q q
    y = (scores.to(narrow) @ dt_x.permute(0, 1, 3, 4, 2, 5)).permute(0, 1, 4, 2, 3, 5)  # b k q g r p

    if k > 1 or state is not None or want_state:
        # 2. In the layout b k g n (r p): all heads of a group share one product.
        decay_to_end = (a[:, :, -1:] - a).exp()
        decayed = (dt_x * decay_to_end[..., None]).to(narrow).reshape(b, k, chunk, g, r * p)
        writes = (B.transpose(-1, -2) @ decayed.transpose(2, 3)).to(wide)

        # 3. The recurrence again, one step a chunk.
        decay_of_chunk = a[:, :, -1].exp()[:, :, :, None, :, None].expand(b, k, g, 1, r, p).flatten(-2)
        if state is None:
            carried = writes.new_zeros(b, g, n, r * p)
        else:
            carried = state.to(wide).reshape(b, g, r, p, n).permute(0, 1, 4, 2, 3).reshape(b, g, n, r * p)
        before = []
        for write, keep in zip(writes.unbind(1), decay_of_chunk.unbind(1), strict=True):
            before.append(carried)
            carried = torch.addcmul(write, keep, carried)

        # 4.
        read = C @ torch.stack(before, dim=1).to(narrow)  # b k g q (r p)
        read = read.reshape(b, k, g, chunk, r, p).transpose(2, 3)
        y = torch.addcmul(y.to(wide), a.exp()[..., None], read.to(wide))
        state = carried.reshape(b, g, n, r, p).permute(0, 1, 3, 4, 2).reshape(b, heads, p, n)

    return y.reshape(b, k * chunk, heads, p)[:, :length].to(wide), state
