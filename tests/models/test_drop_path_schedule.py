"""Drop path by block: linear as timm's and as released, constant as DeiT III's; and LayerScale's first value."""

import pytest
import torch

from patchscale.errors import UserError
from patchscale.models.drop_path import DropPath
from patchscale.models.registry import create_model

SIZES = {"patch_size": 16, "img_size": 32, "num_classes": 3}


def rates(model):
    """Rate of each branch of each block; 0 where there is no drop path."""
    blocks = getattr(model, "blocks", None) or model.layers
    names = ("drop_path1", "drop_path2") if hasattr(blocks[0], "drop_path1") else ("drop_path",)
    return [tuple(getattr(getattr(block, name), "drop_prob", 0.0) for name in names) for block in blocks]


def test_adventurers_are_as_released_or_constant():
    linear = create_model("adventurer_tiny", drop_path_rate=0.22, **SIZES)
    # [0] + linspace(0, rate, depth), of which the first `depth` are used.
    expected = [0.0, *torch.linspace(0, 0.22, 12).tolist()][:12]
    assert [rate for (rate,) in rates(linear)] == pytest.approx(expected)
    constant = create_model("adventurer_tiny", drop_path_rate=0.22, drop_path_schedule="constant", **SIZES)
    assert rates(constant) == [(0.22,)] * 12


@pytest.mark.parametrize("name", ["vit_tiny", "deit3_small_patch16_224"])
def test_vits_grow_from_0_or_are_constant(name):
    linear = rates(create_model(name, drop_path_rate=0.22, **SIZES))
    assert [rate for rate, _ in linear] == pytest.approx(torch.linspace(0, 0.22, 12).tolist())
    model = create_model(name, drop_path_rate=0.22, drop_path_schedule="constant", **SIZES)
    assert rates(model) == [(0.22, 0.22)] * 12
    assert all(type(block.drop_path1) is type(block.drop_path2) is DropPath for block in model.blocks)


def test_a_rate_of_0_drops_nothing_whatever_the_schedule():
    model = create_model("vit_tiny", drop_path_schedule="constant", **SIZES)
    assert rates(model) == [(0.0, 0.0)] * 12


def test_the_schedule_changes_no_weight():
    models = []
    for schedule in ("linear", "constant"):
        torch.manual_seed(0)
        models.append(create_model("vit_test", drop_path_rate=0.1, drop_path_schedule=schedule, **SIZES))
    for one, other in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_layer_scale_starts_where_it_is_told():
    model = create_model("deit3_small_patch16_224", layer_scale_init=1e-4, **SIZES)
    gains = [tensor for name, tensor in model.state_dict().items() if name.endswith("gamma")]
    assert len(gains) == 24
    assert all(torch.equal(gain, torch.full_like(gain, 1e-4)) for gain in gains)


def test_deit3_has_no_position_for_its_class_token():
    model = create_model("deit3_small_patch16_224", **SIZES)
    assert model.pos_embed.shape == (1, 4, 384)
    assert model.num_prefix_tokens == 1


@pytest.mark.parametrize("name", ["vit_test", "adventurer_test", "vit_tiny_patch16_224"])
def test_models_without_layer_scale_say_so(name):
    with pytest.raises(UserError, match="has no LayerScale"):
        create_model(name, layer_scale_init=1e-4, **SIZES)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(UserError, match="choose linear or constant"):
        create_model("vit_test", drop_path_schedule="cosine", **SIZES)
