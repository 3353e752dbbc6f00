"""torch.compile takes whole models in one graph, forward and backward, and computes the same."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from patchscale.models import create_model
from patchscale.models.drop_path import batch_rows

MODELS = ("vit_test", "adventurer_test")


def build(name: str, drop_path_rate: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    options = {"num_classes": 5, "drop_path_rate": drop_path_rate}
    return create_model(name, patch_size=4, img_size=(16, 24), **options).double()


def loss_and_gradients(model: nn.Module, call: nn.Module) -> tuple[Tensor, list[Tensor]]:
    images = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = call(images).square().sum()
    return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("grad_checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_one_graph(name: str, grad_checkpointing: bool) -> None:
    model = build(name)
    model.set_grad_checkpointing(grad_checkpointing)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(loss_and_gradients(model, compiled), loss_and_gradients(model, model))


def gradients_in_parts(
    model: nn.Module, call: Callable[[Tensor], Tensor], part_size: int, device: str = "cpu"
) -> list[Tensor]:
    """Of a batch of 20 images with drop path, as in training: every part draws from the same seed."""
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    images = torch.randn(20, 3, 16, 24, generator=generator, dtype=torch.float64).to(device, dtype)
    model.zero_grad()
    for start in range(0, len(images), part_size):
        with batch_rows(start, len(images), device):
            torch.manual_seed(3)
            call(images[start : start + part_size]).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_of_a_batch_share_their_graph(name: str) -> None:
    """Ten parts; torch makes a graph anew eight times, then runs without."""
    model = build(name, drop_path_rate=0.5)
    expected = gradients_in_parts(model, model, part_size=20)
    model.set_grad_checkpointing(True)
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(gradients_in_parts(model, compiled, part_size=2), expected)
    assert backend.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "device",
    [
        pytest.param(
            "cpu", marks=pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler for CPUs needs g++")
        ),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("grad_checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_compiled_code_draws_for_the_whole_batch(name: str, grad_checkpointing: bool, device: str) -> None:
    """The last of the parts is smaller; its graph, or one for all sizes, is the second and last."""
    model = build(name, drop_path_rate=0.5).float().to(device)
    expected = gradients_in_parts(model, model, part_size=20, device=device)
    model.set_grad_checkpointing(grad_checkpointing)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, options={"fallback_random": True})
    found = gradients_in_parts(model, compiled, part_size=3, device=device)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler for CPUs needs g++")
@pytest.mark.parametrize("name", MODELS)
def test_compiled_code_computes_the_same(name: str) -> None:
    model = build(name).float()
    torch._dynamo.reset()
    images = torch.randn(2, 3, 16, 24)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-4)
