"""The scan as matrix products within chunks, in plain PyTorch: any device, any length, memory linear in tokens.

Method: Dao and Gu 2024 (arXiv 2405.21060), section 6. Unrolled, the recurrence lets token l read each token s <= l:

    y_l = D x_l + sum_s (C_l . B_s) exp(a_l - a_s) dt_s x_s      a = cumulative sum of dt A from the chunk's start

Within a chunk that sum is one product with a lower-triangular matrix; between chunks the state carries the rest:

    1. y      = scores x                   scores = (C B^T) * decay from s to l * dt_s, D added on the diagonal
    2. writes = B^T w                      w      = x * dt * decay from s to the end of the chunk
    3. state  = decay over the whole chunk * state + writes          chunk after chunk
    4. y     += decay from the start of the chunk to l * read        read = C (state before the chunk)

The backward pass is written out: autograd's own would lay the gradients of these products out in ways that make them
several times slower on a CPU, and would keep and revisit every intermediate.

b images   l tokens   k chunks   q tokens of a chunk   g groups   r heads of a group   p headdim   n d_state
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from patchscale.models.autocast import without_autocast

# Fastest forward and backward on CPU among 16 to 256 at 18 to 4,098 tokens (measured 2026-11-22, float32).
CHUNK_SIZE = 64
# Longer sequences go by in segments of this many chunks, and each segment is computed again in the backward pass.
# Kept for the backward: the inputs and one state a segment. Working memory: that of one segment, whatever the length.
CHUNKS_PER_SEGMENT = 16
# A decay times dt below exp(-60) counts as that, and dt below exp(-30), or 1e-13, as that.
SMALLEST_LOG = -60.0
SMALLEST_LOG_DT = -30.0


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
    length, groups = x.shape[1], B.shape[2]
    chunk = chunk_length(length, chunk_size or CHUNK_SIZE)
    tokens_per_segment = chunk * CHUNKS_PER_SEGMENT
    with without_autocast(x.device):
        wide = torch.promote_types(x.dtype, torch.float32)
        dt = dt.to(wide)
        if dt_bias is not None:
            dt = dt + dt_bias.to(wide)
        if dt_softplus:
            dt = F.softplus(dt)
        A = A.to(wide)
        D = None if D is None else D.to(wide)
        sequences = (x, dt, B.to(x.dtype), C.to(x.dtype))
        state = None
        if initial_state is not None:
            state = initial_state.to(wide).unflatten(1, (groups, -1)).permute(0, 1, 4, 2, 3).flatten(3)  # b g n (r p)

        if length <= tokens_per_segment:
            y, state = _Segment.apply(*sequences, A, D, state, chunk, return_final_state)
        else:
            outputs = []
            for segment in zip(*(s.split(tokens_per_segment, dim=1) for s in sequences), strict=True):
                y, state = checkpoint(
                    _Segment.apply, *segment, A, D, state, chunk, True, use_reentrant=False, preserve_rng_state=False
                )
                outputs.append(y)
            y = torch.cat(outputs, dim=1)
        if not return_final_state:
            return y, None
        assert state is not None
        final = state.unflatten(3, (-1, x.shape[3])).permute(0, 1, 3, 4, 2).flatten(1, 2)
        return y, final


def chunk_length(length: int, chunk_size: int) -> int:
    """Tokens per chunk: about `chunk_size`, such that the chunks are equal and padding is less than one token each.

    6 tokens are one chunk of 6, 66 one of 66, 258 four of 65 (for `chunk_size` 64).
    """
    chunks = max(1, round(length / chunk_size))
    return -(-length // chunks)


class _Segment(torch.autograd.Function):
    """Scan x [b, l, h, p] from `state` [b, g, n, (r p)], all of it at once; returns y and, if wanted, the next state.

    In names and comments *natural* is the order b k q g r p in which tokens come, *by head* b k g r q p. Work is
    counted in passes over as many numbers as x has: on a CPU they, and not the products, are most of the time. So dt
    goes into the exponent of the decay, and D onto the diagonal of the scores, where they cost no pass of their own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        B: Tensor,
        C: Tensor,
        A: Tensor,
        D: Tensor | None,
        state: Tensor | None,
        chunk: int,
        want_state: bool,
    ) -> tuple[Tensor, Tensor | None]:
        narrow, wide, length = x.dtype, dt.dtype, x.shape[1]
        x, dt, B, C = _in_chunks(chunk, x, dt, B, C)
        groups = B.shape[3]
        x, dt, A = x.unflatten(3, (groups, -1)), dt.unflatten(3, (groups, -1)), A.unflatten(0, (groups, -1))
        B, C = B.transpose(2, 3), C.transpose(2, 3)  # b k g q n: shared by the group's heads
        a = (dt * A).cumsum(dim=2)

        # 1. What is above the diagonal, where a_l - a_s may overflow, is zero in the products; dt_s is in the exponent.
        products = (C @ B.transpose(-1, -2)).tril_()[:, :, :, None]  # b k g 1 q q
        a_by_head, log_dt = (each.permute(0, 1, 3, 4, 2).contiguous() for each in (a, _floored(dt).log()))
        # In this order, so that close tokens, which matter most, are not rounded at the size of a.
        exponent = (a_by_head[..., :, None] - a_by_head[..., None, :]).add_(log_dt[..., None, :])
        decay = _exp_(exponent)
        scores = decay * products
        if D is not None:
            scores.diagonal(dim1=-2, dim2=-1).add_(D.unflatten(0, (groups, -1))[..., None])
        scores = scores.to(narrow)
        x_by_head = _by_head(x).contiguous()
        y = _natural(scores @ x_by_head)

        w = before = read = end = None
        if x.shape[1] > 1 or state is not None or want_state:
            # 2. In the layout b k g n (r p), so that all heads of a group share one product.
            w = (x * (dt * _decay_to_end(a))[..., None]).to(narrow)
            writes = (B.transpose(-1, -2) @ _joined(w)).to(wide)

            # 3.
            keep, before = _keep(a, x.shape[-1]), torch.empty_like(writes)
            end = torch.zeros_like(writes[:, 0]) if state is None else state
            for i, (write, kept) in enumerate(zip(writes.unbind(1), keep.unbind(1), strict=True)):
                before[:, i] = end
                end = torch.addcmul(write, kept, end)

            # 4.
            read = _split(C @ before.to(narrow), x.shape[4])
            y = torch.addcmul(y.to(wide), _exp_(a.clone())[..., None], read.to(wide), out=_natural_buffer(x, wide))

        ctx.save_for_backward(x, dt, B, C, A, a, decay, products, scores, x_by_head, w, before, read)
        ctx.length, ctx.has_skip, ctx.had_state = length, D is not None, state is not None
        y = y.flatten(3, 4).flatten(1, 2)[:, :length].to(narrow)
        if torch.compiler.is_compiling():  # torch 2.11 compiles zero gradients for an output that is a view or a buffer
            y = y.clone()
        return y, end if want_state else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dend: Tensor | None) -> tuple[Tensor | None, ...]:
        x, dt, B, C, A, a, decay, products, scores, x_by_head, w, before, read = ctx.saved_tensors
        narrow, wide = x.dtype, dt.dtype
        with without_autocast(x.device):
            dy = _in_chunks(dt.shape[2], dy)[0].unflatten(3, x.shape[3:5])

            # 1.
            dy_by_head = _by_head(dy).contiguous()
            dx = _natural(scores.transpose(-1, -2) @ dy_by_head)
            dscores = (dy_by_head @ x_by_head.transpose(-1, -2)).to(wide)
            dD = dscores.diagonal(dim1=-2, dim2=-1).sum(dim=(0, 1, 4)).flatten() if ctx.has_skip else None
            dproducts = dscores.mul_(decay).sum(dim=3).tril_().to(narrow)
            dB, dC = dproducts.transpose(-1, -2) @ C, dproducts @ B
            # How much of the loss flows from the token of a column to that of a row, and so through all decays between.
            through = dscores.mul_(products)
            gives, takes = (_tokens_first(through.sum(dim=dim)) for dim in (-2, -1))
            ddt = gives / _floored(dt)
            flow = _sum_from_here(takes - gives)

            dstate = None
            if before is not None:
                # 4.
                dread = (dy * _exp_(a.clone())[..., None]).to(narrow)
                dC = dC + _joined(dread) @ before.to(narrow).transpose(-1, -2)
                dbefore = (C.transpose(-1, -2) @ _joined(dread)).to(wide)
                flow = flow + _sum_from_here((dread * read).sum(-1, dtype=wide))

                # 3., backwards
                keep, dafter = _keep(a, x.shape[-1]), torch.empty_like(dbefore)
                dstate = torch.zeros_like(dbefore[:, 0]) if dend is None else dend
                for i in reversed(range(keep.shape[1])):
                    dafter[:, i] = dstate
                    dstate = torch.addcmul(dbefore[:, i], keep[:, i], dstate)
                across = (dafter * before).sum(dim=3, keepdim=True) * keep
                flow = flow + across.unflatten(4, x.shape[4:]).sum(-1).transpose(2, 3)

                # 2.
                to_end = _decay_to_end(a)
                dB = dB + _joined(w) @ dafter.to(narrow).transpose(-1, -2)
                dw = _split(B @ dafter.to(narrow), x.shape[4]).to(wide)
                dx = torch.addcmul(dx.to(wide), dw, (dt * to_end)[..., None], out=_natural_buffer(x, wide))
                ddt_written = (dw * x).sum(-1) * to_end
                ddt = ddt + ddt_written
                written = ddt_written * dt
                flow = flow + written.cumsum(2) - written

            ddt = ddt + flow * A
            dA = (flow * dt).sum(dim=(0, 1, 2)).flatten()

        dx, ddt, dB, dC = (
            d.flatten(1, 2)[:, : ctx.length]
            for d in (dx.flatten(3, 4).to(narrow), ddt.flatten(3, 4), dB.transpose(2, 3), dC.transpose(2, 3))
        )
        return dx, ddt, dB, dC, dA, dD, dstate if ctx.had_state else None, None, None


def _in_chunks(chunk: int, *sequences: Tensor) -> list[Tensor]:
    """[b, l, ...] as [b, k, q, ...]; zeros at the end write nothing and decay nothing."""
    padding = -sequences[0].shape[1] % chunk
    padded = (F.pad(s, (0, 0) * (s.dim() - 2) + (0, padding)) if padding else s for s in sequences)
    return [s.unflatten(1, (-1, chunk)) for s in padded]


def _by_head(natural: Tensor) -> Tensor:
    return natural.permute(0, 1, 3, 4, 2, 5)


def _natural(by_head: Tensor) -> Tensor:
    return by_head.permute(0, 1, 4, 2, 3, 5)


def _natural_buffer(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def _joined(natural: Tensor) -> Tensor:
    """b k q g r p as b k g q (r p)."""
    return natural.flatten(4).transpose(2, 3)


def _split(joined: Tensor, heads: int) -> Tensor:
    """b k g q (r p) as b k q g r p."""
    return joined.transpose(2, 3).unflatten(4, (heads, -1))


def _keep(a: Tensor, headdim: int) -> Tensor:
    """What a whole chunk leaves of the state before it, b k g 1 (r p)."""
    return _exp_(a[:, :, -1].clone())[..., None].expand(*a[:, :, -1].shape, headdim).flatten(3)[:, :, :, None]


def _decay_to_end(a: Tensor) -> Tensor:
    """What each token's write has left at the end of its chunk, b k q g r."""
    return _exp_(a[:, :, -1:] - a)


def _exp_(log_decay: Tensor) -> Tensor:
    """exp in place, nowhere below exp(-60), which is nothing beside 1, nor infinite where it will be masked.

    Without the bound products meet denormal numbers, which make them five times slower on a CPU.
    """
    return log_decay.clamp_(SMALLEST_LOG, -SMALLEST_LOG).exp_()


def _floored(dt: Tensor) -> Tensor:
    return dt.clamp_min(math.exp(SMALLEST_LOG_DT))


def _tokens_first(by_head: Tensor) -> Tensor:
    """b k g r q as b k q g r."""
    return by_head.permute(0, 1, 4, 2, 3)


def _sum_from_here(per_token: Tensor) -> Tensor:
    """Sum over this token and the later ones of its chunk, [b, k, q, ...]."""
    return per_token.flip(2).cumsum(2).flip(2)
