"""What the Triton kernels of the scan compute, in Triton's interpreter on CPU; run by `test_ssd_triton.py`.

Not collected by itself: the interpreter has to be chosen before anything imports triton. It takes about 0.2 s for a
chunk of a head, so everything here is as small as it can be.
"""

import multiprocessing
import resource
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from patchscale.costs.flops import scan_macs
from patchscale.errors import UserError
from patchscale.models.ssd import triton as launches
from patchscale.models.ssd import triton_kernels as kernels
from patchscale.models.ssd.reference import ssd_reference
from patchscale.models.ssd.triton import ssd_triton

assert triton.knobs.runtime.interpret

CHUNKS_PER_SEGMENT = 2


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "CHUNKS_PER_SEGMENT", CHUNKS_PER_SEGMENT)


def random_inputs(
    length: int, *, batch: int = 1, heads: int = 2, groups: int = 1, headdim: int = 24, d_state: int = 20
) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "x": normal(batch, length, heads, headdim),
        "dt": normal(batch, length, heads) - 1,
        "A": -torch.linspace(0.5, 8, heads),
        "B": normal(batch, length, groups, d_state),
        "C": normal(batch, length, groups, d_state),
        "D": normal(heads),
        "dt_bias": normal(heads),
        "initial_state": normal(batch, heads, headdim, d_state),
    }


def run(scan, inputs, *, chunk_size=16, dt_softplus=True):  # type: ignore[no-untyped-def]
    """Output, final state, and the gradient of a fixed random projection of both for each input that is there."""
    leaves = {name: value.requires_grad_() for name, value in inputs.items() if value is not None}
    y, state = scan(**inputs, chunk_size=chunk_size, dt_softplus=dt_softplus, return_final_state=True)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=generator).bfloat16().to(out.dtype) for out in (y, state)]
    gradients = torch.autograd.grad([y, state], list(leaves.values()), weights)
    return {"y": y.detach(), "state": state.detach()} | dict(zip(leaves, gradients, strict=True))


def double(inputs: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: None if value is None else value.detach().double() for name, value in inputs.items()}


def assert_is_the_recurrence(inputs, tolerance, **options):  # type: ignore[no-untyped-def]
    truth = run(ssd_reference, double(inputs), **options)
    ours = run(ssd_triton, inputs, **options)
    for name, value in truth.items():
        assert ours[name].shape == value.shape
        assert ours[name].dtype == (torch.float32 if name == "state" else inputs[{"y": "x"}.get(name, name)].dtype)
        error = (ours[name].double() - value).abs().max() / value.abs().max()
        assert error < tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize(
    ("length", "chunk_size", "groups"),
    [
        (1, 16, 1),
        (2, 16, 2),
        (15, 16, 1),
        (16, 16, 2),
        (17, 16, 1),
        (63, 32, 1),
        (64, 32, 2),
        (65, 32, 1),
        (200, None, 2),
    ],
)
def test_output_states_and_every_gradient(length: int, chunk_size: int | None, groups: int) -> None:
    assert_is_the_recurrence(random_inputs(length, groups=groups), 1e-5, chunk_size=chunk_size)


@pytest.mark.parametrize(("length", "missing"), [(5, ("D",)), (5, ("dt_bias",)), (33, ("initial_state",))])
def test_what_may_be_left_out(length: int, missing: tuple[str, ...]) -> None:
    assert_is_the_recurrence(random_inputs(length) | dict.fromkeys(missing), 1e-5)


def test_steps_without_softplus() -> None:
    inputs = random_inputs(17)
    inputs["dt"] = inputs["dt"].abs()
    inputs["dt_bias"] = inputs["dt_bias"].abs()
    assert_is_the_recurrence(inputs, 1e-5, dt_softplus=False)


def test_small_steps_are_exact() -> None:
    """softplus(-12) = 6.1e-6, of which log(1 + exp(-12)) in float32 would keep two digits."""
    inputs = random_inputs(16)
    inputs["dt"] = inputs["dt"] - 12
    assert_is_the_recurrence(inputs | {"initial_state": None, "D": None}, 1e-5)


def test_strong_decay_stays_finite_and_right() -> None:
    """A = -16 and dt about 1 forget all within a token; exp of the future would overflow if it were not masked."""
    inputs = random_inputs(50)
    inputs["A"] = torch.full((2,), -16.0)
    inputs["dt"] = 1 + 0.1 * inputs["dt"]
    assert_is_the_recurrence(inputs | {"dt_bias": None}, 1e-4, dt_softplus=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs_keep_a_float32_state(dtype: torch.dtype) -> None:
    inputs = random_inputs(50)
    for name in "xBC":
        inputs[name] = inputs[name].to(dtype)
    assert_is_the_recurrence(inputs, 1e-2)


def test_tensors_with_any_strides() -> None:
    inputs = random_inputs(33, batch=2, groups=2)
    wide = torch.zeros(2, 33, 200)
    x, B, C, dt = wide.split([48, 40, 40, 2, 70], dim=-1)[:4]
    views = {"x": x.unflatten(-1, (2, 24)), "B": B.unflatten(-1, (2, 20)), "C": C.unflatten(-1, (2, 20)), "dt": dt}
    for name, view in views.items():
        view.copy_(inputs[name])
    views = {name: view.detach() for name, view in views.items()}
    copied = {"C": inputs["C"].movedim(-1, 1).contiguous().movedim(1, -1)}  # columns of which are rows in memory
    copied |= {name: inputs[name].repeat_interleave(2)[::2] for name in ("A", "D", "dt_bias")}
    assert_is_the_recurrence(inputs | views | copied, 1e-5)


@pytest.mark.parametrize(("programs", "heads_per_block"), [(1, 4), (2, 2), (1000, 1)])
def test_heads_are_summed_by_one_program_or_by_several(
    programs: int, heads_per_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launches, "PROGRAMS_PER_MULTIPROCESSOR", programs)
    inputs = random_inputs(17, heads=4)
    scan = launches._Scan(*(inputs[name] for name in ("x", "dt", "A", "B", "C", "D", "dt_bias")), True, 16)
    assert (scan.segments, scan.heads_per_block) == (1, heads_per_block)
    assert_is_the_recurrence(inputs, 1e-5)


def test_two_runs_agree_bit_by_bit() -> None:
    first, second = (run(ssd_triton, random_inputs(40)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def far_apart(tensor: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The same values at places whose offsets pass 2^31; memory between them is never touched."""
    extent = sum((size - 1) * step for size, step in zip(tensor.shape, stride, strict=True)) + 1
    assert extent > 2**31
    view = torch.empty(extent, dtype=tensor.dtype).as_strided(tensor.shape, stride)
    return view.copy_(tensor)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


FAR_BATCHES, FAR_TOKENS = (12 * 10**8, 16, 16, 1), (16, 2**27 + 16, 16, 1)


@pytest.mark.parametrize(("batch", "stride"), [(3, FAR_BATCHES), (1, FAR_TOKENS)], ids=["batches", "tokens"])
def test_offsets_beyond_32_bits(batch: int, stride: tuple[int, ...]) -> None:
    """Each factor fits into 32 bits, as Triton takes it, and the product does not."""
    inputs = random_inputs(17, batch=batch, heads=1, headdim=16, d_state=16)
    inputs = {name: value.bfloat16() if name in "xBC" else value for name, value in inputs.items()}
    before = resident_bytes()
    far = inputs | {name: far_apart(inputs[name], stride) for name in "xBC"}
    assert resident_bytes() - before < 2**28, "the gaps are in memory"
    assert_is_the_recurrence(far, 1e-2)


def run_with_32_bit_offsets() -> None:
    kernels.INDEX = tl.constexpr(tl.int32)
    test_offsets_beyond_32_bits(3, FAR_BATCHES)


def test_offsets_need_64_bits() -> None:
    """In 32 bits the same reads what is not its own: a wrong result, or the end of the process."""
    process = multiprocessing.get_context("fork").Process(target=run_with_32_bit_offsets)
    process.start()
    process.join()
    assert process.exitcode != 0


def test_operators_keep_the_rules_of_torch() -> None:
    """Schema, autograd registration, and shapes under fake tensors."""
    inputs = random_inputs(3, heads=1, headdim=2, d_state=2)
    rules = ("test_schema", "test_autograd_registration", "test_faketensor")
    leaves = [value.requires_grad_() for value in inputs.values()]
    torch.library.opcheck(torch.ops.patchscale.ssd_scan, (*leaves, True, 16, True), test_utils=rules)
    detached = [value.detach() for value in inputs.values()]
    arguments = (torch.ones_like(detached[0]), torch.ones_like(detached[-1]), *detached, True, 16)
    torch.library.opcheck(torch.ops.patchscale.ssd_scan_backward, arguments, test_utils=rules)


def test_one_graph_when_compiled() -> None:
    inputs = {name: value.requires_grad_() for name, value in random_inputs(5).items()}

    def loss(**inputs: Tensor) -> Tensor:
        y, _ = ssd_triton(**inputs, dt_softplus=True, chunk_size=None, return_final_state=False)
        return y.square().sum()

    expected = torch.autograd.grad(loss(**inputs), list(inputs.values()))
    found = torch.autograd.grad(
        torch.compile(loss, fullgraph=True, backend="aot_eager")(**inputs), list(inputs.values())
    )
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_torch_counts_its_flops_as_the_cost_formula_does() -> None:
    inputs = {name: value.requires_grad_() for name, value in random_inputs(20).items()}
    with FlopCounterMode(display=False) as counter:
        y, _ = ssd_triton(**inputs, dt_softplus=True, chunk_size=16, return_final_state=False)
        forward = counter.get_total_flops()
        y.sum().backward()
    batch, length, heads, headdim = inputs["x"].shape
    groups, d_state = inputs["B"].shape[2:]
    macs = scan_macs(length, d_inner=heads * headdim, d_state=d_state, chunk_size=256, groups=groups)
    assert forward == 2 * batch * macs
    assert counter.get_total_flops() == 3 * forward


def test_float64_is_refused() -> None:
    with pytest.raises(UserError, match="the triton scan has no float64; use ssd_backend chunked"):
        run(ssd_triton, double(random_inputs(3)))
