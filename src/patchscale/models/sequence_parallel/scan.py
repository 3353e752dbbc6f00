"""What a piece of a sequence leaves in the state of the scan, without the scan's outputs.

The recurrence is linear (`patchscale.models.ssd`), so a piece turns a state S into exp(k) S + W, where neither k, its
log decay, nor W, what it writes into an empty state, depends on S. Pieces find theirs at the same time.

B batch   L tokens   H heads   P headdim   N d_state
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from patchscale.models.autocast import without_autocast
from patchscale.models.ssd.chunked import SMALLEST_LOG


def written_state(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """W [B, H, P, N] and k [B, H], at least float32.

    x [B, L, H, P], dt [B, L, H] before bias and softplus, A [H] negative, B [B, L, N], as in `ssd_scan` with one group.
    """
    with without_autocast(x.device):
        wide = torch.promote_types(x.dtype, torch.float32)
        dt = F.softplus(dt.to(wide) + dt_bias.to(wide))
        # Summed from the end, so that the last tokens, which matter most, are not rounded at the size of the whole.
        from_here = (dt * A.to(wide)).flip(1).cumsum(1).flip(1)
        to_end = F.pad(from_here[:, 1:], (0, 0, 0, 1)).clamp_min(SMALLEST_LOG).exp()
        w = (x * (dt * to_end)[..., None]).to(x.dtype)
        written = w.flatten(2).transpose(1, 2) @ B  # B (H P) N
        return written.to(wide).unflatten(1, x.shape[2:]), from_here[:, 0]
