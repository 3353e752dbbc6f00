"""The state-space scan of Mamba-2 (SSD, arXiv 2405.21060): one function, several implementations.

For each head, with a state S of headdim x d_state numbers that starts at zero:

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T          y_t = S_t C_t + D x_t

B batch   L tokens   H heads   P headdim   G groups (H / G heads share B and C)   N d_state
"""

from typing import Literal, Protocol, overload

from torch import Tensor

from patchscale.errors import UserError
from patchscale.models.ssd.chunked import ssd_chunked
from patchscale.models.ssd.reference import ssd_reference


class SSDBackend(Protocol):
    """What an implementation of the scan has to accept and return."""

    def __call__(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        *,
        chunk_size: int,
        initial_state: Tensor | None,
        return_final_state: bool,
    ) -> tuple[Tensor, Tensor | None]: ...


SSD_BACKENDS: dict[str, SSDBackend] = {"chunked": ssd_chunked, "reference": ssd_reference}
DEFAULT_BACKEND = "chunked"
# Fastest forward and backward on CPU among 16 to 256 at 18 to 4,098 tokens (measured 2026-11-22, float32).
DEFAULT_CHUNK_SIZE = 64


@overload
def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    backend: str = DEFAULT_BACKEND,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
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
    backend: str = DEFAULT_BACKEND,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
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
    backend: str = DEFAULT_BACKEND,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the scan over x [B, L, H, P] and return y of the same shape and dtype.

    dt [B, L, H] is positive (softplus already applied), A [H] negative, B and C are [B, L, G, N], D [H] is the skip
    weight. With `return_final_state` the result is (y, S_L [B, H, P, N]), S_L at least float32; it can be given as
    `initial_state` to go on. `chunk_size` is about how many tokens are computed as one matrix product; it changes
    speed and rounding only. Raises `UserError` for an unknown backend.
    """
    if backend not in SSD_BACKENDS:
        raise UserError(f"ssd backend {backend!r} is unknown; choose one of {', '.join(SSD_BACKENDS)}")
    y, final_state = SSD_BACKENDS[backend](
        x,
        dt,
        A,
        B,
        C,
        D,
        chunk_size=chunk_size,
        initial_state=initial_state,
        return_final_state=return_final_state,
    )
    if not return_final_state:
        return y
    assert final_state is not None
    return y, final_state


__all__ = ["DEFAULT_BACKEND", "DEFAULT_CHUNK_SIZE", "SSD_BACKENDS", "SSDBackend", "ssd_scan"]
