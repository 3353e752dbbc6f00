"""The mixer and its parts: convolution, gated norm, reading order, and mixing by stretches, against plain formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import patchscale.models.mamba2 as mamba2
from patchscale.models.causal_conv import causal_conv
from patchscale.models.mamba2 import Mamba2Mixer
from patchscale.models.norms import gated_rms_norm
from patchscale.models.reading_order import reading_order


def leaf(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    weights = leaf(*out.shape, seed=99).detach().to(out.dtype)
    return list(torch.autograd.grad((out * weights).sum(), leaves))


def conv_results(conv, x: Tensor, before: Tensor | None, *rest: Tensor) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """Both outputs, and the gradients of a projection of both."""
    out, after = conv(x, before, *rest)
    leaves = [each for each in (x, before, *rest) if each is not None]
    return [out, after, *gradients(torch.cat([out, after], dim=1), leaves)]


def padded_conv1d(x: Tensor, before: Tensor | None, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    width = weight.shape[2]
    joined = F.pad(x, (0, 0, width - 1, 0)) if before is None else torch.cat([before, x], dim=1)
    out = F.conv1d(joined.transpose(1, 2), weight, bias, groups=len(weight)).transpose(1, 2)
    return out, joined[:, joined.shape[1] - width + 1 :]


@pytest.mark.parametrize("has_before", [False, True])
@pytest.mark.parametrize(("length", "width"), [(1, 4), (3, 4), (9, 4), (5, 1)])
def test_causal_conv_is_a_padded_depthwise_conv1d(length: int, width: int, has_before: bool) -> None:
    x, weight, bias = leaf(2, length, 6), leaf(6, 1, width, seed=1), leaf(6, seed=2)
    before = leaf(2, width - 1, 6, seed=3) if has_before else None
    ours = conv_results(causal_conv, x, before, weight, bias)
    torch.testing.assert_close(ours, conv_results(padded_conv1d, x, before, weight, bias))
    compiled = torch.compile(causal_conv, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(conv_results(compiled, x, before, weight, bias), ours)


def test_causal_conv_of_a_slice_of_wider_tokens() -> None:
    wide, weight, bias = leaf(2, 9, 20), leaf(6, 1, 4, seed=1), leaf(6, seed=2)
    ours, _ = causal_conv(wide[..., 5:11], None, weight, bias)
    truth, _ = causal_conv(wide[..., 5:11].contiguous(), None, weight, bias)
    torch.testing.assert_close(ours, truth)
    torch.testing.assert_close(gradients(ours, [wide]), gradients(truth, [wide]))


def test_gated_norm_is_its_formula() -> None:
    y, z, weight = leaf(2, 5, 8), leaf(2, 5, 8, seed=1), leaf(8, seed=2)
    gated = y * F.silu(z)
    truth = gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    ours = gated_rms_norm(y, z, weight)
    torch.testing.assert_close(ours, truth)
    leaves = [y, z, weight]
    torch.testing.assert_close(gradients(ours, leaves), gradients(truth, leaves))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_around_backward_changes_no_gradient(dtype: torch.dtype) -> None:
    """Sums over many tokens are in float32, in bfloat16 too, and products of the gated norm are never narrowed."""
    y, z, before = (leaf(1, length, 8, seed=length).to(dtype).detach().requires_grad_() for length in (999, 999, 3))
    weight, taps, bias = (
        leaf(*shape, seed=len(shape)).float().detach().requires_grad_() for shape in ((8,), (8, 1, 4), (8,))
    )

    def everything() -> list[Tensor]:
        normed = gated_rms_norm(y, z, weight)
        convolved, _ = causal_conv(y, before, taps, bias)
        return gradients(torch.cat([normed, convolved.float()], dim=1), [y, z, before, weight, taps, bias])

    outside = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = everything()
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))
    y64, taps64 = y.detach().double(), taps.detach().to(dtype).double().requires_grad_()
    truth, _ = padded_conv1d(y64, before.detach().double(), taps64, bias.detach().double())
    weights = leaf(1, 2 * 999, 8, seed=99).detach()[:, 999:].to(dtype).double()
    (dtaps,) = torch.autograd.grad((truth * weights).sum(), taps64)
    assert (outside[4].double() - dtaps).norm() < 5e-3 * dtaps.norm()


@pytest.mark.parametrize("has_mean", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("length", [1, 2, 10])
@pytest.mark.parametrize("tokens_per_stretch", [1, 3, 4, 9, 100])
def test_reading_order(has_mean: bool, backwards: bool, tokens_per_stretch: int, length: int) -> None:
    tokens, mean = torch.arange(float(length)).view(1, length, 1), torch.full((1, 1, 1), -1.0)
    order = reading_order(length, has_mean=has_mean, backwards=backwards, tokens_per_stretch=tokens_per_stretch)
    read = [stretch.read(tokens, mean if has_mean else None) for stretch in order]
    patches = list(range(length - 1))
    expected = [-1] * has_mean + (patches[::-1] if backwards else patches) + [length - 1]
    assert torch.cat(read, dim=1).flatten().tolist() == expected

    back, mean_back = torch.full_like(tokens, torch.nan), torch.full_like(mean, torch.nan)
    for stretch, part in zip(order, read, strict=True):
        stretch.write(part, back, mean_back)
    assert torch.equal(back, tokens)
    assert not has_mean or torch.equal(mean_back, mean)
    if len(order) == 1:
        assert torch.equal(order[0].restore(read[0]), tokens)


def mixer_results(mixer: Mamba2Mixer, *, backwards: bool) -> dict[str, Tensor]:
    u, mean = leaf(2, 150, 32), leaf(2, 1, 32, seed=1)
    out = mixer(u, mean=mean, backwards=backwards)
    leaves = {"u": u, "mean": mean, **dict(mixer.named_parameters())}
    return {"out": out.detach()} | dict(zip(leaves, gradients(out, list(leaves.values())), strict=True))


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches of one chunk of 64 tokens: 150 tokens are three of them."""
    monkeypatch.setattr(mamba2, "ELEMENTS_PER_STRETCH", 1)
    monkeypatch.setattr(mamba2, "STRETCHES_FROM_ELEMENTS", 1)


@pytest.mark.parametrize("backwards", [False, True])
def test_by_stretches_or_at_once_is_the_same(request: pytest.FixtureRequest, backwards: bool) -> None:
    torch.manual_seed(0)
    mixer = Mamba2Mixer(32, d_state=8, headdim=16).double()
    assert mixer._tokens_per_stretch(leaf(2, 150, 32)) == 150
    at_once = mixer_results(mixer, backwards=backwards)
    request.getfixturevalue("short_stretches")
    assert mixer._tokens_per_stretch(leaf(2, 150, 32)) == 64
    by_stretches = mixer_results(mixer, backwards=backwards)
    for name, truth in at_once.items():
        torch.testing.assert_close(by_stretches[name], truth, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.usefixtures("short_stretches")
def test_by_stretches_hooks_and_swapped_parameters_work_as_always() -> None:
    torch.manual_seed(0)
    mixer = Mamba2Mixer(32, d_state=8, headdim=16).double()
    u = leaf(2, 200, 32)
    (truth,) = gradients(mixer(u), [mixer.A_log])
    hook = mixer.A_log.register_hook(lambda gradient: gradient * 0.5)
    torch.testing.assert_close(gradients(mixer(u), [mixer.A_log])[0], truth * 0.5)
    hook.remove()

    others = {name: (value * 1.1).detach().requires_grad_() for name, value in mixer.named_parameters()}
    swapped = gradients(torch.func.functional_call(mixer, others, (u,)), list(others.values()))
    mixer.load_state_dict(others)
    torch.testing.assert_close(swapped, gradients(mixer(u), list(mixer.parameters())))

    out = mixer(u)
    with torch.no_grad():
        mixer.norm.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.usefixtures("short_stretches")
def test_by_stretches_a_token_still_depends_on_earlier_ones_only() -> None:
    torch.manual_seed(0)
    mixer = Mamba2Mixer(32, d_state=8, headdim=16).double()
    u = leaf(1, 200, 32)
    (du,) = torch.autograd.grad(mixer(u)[:, 130].sum(), u)
    assert (du[:, 131:] == 0).all()
    assert (du[:, :131] != 0).any(-1).all()


@pytest.mark.usefixtures("short_stretches")
def test_by_stretches_under_autocast_forward_and_backward_agree() -> None:
    """The backward pass computes stretches again, and must do so in the precision of the forward pass."""
    torch.manual_seed(0)
    mixer = Mamba2Mixer(32, d_state=8, headdim=16)
    u = leaf(2, 200, 32).detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mixer(u)
    assert out.dtype == torch.bfloat16
    (du,) = gradients(out.float(), [u])
    (truth,) = gradients(mixer(u), [u])
    assert du.dtype == torch.float32
    assert (du - truth).norm() < 0.03 * truth.norm()


@pytest.mark.usefixtures("short_stretches")
def test_by_stretches_within_a_checkpoint() -> None:
    torch.manual_seed(0)
    mixer = Mamba2Mixer(32, d_state=8, headdim=16).double()
    u = leaf(2, 200, 32)
    leaves = [u, *mixer.parameters()]
    truth = gradients(mixer(u), leaves)
    torch.testing.assert_close(gradients(checkpoint(mixer, u, use_reentrant=False), leaves), truth, rtol=0, atol=0)


@pytest.mark.usefixtures("short_stretches")
@pytest.mark.parametrize("frozen", ["A_log", "conv1d.weight", "all", "input"])
def test_by_stretches_with_frozen_parts(frozen: str) -> None:
    torch.manual_seed(0)
    mixer = Mamba2Mixer(32, d_state=8, headdim=16).double()
    u = leaf(2, 200, 32)
    leaves = {"u": u, **dict(mixer.named_parameters())}
    truth = dict(zip(leaves, gradients(mixer(u), list(leaves.values())), strict=True))
    u.requires_grad_(frozen != "input")
    for name, parameter in mixer.named_parameters():
        parameter.requires_grad_(frozen not in ("all", name))
    trained = {name: each for name, each in leaves.items() if each.requires_grad}
    found = gradients(mixer(u), list(trained.values()))
    for name, gradient in zip(trained, found, strict=True):
        torch.testing.assert_close(gradient, truth[name], rtol=0, atol=0)


@pytest.mark.usefixtures("short_stretches")
def test_by_stretches_without_gradients() -> None:
    torch.manual_seed(0)
    mixer = Mamba2Mixer(32, d_state=8, headdim=16)
    u = torch.randn(2, 200, 32)
    with torch.no_grad():
        quiet = mixer(u)
    torch.testing.assert_close(quiet, mixer(u).detach(), rtol=0, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(mixer(u), quiet, rtol=0, atol=0)


def kept_for_backward(length: int) -> int:
    """Bytes of distinct storages that the backward pass of a mixer keeps, weights left out."""
    torch.manual_seed(0)
    mixer = Mamba2Mixer(32, d_state=8, headdim=16)
    weights = {parameter.untyped_storage().data_ptr() for parameter in mixer.parameters()}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = mixer(torch.randn(1, length, 32, requires_grad=True))
    assert out.requires_grad
    return sum(size for pointer, size in storages.items() if pointer not in weights)


def test_a_long_sequence_keeps_little_more_than_what_the_linear_layers_need(short_stretches: None) -> None:
    """Input, output of in_proj, input of out_proj, and one state a stretch of 64 tokens."""
    length = 64 * 40
    numbers_per_token = 32 + Mamba2Mixer(32, d_state=8, headdim=16).in_proj.out_features + 64
    state = 4 * 16 * 8 + 3 * (64 + 16)
    assert kept_for_backward(length) <= 4 * (length * numbers_per_token + length / 64 * state) * 1.01
