"""The scan as Triton kernels for CUDA devices, forward and backward: linear in tokens, and lean in memory and traffic.

The sequence is cut into chunks, computed as matrix products as in `chunked.py`, and chunks are grouped into segments. A
program walks through the chunks of one segment with the state of one head in registers, so that states reach memory
only at the borders of segments:

    forward    steps      dt, and a: the sum of dt A from the start of the chunk to each of its tokens
               segments   every segment from a zero state: its last state, and its decay
               pass       from segment to segment: the state that each really starts from
               forward    every segment again from there: y
    backward   the first three again, since only inputs were kept; segments and pass against the order of time, from
               dy: the gradient of the state after each segment
               keys       dC in the order of time, dB against it: each is the mirror image of the other
               backward   against the order of time: dx, d dt, dA, dD, d dt_bias and the gradient of the initial state

b batch   l tokens   h heads   p headdim   g groups   n d_state   Q tokens of a chunk
"""

from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from patchscale.costs.flops import scan_macs
from patchscale.errors import UserError
from patchscale.models.ssd.triton_kernels import (
    backward_kernel,
    backward_keys_kernel,
    forward_kernel,
    pass_kernel,
    segments_kernel,
    steps_kernel,
)
from patchscale.shapes import AdventurerShape

LARGEST_CHUNK_BYTES = 128  # of one channel: 64 tokens of 16 bit or 32 of float32; larger tiles overflow the registers
CHUNKS_PER_SEGMENT = 8
PROGRAMS_PER_MULTIPROCESSOR = 4  # that many hide each other's loads
# Without software pipelining: with it, products that read a state which is also updated are miscompiled for some
# devices (triton-lang/triton pull request 10993).
LAUNCH = {"num_stages": 1, "enable_fp_fusion": True}


def ssd_triton(
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
    """Output, in the dtype of `x`, and the final state in float32 if it is asked for; arguments as in `ssd_scan`.

    Products take the dtype of `x` (float32, bfloat16 or float16); sums, decays and states are float32. `chunk_size` is
    rounded up to a power of two from 16 to 64, 32 for float32. Raises `UserError` for float64.
    """
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UserError(f"the triton scan has no {str(x.dtype).removeprefix('torch.')}; use ssd_backend chunked")
    if initial_state is not None:
        initial_state = initial_state.float()
    y, final_state = torch.ops.patchscale.ssd_scan(
        x,
        dt,
        A,
        B.to(x.dtype),
        C.to(x.dtype),
        D,
        dt_bias,
        initial_state,
        dt_softplus,
        chunk_size or 0,
        return_final_state,
    )
    return y, final_state if return_final_state else None


# ---------------------------------------------------------------------------------------------------------------------
# Launches


class _Scan:
    """The inputs of a scan, how it is cut, and the launches over it."""

    def __init__(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        dt_bias: Tensor | None,
        dt_softplus: bool,
        chunk_size: int,
    ) -> None:
        self.x, self.B, self.C = (_with_contiguous_rows(tensor) for tensor in (x, B, C))
        self.A, self.D, self.dt_bias = A.contiguous(), _contiguous(D), _contiguous(dt_bias)
        self.dt, self.dt_softplus = dt, dt_softplus
        self.batch, self.length, self.heads, self.headdim = x.shape
        self.groups, self.d_state = B.shape[2:]
        self.heads_per_group = self.heads // self.groups
        largest = LARGEST_CHUNK_BYTES // x.element_size()
        self.chunk = triton.next_power_of_2(max(16, min(chunk_size or largest, largest, self.length)))
        self.chunks_per_segment, self.segments, self.heads_per_block = self._cut()
        self.steps = self._steps()

    def _cut(self) -> tuple[int, int, int]:
        """Chunks of a segment, segments, and heads whose dB and dC one program sums: programs enough for the device."""
        enough = PROGRAMS_PER_MULTIPROCESSOR * _multiprocessors(self.x.device)
        chunks = triton.cdiv(self.length, self.chunk)
        per_segment = CHUNKS_PER_SEGMENT
        while 2 < per_segment < chunks and self.batch * self.heads * triton.cdiv(chunks, per_segment) < enough:
            per_segment //= 2
        segments = triton.cdiv(chunks, per_segment)

        sizes_of_block = [n for n in range(self.heads_per_group, 0, -1) if self.heads_per_group % n == 0]
        heads_per_block = next((n for n in sizes_of_block if self.batch * segments * self.heads // n >= enough), 1)
        return per_segment, segments, heads_per_block

    def _steps(self) -> Tensor:
        """dt, and its product with A summed up from the start of each chunk [b, h, chunks, 2, Q]."""
        chunks = triton.cdiv(self.length, self.chunk)
        steps = self._new(self.heads, chunks, 2, self.chunk)
        block = 16
        self._launch(
            steps_kernel,
            chunks * triton.cdiv(self.heads, block),
            *_with_strides(self.dt),
            self.A,
            self.dt_bias,
            steps,
            self.length,
            self.heads,
            chunks,
            Q=self.chunk,
            SOFTPLUS=self.dt_softplus,
            BLOCK=block,
        )
        return steps

    def forward(self, initial_state: Tensor | None, return_final_state: bool) -> tuple[Tensor, Tensor | None]:
        """y, and the final state if it is asked for."""
        states = self._handed_over(initial_state, self.x, self.B, reverse=False)
        y = torch.empty(self.x.shape, dtype=self.x.dtype, device=self.x.device)
        final_state = self._new(self.heads, self.headdim, self.d_state) if return_final_state else None
        self._launch(
            forward_kernel,
            self.segments * self.heads,
            *_with_strides(self.x, self.B, self.C),
            self.steps,
            self.D,
            states,
            y,
            final_state,
            *self._sizes(),
            **self._tile(),
        )
        return y, final_state

    def backward(self, dy: Tensor, dfinal_state: Tensor | None, initial_state: Tensor | None) -> dict[str, Tensor]:
        """Gradients by name, in float32 but for that of x; those of what was left out have no meaning."""
        dy = _with_contiguous_rows(dy)
        states = self._handed_over(initial_state, self.x, self.B, reverse=False)
        dstates = self._handed_over(dfinal_state, dy, self.C, reverse=True)

        flow = self._new(self.segments, self.heads)
        dC, *reads = self._keys_backward(dy, self.C, self.x, self.B, states, dstates, flow, reverse=False)
        dB, *writes = self._keys_backward(self.x, self.B, dy, self.C, dstates, None, None, reverse=True)

        dx = torch.empty(self.x.shape, dtype=self.x.dtype, device=self.x.device)
        ddt = self._new(self.length, self.heads)
        sums = self._new(self.segments, self.heads, 3)
        dinitial_state = self._new(self.heads, self.headdim, self.d_state)
        self._launch(
            backward_kernel,
            self.segments * self.heads,
            *_with_strides(dy, self.x, self.B, self.C, self.dt),
            self.steps,
            self.A,
            self.dt_bias,
            self.D,
            dstates,
            *reads,
            *writes,
            flow,
            dx,
            ddt,
            sums,
            dinitial_state,
            *self._sizes(),
            **self._tile(),
            SOFTPLUS=self.dt_softplus,
        )
        dA, dD, ddt_bias = (
            total.clone() for total in sums.sum(dim=(0, 1)).unbind(-1)
        )  # operators may not return views
        return {
            "x": dx,
            "dt": ddt,
            "A": dA,
            "B": dB,
            "C": dC,
            "D": dD,
            "dt_bias": ddt_bias,
            "initial_state": dinitial_state,
        }

    def _handed_over(self, first: Tensor | None, v: Tensor, k: Tensor, *, reverse: bool) -> Tensor | None:
        """States [b, segments, h, p, n] that segments start from in this order: `first` or zeros for the first one."""
        if self.segments == 1:
            return first
        states = self._new(self.segments, self.heads, self.headdim, self.d_state)
        states[:, -1 if reverse else 0] = 0.0 if first is None else first
        decays = self._new(self.segments, self.heads)
        self._launch(
            segments_kernel,
            (self.segments - 1) * self.heads,
            *_with_strides(v, k),
            self.steps,
            states,
            decays,
            *self._sizes(),
            **self._tile(),
            REVERSE=reverse,
        )
        size = self.headdim * self.d_state
        block = min(1024, triton.next_power_of_2(size))
        self._launch(
            pass_kernel,
            triton.cdiv(size, block) * self.heads,
            states,
            decays,
            self.heads,
            self.segments,
            SIZE=size,
            BLOCK=block,
            REVERSE=reverse,
        )
        return states

    def _keys_backward(
        self,
        v: Tensor,
        k: Tensor,
        other_v: Tensor,
        other_k: Tensor,
        states: Tensor | None,
        border_states: Tensor | None,
        flow: Tensor | None,
        *,
        reverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of k (C, or B if reversed) [b, l, g, n]; what of <dk, k> crosses chunks [b, l, h]; its sums."""
        blocks = self.heads // self.heads_per_block
        dk_of_blocks = self._new(self.length, blocks, self.d_state)
        crossing = self._new(self.length, self.heads)
        crossing_sum = self._new(self.heads, triton.cdiv(self.length, self.chunk))
        self._launch(
            backward_keys_kernel,
            self.segments * blocks,
            *_with_strides(v, k, other_v, other_k),
            self.steps,
            states,
            border_states,
            dk_of_blocks,
            crossing,
            crossing_sum,
            flow,
            *self._sizes(),
            self.heads_per_block,
            **self._tile(),
            REVERSE=reverse,
        )
        return dk_of_blocks.unflatten(2, (self.groups, -1)).sum(3), crossing, crossing_sum

    def _new(self, *shape: int) -> Tensor:
        return torch.empty((self.batch, *shape), dtype=torch.float32, device=self.x.device)

    def _sizes(self) -> tuple[int, ...]:
        return self.length, self.heads, self.heads_per_group, self.segments, self.chunks_per_segment

    def _tile(self) -> dict[str, int]:
        """Constants that kernels are compiled for."""
        block_p, block_n = (max(16, triton.next_power_of_2(size)) for size in (self.headdim, self.d_state))
        return {"P": self.headdim, "N": self.d_state, "BLOCK_P": block_p, "BLOCK_N": block_n, "Q": self.chunk}

    def _launch(self, kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
        """Run `programs` for each sequence of the batch."""
        num_warps = 4 if self.headdim * self.d_state <= 64 * 64 else 8  # the state is in their registers
        on_device = torch.cuda.device(self.x.device) if self.x.is_cuda else nullcontext()
        with on_device:
            kernel[(self.batch * programs,)](*args, **constants, **LAUNCH, num_warps=num_warps)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _with_contiguous_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _with_strides(*tensors: Tensor) -> list[Any]:
    """Each tensor, followed by its strides but for the last of rows."""
    return [argument for tensor in tensors for argument in (tensor, *tensor.stride()[:3])]


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


# ---------------------------------------------------------------------------------------------------------------------
# Operators: what autograd and torch.compile see


@torch.library.custom_op("patchscale::ssd_scan", mutates_args=(), device_types=("cpu", "cuda"))
def _ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    chunk_size: int,
    return_final_state: bool,
) -> tuple[Tensor, Tensor]:
    """y and the final state; an empty tensor if it is not asked for."""
    scan = _Scan(x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size)
    y, final_state = scan.forward(_contiguous(initial_state), return_final_state)
    return y, x.new_empty(0, dtype=torch.float32) if final_state is None else final_state


@_ssd_scan.register_fake
def _(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    chunk_size: int,
    return_final_state: bool,
) -> tuple[Tensor, Tensor]:
    batch, _, heads, headdim = x.shape
    shape = (batch, heads, headdim, B.shape[-1]) if return_final_state else (0,)
    return x.new_empty(x.shape), x.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("patchscale::ssd_scan_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _ssd_scan_backward(
    dy: Tensor,
    dfinal_state: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    chunk_size: int,
) -> list[Tensor]:
    """Gradients of those of x, dt, A, B, C, D, dt_bias and initial_state that are there."""
    scan = _Scan(x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size)
    gradients = scan.backward(dy, _contiguous(dfinal_state), _contiguous(initial_state))
    inputs = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "dt_bias": dt_bias, "initial_state": initial_state}
    return [gradients[name].to(value.dtype) for name, value in inputs.items() if value is not None]


@_ssd_scan_backward.register_fake
def _(
    dy: Tensor,
    dfinal_state: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    chunk_size: int,
) -> list[Tensor]:
    inputs = (x, dt, A, B, C, D, dt_bias, initial_state)
    return [value.new_empty(value.shape) for value in inputs if value is not None]


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.dt_softplus, ctx.chunk_size, ctx.has_final_state = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor, dfinal_state: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    gradients = iter(
        torch.ops.patchscale.ssd_scan_backward(
            dy, dfinal_state if ctx.has_final_state else None, *inputs, ctx.dt_softplus, ctx.chunk_size
        )
    )
    return *(None if value is None else next(gradients) for value in inputs), None, None, None


_ssd_scan.register_autograd(_backward, setup_context=_save_inputs)


@register_flop_formula(torch.ops.patchscale.ssd_scan)
def _flops(x_shape: tuple[int, ...], dt: Any, A: Any, B_shape: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
    """FLOPs by the convention of `patchscale.costs`, whatever chunks the kernels use; else torch would count none."""
    batch, length, heads, headdim = x_shape
    groups, d_state = B_shape[2:]
    chunk_size = AdventurerShape.chunk_size
    macs = scan_macs(length, d_inner=heads * headdim, d_state=d_state, chunk_size=chunk_size, groups=groups)
    return 2 * batch * macs


@register_flop_formula(torch.ops.patchscale.ssd_scan_backward)
def _backward_flops(dy: Any, dfinal_state: Any, *inputs: Any, **kwargs: Any) -> int:
    return 2 * _flops(*inputs)
