"""The state-space scan of Mamba-2 (SSD, arXiv 2405.21060): one function, several implementations.

For each head, with a state S of headdim x d_state numbers that starts at zero:

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T          y_t = S_t C_t + D x_t

B batch   L tokens   H heads   P headdim   G groups (H / G heads share B and C)   N d_state
"""

from typing import Literal, overload

from torch import Tensor

from patchscale.errors import UserError
from patchscale.models.ssd.backends import SSD_BACKENDS, SSDBackend
from patchscale.models.ssd.selection import AUTO, backend_and_reason, resolve_backend, self_check


@overload
def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    backend: str = AUTO,
    chunk_size: int | None = None,
    initial_state: Tensor | None = None,
    return_final_state: Literal[False] = False,
) -> Tensor: ...


@overload
def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    backend: str = AUTO,
    chunk_size: int | None = None,
    initial_state: Tensor | None = None,
    return_final_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    backend: str = AUTO,
    chunk_size: int | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the scan over x [B, L, H, P] and return y of the same shape and dtype.

    dt [B, L, H] is positive, or becomes so: `dt_bias` [H] is added to it, then softplus taken if `dt_softplus`.
    A [H] is negative, B and C are [B, L, G, N], D [H] is the skip weight. With `return_final_state` the result is
    (y, S_L [B, H, P, N]), S_L at least float32; it can be given as `initial_state` to go on. `chunk_size` is about how
    many tokens are computed as one matrix product; it changes speed and rounding only. Second derivatives are not
    available. Raises `UserError` for a `backend` that is unknown or cannot run on the device of `x`, and for sizes that
    do not fit together.
    """
    heads, groups = x.shape[2], B.shape[2]
    if x.shape[1] < 1 or heads % groups:
        sizes = f"{x.shape[1]} tokens, {heads} heads, {groups} groups"
        raise UserError(f"a scan needs tokens, and heads in equal groups; got {sizes}")
    if chunk_size is not None and chunk_size < 1:
        raise UserError(f"chunk_size={chunk_size} must be a positive number of tokens, or None for a fast one")
    y, final_state = SSD_BACKENDS[resolve_backend(backend, x.device)](
        x,
        dt,
        A,
        B,
        C,
        D,
        dt_bias=dt_bias,
        dt_softplus=dt_softplus,
        chunk_size=chunk_size,
        initial_state=initial_state,
        return_final_state=return_final_state,
    )
    if not return_final_state:
        return y
    assert final_state is not None
    return y, final_state


__all__ = ["AUTO", "SSD_BACKENDS", "SSDBackend", "backend_and_reason", "resolve_backend", "self_check", "ssd_scan"]
