"""Maps behind several blocks, which decoders read: of every model, at every stride, on rectangles and single images."""

import pytest
import torch
from torch import Tensor, nn

from patchscale.head_shapes import tapped_blocks
from patchscale.models import create_model, list_models
from patchscale.shapes import SHAPES

SMALL = ("vit_test", "vit_nano", "adventurer_test", "adventurer_nano", "test_vit", "eva02_tiny_patch14_224")
FAMILIES = (
    *("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "beit_base_patch16_224", "cait_xxs24_224"),
    *("vit_relpos_small_patch16_224", "xcit_nano_12_p16_224", "vit_base_patch16_siglip_224"),
)


def build(name: str, patch_size: int = 8) -> nn.Module:
    torch.manual_seed(0)
    size = (2 * patch_size, 3 * patch_size)
    return create_model(name, patch_size=patch_size, img_size=size, num_classes=0).eval()


def blocks_of(model: nn.Module) -> nn.ModuleList:
    return model.layers if hasattr(model, "layers") else model.blocks


def image(model: nn.Module, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, *model.img_size, generator=torch.Generator().manual_seed(1))


def test_tapped_blocks_are_evenly_spaced_and_end_with_the_last():
    assert tapped_blocks(12) == (2, 5, 8, 11)
    assert tapped_blocks(24) == (5, 11, 17, 23)
    assert tapped_blocks(6) == (1, 2, 4, 5)
    assert tapped_blocks(2) == (0, 0, 1, 1)
    assert tapped_blocks(1) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", [*SHAPES, *FAMILIES])
def test_maps_have_the_patches_stride(name):
    with torch.device("meta"):
        model = build(name)
        maps = model.forward_feature_maps(torch.randn(1, 3, 16, 24), tapped_blocks(len(blocks_of(model))))
    assert [tuple(each.shape) for each in maps] == [(1, model.embed_dim, 2, 3)] * 4


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_maps_of_all_that_is_listed():
    for name in list_models():
        test_maps_have_the_patches_stride(name)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("patch_size", [64, 14, 1])
def test_maps_at_every_stride(name, patch_size):
    model = build(name, patch_size)
    with torch.no_grad():
        maps = model.forward_feature_maps(image(model), tapped_blocks(len(blocks_of(model))))
        last = model.forward_feature_map(image(model))
    assert all(each.shape == last.shape == (1, model.embed_dim, 2, 3) for each in maps)
    assert all(each.isfinite().all() for each in maps)
    torch.testing.assert_close(maps[-1], last)


@pytest.mark.parametrize("name", [*SMALL, "deit_tiny_distilled_patch16_224", "cait_xxs24_224", "xcit_nano_12_p16_224"])
def test_a_map_is_what_its_block_returned(name):
    """Patch tokens in raster order: a hook sees the block's tokens, prefix or class token and all."""
    model = build(name)
    seen: list[Tensor] = []
    hook = blocks_of(model)[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        first, last = model.forward_feature_maps(image(model), (0, len(blocks_of(model)) - 1))
        hook.remove()
        expected = model.patch_tokens(seen[0]).transpose(1, 2).reshape(first.shape)
        assert torch.equal(first, expected)
        torch.testing.assert_close(last, model.forward_feature_map(image(model)))


def test_blocks_come_in_the_order_asked_for():
    model = build("vit_nano")
    with torch.no_grad():
        one = model.forward_feature_maps(image(model), (3, 1, 1))
        two = model.forward_feature_maps(image(model), (1, 3))
    assert torch.equal(one[0], two[1])
    assert torch.equal(one[1], two[0])
    assert torch.equal(one[2], two[0])


@pytest.mark.parametrize("name", ["vit_nano", "adventurer_nano", "eva02_tiny_patch14_224"])
def test_checkpointing_changes_no_gradient_of_the_maps(name):
    gradients = []
    for enable in (False, True):
        model = build(name).train()
        model.set_grad_checkpointing(enable)
        maps = model.forward_feature_maps(image(model, batch=2), tapped_blocks(len(blocks_of(model))))
        torch.stack([each.square().mean() for each in maps]).sum().backward()
        gradients.append({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(checkpointed[key], gradient, msg=key)
