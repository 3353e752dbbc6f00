"""The scan as its definition, one token after another in float64: slow, and the truth that tests compare with."""

import torch
import torch.nn.functional as F
from torch import Tensor


def ssd_reference(
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
    """Output, in the dtype of `x`, and the final state in float64 if it is asked for; arguments as in `ssd_scan`.

    `chunk_size` has no meaning here: nothing is cut.
    """
    batch, length, heads, headdim = x.shape
    heads_per_group = heads // B.shape[2]
    x64, dt, A = x.double(), dt.double(), A.double()
    if dt_bias is not None:
        dt = dt + dt_bias.double()
    if dt_softplus:
        dt = F.softplus(dt)
    B, C = (M.double().repeat_interleave(heads_per_group, dim=2) for M in (B, C))
    state = x64.new_zeros(batch, heads, headdim, B.shape[-1]) if initial_state is None else initial_state.double()

    outputs = []
    for t in range(length):
        keep = torch.exp(dt[:, t] * A)
        write = torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], x64[:, t], B[:, t])
        state = keep[..., None, None] * state + write
        outputs.append(torch.einsum("bhpn,bhn->bhp", state, C[:, t]))
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + D.double()[:, None] * x64
    return y.to(x.dtype), state if return_final_state else None
