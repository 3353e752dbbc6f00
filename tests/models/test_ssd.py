"""The chunked scan against the sequential recurrence in float64: outputs, states and every gradient."""

import pytest
import torch
import torch.nn.functional as F
from tests.models.conftest import expected, golden, waves
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from patchscale.errors import UserError
from patchscale.models.ssd import ssd_scan
from patchscale.models.ssd.chunked import CHUNKS_PER_SEGMENT, chunk_length

CHUNK = 8
SEGMENT = CHUNK * CHUNKS_PER_SEGMENT
NAMES = ("x", "dt", "A", "B", "C", "D")


def random_inputs(
    length: int, *, groups: int = 1, batch: int = 2, heads: int = 4, headdim: int = 5, d_state: int = 6
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "x": normal(batch, length, heads, headdim),
        "dt": F.softplus(normal(batch, length, heads) - 2),
        "A": -torch.linspace(0.5, 16, heads, dtype=torch.float64),
        "B": normal(batch, length, groups, d_state),
        "C": normal(batch, length, groups, d_state),
        "D": normal(heads),
    }


def run(inputs: dict[str, Tensor], **options: object) -> dict[str, Tensor]:
    """Output, final state, and the gradient of a fixed random projection of output and final state for each input."""
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    y, state = ssd_scan(**leaves, return_final_state=True, **options)  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(1)
    weight_y = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    weight_state = torch.randn(state.shape, generator=generator, dtype=torch.float64).to(state.dtype)
    total = (y * weight_y).sum() + (state * weight_state).sum().to(y.dtype)
    gradients = torch.autograd.grad(total, list(leaves.values()))
    results = {"y": y, "state": state} | dict(zip(NAMES, gradients, strict=True))
    return {name: value.detach() for name, value in results.items()}


def assert_all_close(ours: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float) -> None:
    for name, value in truth.items():
        error = (ours[name].double() - value.double()).abs().max() / value.abs().max().clamp_min(1e-30)
        assert error < tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "length", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5, SEGMENT, SEGMENT + 1, 2 * SEGMENT + 29]
)
def test_chunked_is_the_recurrence(length: int, groups: int) -> None:
    inputs = random_inputs(length, groups=groups)
    truth = run(inputs, backend="reference")
    ours = run(inputs, chunk_size=CHUNK)
    assert_all_close(ours, truth, 1e-11)


@pytest.mark.parametrize("length", [1, 17, 258])
def test_float32_and_default_chunk(length: int) -> None:
    inputs = random_inputs(length, headdim=16, d_state=16)
    truth = run(inputs, backend="reference")
    ours = run({name: value.float() for name, value in inputs.items()})
    assert ours["y"].dtype == ours["state"].dtype == torch.float32
    assert_all_close(ours, truth, 2e-5)


@pytest.mark.parametrize("length", [63, 2 * SEGMENT + 3])
def test_strong_decay_stays_finite_and_right(length: int) -> None:
    """A = -16 and dt about 1 forget all within a token; exp of the future would overflow if it were not masked."""
    inputs = random_inputs(length)
    inputs["A"] = torch.full_like(inputs["A"], -16.0)
    inputs["dt"] = inputs["dt"] * 0 + 1 + 0.1 * waves(tuple(inputs["dt"].shape), 0.7, 0)
    truth = run(inputs, backend="reference")
    ours = run({name: value.float() for name, value in inputs.items()})
    assert all(value.isfinite().all() for value in ours.values())
    # What A matters is then of the order exp(-16), below float32's rounding of what dt matters.
    error_of_A = (ours.pop("A") - truth.pop("A")).abs().max()
    assert error_of_A < 1e-6 * (inputs["dt"] * truth["dt"]).abs().sum()
    assert_all_close(ours, truth, 1e-4)


def test_no_decay_at_all_is_a_running_sum() -> None:
    """With A near 0 and B = C = 1 the scan is a cumulative sum of dt x."""
    x, dt = waves((1, 40, 2, 3), 0.3, 0), waves((1, 40, 2), 0.2, 1) + 2
    ones = torch.ones(1, 40, 1, 1, dtype=torch.float64)
    y = ssd_scan(x, dt, torch.full((2,), -1e-12, dtype=torch.float64), ones, ones, chunk_size=CHUNK)
    torch.testing.assert_close(y, (dt[..., None] * x).cumsum(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_a_state_continues_a_sequence(backend: str) -> None:
    inputs = random_inputs(2 * SEGMENT + 7)
    cut = SEGMENT + 3
    whole, final = ssd_scan(**inputs, backend=backend, chunk_size=CHUNK, return_final_state=True)
    state, parts = None, []
    for window in (slice(0, cut), slice(cut, None)):
        piece = {name: value if name in "AD" else value[:, window] for name, value in inputs.items()}
        y, state = ssd_scan(**piece, backend=backend, chunk_size=CHUNK, initial_state=state, return_final_state=True)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_golden(backend: str) -> None:
    ref = golden()["ssd"]
    batch, length, heads, headdim, d_state = (ref[key] for key in ("batch", "length", "heads", "headdim", "state"))
    dt_bias = torch.tensor([-0.5, 0.25], dtype=torch.float64)
    y, state = ssd_scan(
        x=waves((batch, length, heads, headdim), 0.31, 0),
        dt=F.softplus(waves((batch, length, heads), 0.53, 0.2) - 1 + dt_bias),
        A=torch.tensor([-1.0, -7.0], dtype=torch.float64),
        B=waves((batch, length, 1, d_state), 0.47, 0.4),
        C=waves((batch, length, 1, d_state), 0.41, 0.8),
        D=torch.tensor([1.0, 0.5], dtype=torch.float64),
        backend=backend,
        chunk_size=4,
        return_final_state=True,
    )
    torch.testing.assert_close(y, expected(ref["y"]), rtol=0, atol=1e-6)
    torch.testing.assert_close(state, expected(ref["final_state"]), rtol=0, atol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.untyped_storage().nbytes() // value.element_size())
        return result


def bytes_kept_for_backward(length: int) -> tuple[int, int]:
    """Bytes of distinct storages the backward pass keeps, and elements of the largest tensor made on the way."""
    inputs = {name: value.float().requires_grad_() for name, value in random_inputs(length).items()}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with LargestTensor() as largest:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y = ssd_scan(**inputs, chunk_size=CHUNK)
        y.square().sum().backward()
    return sum(storages.values()), largest.numel


def test_memory_is_linear_in_tokens() -> None:
    short, long = 4 * SEGMENT, 16 * SEGMENT
    kept_short, largest_short = bytes_kept_for_backward(short)
    kept_long, largest_long = bytes_kept_for_backward(long)
    assert kept_long < 4.1 * kept_short
    # Beyond a segment nothing but inputs, outputs and their gradients is larger than at the shorter length.
    assert largest_long <= 4 * largest_short
    inputs_bytes = sum(value.numel() * 4 for value in random_inputs(long).values())
    assert kept_long < 2.5 * inputs_bytes


def test_a_short_sequence_is_not_padded_to_a_chunk() -> None:
    assert [chunk_length(n, 64) for n in (1, 6, 18, 64, 66, 130, 258, 4098)] == [1, 6, 18, 64, 66, 65, 65, 65]
    for length in range(1, 700):
        chunk = chunk_length(length, 64)
        chunks = -(-length // chunk)
        assert chunk <= 96
        assert chunks * chunk - length < chunks


def test_bfloat16_inputs_keep_a_float32_state() -> None:
    inputs = random_inputs(300, headdim=16, d_state=16)
    truth, final = ssd_scan(**inputs, backend="reference", return_final_state=True)
    half = {name: inputs[name].to(torch.bfloat16 if name in "xBC" else torch.float32) for name in NAMES}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = ssd_scan(**half, return_final_state=True)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert (y - truth).abs().max() / truth.abs().max() < 0.02
    assert (state - final).abs().max() / final.abs().max() < 0.02


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_bias_and_softplus_of_dt_can_be_folded_in(backend: str) -> None:
    inputs = random_inputs(3 * CHUNK + 1)
    raw, bias = inputs.pop("dt").log(), torch.linspace(-1, 1, 4, dtype=torch.float64)
    folded = ssd_scan(dt=raw, dt_bias=bias, dt_softplus=True, backend=backend, chunk_size=CHUNK, **inputs)
    torch.testing.assert_close(folded, ssd_scan(dt=F.softplus(raw + bias), chunk_size=CHUNK, **inputs))
    biased = ssd_scan(dt=raw.abs(), dt_bias=bias.abs(), backend=backend, chunk_size=CHUNK, **inputs)
    torch.testing.assert_close(biased, ssd_scan(dt=raw.abs() + bias.abs(), chunk_size=CHUNK, **inputs))


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ({"length": 0}, {}, "needs tokens, and heads in equal groups; got 0 tokens"),
        ({"length": 3, "groups": 3}, {}, "got 3 tokens, 4 heads, 3 groups"),
        ({"length": 3}, {"chunk_size": 0}, "chunk_size=0 must be a positive number of tokens"),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict[str, int], options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ssd_scan(**random_inputs(**sizes), **options)


def test_steps_of_nothing_have_gradients() -> None:
    """dt = 0, as a ReLU gives it: nothing is written, but a little more would be."""
    inputs = random_inputs(40)
    inputs["dt"][:, ::3] = 0
    assert_all_close(run(inputs, chunk_size=CHUNK), run(inputs, backend="reference"), 1e-9)


def test_bfloat16_gradients_wherever_backward_is_called() -> None:
    inputs = random_inputs(100, headdim=16, d_state=16)
    narrow = {name: value.to(torch.bfloat16 if name in "xBC" else torch.float32) for name, value in inputs.items()}
    truth = run({name: value.double() for name, value in narrow.items()}, backend="reference")
    ours = run(narrow)
    assert_all_close(ours, truth, 3e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(value, ours[name]) for name, value in run(narrow).items())
