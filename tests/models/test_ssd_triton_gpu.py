"""The Triton kernels of the scan on a GPU, at the sizes of Adventurer-Base: 24 heads of 64, states of 64."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

HEADS, HEADDIM, D_STATE = 24, 64, 64
WIDTHS = [HEADS * HEADDIM, D_STATE, D_STATE, HEADS]
NAMES = ("x", "dt", "A", "B", "C", "D", "dt_bias", "initial_state")


def inputs_in_place(batch: int, length: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """x, B, C and dt as slices of one wide tensor, as a projection leaves them; the rest in float32."""
    generator = torch.Generator("cuda").manual_seed(length)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=dtype)

    x, B, C, dt = normal(batch, length, sum(WIDTHS), dtype=dtype).split(WIDTHS, dim=-1)
    return {
        "x": x.unflatten(-1, (HEADS, HEADDIM)),
        "dt": dt,
        "A": -torch.linspace(1, 16, HEADS, device="cuda"),
        "B": B.unsqueeze(2),
        "C": C.unsqueeze(2),
        "D": torch.ones(HEADS, device="cuda"),
        "dt_bias": torch.linspace(-7, -2, HEADS, device="cuda"),
        "initial_state": normal(batch, HEADS, HEADDIM, D_STATE),
    }


def run(scan, inputs: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    """Output, final state, and the gradients of a fixed projection of both."""
    leaves = {name: inputs[name].detach().requires_grad_() for name in NAMES}
    y, state = scan(**leaves, dt_softplus=True, chunk_size=None, return_final_state=True)
    generator = torch.Generator("cuda").manual_seed(1)
    weights = [
        torch.randn(out.shape, generator=generator, device="cuda").bfloat16().to(out.dtype) for out in (y, state)
    ]
    gradients = torch.autograd.grad([y, state], list(leaves.values()), weights)
    return {"y": y.detach(), "state": state.detach()} | dict(zip(NAMES, gradients, strict=True))


def assert_close(ours: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float) -> None:
    for name, value in truth.items():
        assert ours[name].isfinite().all(), name
        error = (ours[name].double() - value.double()).abs().max() / value.double().abs().max()
        assert error < tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 3e-2)], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("batch", "length"), [(3, 18), (2, 258), (2, 1026), (1, 4098), (1, 50178)])
def test_output_states_and_every_gradient(batch: int, length: int, dtype: torch.dtype, tolerance: float) -> None:
    from patchscale.models.ssd.chunked import ssd_chunked
    from patchscale.models.ssd.triton import ssd_triton

    inputs = inputs_in_place(batch, length, dtype)
    truth = run(ssd_chunked, {name: value.double() for name, value in inputs.items()})
    assert_close(run(ssd_triton, inputs), truth, tolerance)


@pytest.mark.parametrize("length", [258, 50178])
def test_two_runs_agree_bit_by_bit(length: int) -> None:
    from patchscale.models.ssd.triton import ssd_triton

    inputs = inputs_in_place(2, length, torch.bfloat16)
    first, second = run(ssd_triton, inputs), run(ssd_triton, inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_one_graph_when_compiled() -> None:
    from patchscale.models.ssd.triton import ssd_triton

    inputs = inputs_in_place(2, 1026, torch.bfloat16)
    compiled = torch.compile(ssd_triton, fullgraph=True)
    assert_close(run(compiled, inputs), run(ssd_triton, inputs), 1e-5)


def test_offsets_beyond_32_bits() -> None:
    """The last image of a batch whose projection has more than 2^31 numbers is as if it were alone."""
    from patchscale.models.ssd.triton import ssd_triton

    length = 50178
    batch = 2**31 // (length * sum(WIDTHS)) + 2
    bytes_needed = 5 * batch * length * sum(WIDTHS) * 2
    if torch.cuda.mem_get_info()[0] < bytes_needed:
        pytest.skip(f"needs {bytes_needed / 2**30:.0f} GiB of free GPU memory")
    inputs = inputs_in_place(batch, length, torch.bfloat16)
    assert inputs["x"].stride(0) < 2**31 < (batch - 1) * inputs["x"].stride(0)
    shared = {"A", "D", "dt_bias"}
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    alone = {
        name: (value if name in shared else value[-1:]).detach().requires_grad_() for name, value in inputs.items()
    }
    results = []
    for tensors in (leaves, alone):
        y, _ = ssd_triton(**tensors, dt_softplus=True, chunk_size=None, return_final_state=False)
        y[-1].float().square().mean().backward()
        results.append({"y": y[-1].detach()} | {name: tensors[name].grad for name in ("x", "dt", "B", "C")})
    whole, last = ({name: value if name == "y" else value[-1] for name, value in found.items()} for found in results)
    assert_close(whole, last, 1e-2)


def test_memory_of_a_training_step() -> None:
    """At 50,178 tokens, beyond inputs and their gradients: less than twice the size of x."""
    from patchscale.models.ssd.triton import ssd_triton

    inputs = inputs_in_place(1, 50178, torch.bfloat16)
    leaves = {name: inputs[name].detach().requires_grad_() for name in NAMES}
    run(ssd_triton, inputs)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y, _ = ssd_triton(**leaves, dt_softplus=True, chunk_size=None, return_final_state=False)
    dy = torch.ones_like(y)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy)
    kept = sum(value.numel() * value.element_size() for value in (y, dy, *gradients))
    x_bytes = leaves["x"].numel() * 2
    assert torch.cuda.max_memory_allocated() - before - kept < 2 * x_bytes
