"""torch.compile takes whole models in one graph, forward and backward, and computes the same."""

import shutil

import pytest
import torch
from torch import Tensor, nn

from patchscale.models import create_model

MODELS = ("vit_test", "adventurer_test")


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, patch_size=4, img_size=(16, 24), num_classes=5).double()


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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler for CPUs needs g++")
@pytest.mark.parametrize("name", MODELS)
def test_compiled_code_computes_the_same(name: str) -> None:
    model = build(name).float()
    torch._dynamo.reset()
    images = torch.randn(2, 3, 16, 24)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-4)
