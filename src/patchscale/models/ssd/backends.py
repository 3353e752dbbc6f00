"""The implementations of the scan by name, and what each has to accept and return."""

from typing import Any, Protocol

from torch import Tensor

from patchscale.models.ssd.chunked import ssd_chunked
from patchscale.models.ssd.reference import ssd_reference


class SSDBackend(Protocol):
    """An implementation of the scan; the arguments are those of `ssd_scan`."""

    def __call__(
        self,
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
        """Output, in the dtype of `x`, and the final state if it is asked for. `chunk_size` None is its own choice."""
        ...


def _ssd_triton(*tensors: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    from patchscale.models.ssd.triton import ssd_triton  # imports triton, which not every machine has

    return ssd_triton(*tensors, **options)


SSD_BACKENDS: dict[str, SSDBackend] = {"triton": _ssd_triton, "chunked": ssd_chunked, "reference": ssd_reference}
