"""Drop path is timm's, and does not notice how a batch is split."""

import copy
import pickle
from itertools import pairwise

import pytest
import timm.layers
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from patchscale.models.drop_path import DropPath, batch_rows, own_drop_path


def drawn(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(3)
    return module(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{"drop_prob": 0.3}, {"drop_prob": 0.3, "scale_by_keep": False}, {}])
def test_it_is_timms_bit_for_bit(options, dtype) -> None:
    x = torch.randn(64, 5, 3, dtype=dtype)
    ours, timms = DropPath(**options), timm.layers.DropPath(**options)
    assert torch.equal(drawn(ours, x), drawn(timms, x))
    assert torch.equal(drawn(ours.eval(), x), x)
    assert repr(ours) == repr(timms)


@pytest.mark.parametrize("cuts", [(0, 64), (0, 20, 40, 64), (0, 1, 63, 64), tuple(range(65))])
def test_parts_of_a_batch_are_dropped_as_in_the_whole(cuts) -> None:
    x = torch.randn(64, 4, 2)
    module = DropPath(0.5)
    whole = drawn(module, x)
    parts = []
    for start, end in pairwise(cuts):
        with batch_rows(start, 64):
            parts.append(drawn(module, x[start:end]))
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(drawn(module, x), whole)  # leaving the context restores the plain behaviour


@pytest.mark.parametrize("cuts", [(0, 5), (0, 2, 5), (0, 1, 4, 5)])
def test_a_process_that_holds_some_images_drops_them_as_in_the_whole(cuts) -> None:
    x, held = torch.randn(64, 4, 2), torch.tensor([3, 4, 40, 59, 60])
    module = DropPath(0.5)
    whole = drawn(module, x)
    parts = []
    for start, end in pairwise(cuts):
        with batch_rows(start, 64, held=held):
            parts.append(drawn(module, x[held[start:end]]))
    assert torch.equal(torch.cat(parts), whole[held])
    with batch_rows(4, 64, held=held), pytest.raises(IndexError, match="index 64 is out of bounds"):
        module(x[:2])


def test_blocks_computed_again_in_the_backward_pass_draw_the_same_rows() -> None:
    x = torch.randn(16, 4, 2, requires_grad=True)
    module = DropPath(0.5)
    with batch_rows(5, 32):
        torch.manual_seed(3)
        out = checkpoint(lambda t: module(t * t), x, use_reentrant=False)
        torch.rand(7)  # the generator has moved on by the time of the backward pass
        out.sum().backward()
    mask = (out / (x * x)).detach()
    torch.testing.assert_close(x.grad, 2 * x.detach() * mask)
    assert 0 < float((mask == 0).float().mean()) < 1


def test_rows_beyond_the_batch_are_a_mistake() -> None:
    with batch_rows(7, 8), pytest.raises(IndexError, match="index 8 is out of bounds"):
        DropPath(0.5)(torch.ones(2, 1))


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rows_may_lie_on_another_device(device) -> None:
    x = torch.randn(8, 3, device="cuda")
    module = DropPath(0.5)
    whole = drawn(module, x)
    with batch_rows(5, 8, device):
        assert torch.equal(drawn(module, x[5:]), whole[5:])


def test_a_model_of_timms_takes_it_over() -> None:
    model = nn.Sequential(timm.layers.DropPath(0.25), nn.Linear(2, 2), timm.layers.DropPath(0.0))
    keys = list(model.state_dict())
    own_drop_path(model)
    assert [type(module) for module in model] == [DropPath, nn.Linear, DropPath]
    assert model[0].drop_prob == 0.25
    assert list(model.state_dict()) == keys
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(drawn(twin, torch.eye(2)), drawn(model, torch.eye(2)))
