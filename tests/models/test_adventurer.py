"""Adventurer against the released model's numbers: logits, names, counts, initialisation."""

import copy
import math

import pytest
import timm
import torch
from tests.models.conftest import expected, fill_adventurer, golden, wave_images
from timm.data import resolve_model_data_config
from torch import nn

import patchscale.models
from patchscale.errors import UserError
from patchscale.models.adventurer import FLIP_SCHEDULES, Adventurer, _drop_path_rates
from patchscale.models.parameters import count_parameters
from patchscale.shapes import SHAPES

GOLDEN_MODELS = {f"d{ref['embed_dim']}-p{ref['patch_size']}": ref for ref in golden()["adventurer"]}


def small(**options: object) -> Adventurer:
    sizes = {"img_size": 16, "patch_size": 4, "num_classes": 5, "embed_dim": 32, "depth": 4}
    return Adventurer(**(sizes | options))  # type: ignore[arg-type]


def golden_model(name: str, schedule: str) -> tuple[Adventurer, torch.Tensor]:
    ref = GOLDEN_MODELS[name]
    sizes = {key: ref[key] for key in ("embed_dim", "depth", "img_size", "patch_size", "num_classes")}
    model = Adventurer(**sizes, flip_schedule=schedule).double().eval()
    fill_adventurer(model)
    return model, wave_images(ref["batch"], ref["img_size"])


@pytest.mark.parametrize("schedule", FLIP_SCHEDULES)
@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_golden_logits(name: str, schedule: str) -> None:
    model, images = golden_model(name, schedule)
    logits = expected(GOLDEN_MODELS[name]["logits"][schedule])
    with torch.no_grad():
        torch.testing.assert_close(model(images), logits, rtol=0, atol=1e-8)
        torch.testing.assert_close(model.float()(images.float()), logits.float(), rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_released_schedule_is_what_the_released_code_computes(name: str) -> None:
    model, images = golden_model(name, "released")
    with torch.no_grad():
        logits = model(images)
    torch.testing.assert_close(logits, expected(GOLDEN_MODELS[name]["upstream_fp32_logits"]), rtol=0, atol=2e-6)


def test_flip_schedules() -> None:
    flips = {name: [block for block in range(12) if rule(block)] for name, rule in FLIP_SCHEDULES.items()}
    assert flips == {
        "alternate": [1, 3, 5, 7, 9, 11],
        "released": [2, 3],
        "pairs": [2, 3, 6, 7, 10, 11],
        "none": [],
    }


def test_reference_scan_gives_the_same_logits() -> None:
    name = "d64-p4"
    model, images = golden_model(name, "alternate")
    for block in model.layers:
        block.mixer.ssd_backend = "reference"
    with torch.no_grad():
        logits = model(images)
    torch.testing.assert_close(logits, expected(GOLDEN_MODELS[name]["logits"]["alternate"]), rtol=0, atol=1e-8)


def test_state_dict_has_the_released_names_and_shapes() -> None:
    with torch.device("meta"):
        model = timm.create_model("adventurer_tiny_patch16_224")
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    block = {
        "mixer.dt_bias": (8,),
        "mixer.A_log": (8,),
        "mixer.D": (8,),
        "mixer.in_proj.weight": (1160, 256),
        "mixer.conv1d.weight": (640, 1, 4),
        "mixer.conv1d.bias": (640,),
        "mixer.norm.weight": (512,),
        "mixer.out_proj.weight": (256, 512),
        "norm.weight": (256,),
        "norm_mlp.weight": (256,),
        "mlp.w1.weight": (640, 256),
        "mlp.w1.bias": (640,),
        "mlp.w2.weight": (640, 256),
        "mlp.w2.bias": (640,),
        "mlp.w3.weight": (256, 640),
        "mlp.w3.bias": (256,),
    }
    rest = {
        "cls_token": (1, 1, 256),
        "pos_embed": (1, 197, 256),
        "patch_embed.proj.weight": (256, 3, 16, 16),
        "patch_embed.proj.bias": (256,),
        "norm_f.weight": (256,),
        "head.weight": (1000, 256),
        "head.bias": (1000,),
    }
    blocks = {f"layers.{i}.{key}": shape for i in range(12) for key, shape in block.items()}
    assert shapes == rest | blocks
    assert not list(model.buffers())


# Counts of the released code with 1000 classes: (patch size, image size) -> parameters.
RELEASED_COUNTS = {
    "tiny": (11_608_840, 11_611_912, 12_177_160, 14_576_392, 24_207_880, 15_557_128, 12_411_400),
    "small": (44_491_816, 44_497_960, 45_628_456, 50_426_920, 69_689_896, 52_388_392, 46_096_936),
    "base": (98_657_608, 98_666_824, 100_362_568, 107_560_264, 136_454_728, 110_502_472, 101_065_288),
    "large": (346_196_200, 346_208_488, 348_469_480, 358_066_408, 396_592_360, 361_989_352, 349_406_440),
}
COLUMNS = ((16, 224), (8, 224), (4, 224), (2, 224), (1, 224), (1, 128), (1, 64))
POS_EMBED_AT_PATCH_1 = {"tiny": 12_845_312, "small": 25_690_624, "base": 38_535_936, "large": 51_381_248}


@pytest.mark.parametrize("size", RELEASED_COUNTS)
def test_parameter_counts(size: str) -> None:
    for (patch_size, img_size), count in zip(COLUMNS, RELEASED_COUNTS[size], strict=True):
        with torch.device("meta"):
            model = timm.create_model(f"adventurer_{size}_patch{patch_size}_{img_size}")
        counts = count_parameters(model)
        assert counts["total"] == count
        assert counts["backbone"] == count - counts["head"] - counts["pos_embed"]
        if (patch_size, img_size) == (1, 224):
            assert counts["pos_embed"] == POS_EMBED_AT_PATCH_1[size]


def test_huge_follows_its_printed_sizes_not_its_printed_count() -> None:
    """Table 7 gives Huge as 1280 wide, 32 deep, mlp 3200, and 759 M; those sizes make 718 M. It was not released."""
    with torch.device("meta"):
        model = timm.create_model("adventurer_huge_patch16_224")
    assert count_parameters(model)["total"] == 718_033_640


def test_drop_path_rates_never_reach_the_full_rate() -> None:
    rates = _drop_path_rates(0.1, 12, "linear")
    assert rates[:2] == [0, 0]
    assert rates[2] == pytest.approx(0.1 / 11)
    assert rates[-1] == pytest.approx(0.1 * 10 / 11)
    assert _drop_path_rates(0.1, 1, "linear") == [0]


def test_drop_path_drops_whole_images_in_training_only() -> None:
    model = small(drop_path_rate=0.9, depth=8)
    images = wave_images(1, 16).float().expand(16, -1, -1, -1)
    torch.manual_seed(0)
    dropped = model.train()(images)
    assert len({tuple(row.tolist()) for row in dropped}) > 1
    kept = model.eval()(images)
    torch.testing.assert_close(kept, kept[:1].expand_as(kept), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("patch_size", "std"), [(16, 0.0361), (4, 0.144), (1, 0.577)])
def test_patch_kernel_has_the_intended_spread(patch_size: int, std: float) -> None:
    torch.manual_seed(0)
    weight = small(patch_size=patch_size, embed_dim=512, depth=1).patch_embed.proj.weight
    assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert weight.abs().max() <= 2 * std / 0.8796 * 1.01


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = small(embed_dim=256, depth=4, num_classes=100, img_size=32)
    mixers = [block.mixer for block in model.layers]
    mlps = [block.mlp for block in model.layers]
    joined = {
        "A": torch.cat([mixer.A_log.exp() for mixer in mixers]),
        "dt": torch.cat([nn.functional.softplus(mixer.dt_bias) for mixer in mixers]),
    }
    assert 1 <= joined["A"].min() < 4
    assert 13 < joined["A"].max() <= 16.001
    assert 9e-4 < joined["dt"].min() < 4e-3
    assert 0.03 < joined["dt"].max() <= 0.101
    for mixer, mlp in zip(mixers, mlps, strict=True):
        assert (mixer.D == 1).all()
        assert (mixer.norm.weight == 1).all()
        assert mixer.in_proj.weight.abs().max().item() == pytest.approx(256**-0.5, rel=0.01)
        assert mixer.out_proj.weight.abs().max().item() == pytest.approx(512**-0.5 / 4**0.5, rel=0.01)
        assert mlp.w3.weight.abs().max().item() == pytest.approx(640**-0.5, rel=0.01)
        assert mixer.conv1d.bias.abs().max() > 0.45
        assert all((layer.bias == 0).all() for layer in (mlp.w1, mlp.w2, mlp.w3))
    assert (model.patch_embed.proj.bias == 0).all()
    assert (model.head.bias == 0).all()
    for tensor in (model.pos_embed, model.cls_token, model.head.weight):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.15)


def test_every_patch_sees_every_patch_through_the_heading_average() -> None:
    """One causal block: without the mean token patch 0 could not depend on the last one."""
    model = small(depth=1, flip_schedule="none").eval()
    images = torch.randn(1, 3, 16, 16, requires_grad=True)
    model.forward_feature_map(images)[0, :, 0, 0].square().sum().backward()
    assert images.grad is not None
    assert images.grad[..., -4:, -4:].abs().max() > 0


def test_fixed_positions_are_a_buffer_that_is_not_saved() -> None:
    model = small(pos_embed="sincos2d", img_size=(8, 16))
    assert not isinstance(model.pos_embed, nn.Parameter)
    assert model.pos_embed.shape == (1, 9, 32)
    assert (model.pos_embed[0, -1] == 0).all()
    assert "pos_embed" not in model.state_dict()
    assert count_parameters(model)["pos_embed"] == 0


def test_timm_names() -> None:
    names = timm.list_models("adventurer_*")
    assert len(names) == 5 * 5 * 3
    with torch.device("meta"):
        model = timm.create_model("adventurer_base_patch1_224", num_classes=10, drop_path_rate=0.2)
    assert (model.patch_size, model.img_size, model.flip_schedule) == (1, (224, 224), "released")
    assert model.num_classes == 10
    config = resolve_model_data_config(model)
    assert (config["input_size"], config["crop_pct"]) == ((3, 224, 224), 1.0)
    with torch.device("meta"):
        assert resolve_model_data_config(timm.create_model("adventurer_tiny_patch16_224"))["crop_pct"] == 0.875
    with pytest.raises(UserError, match="no weights are published"):
        timm.create_model("adventurer_tiny_patch16_224", pretrained=True)


def test_timm_groups_parameters_by_depth() -> None:
    from timm.optim import param_groups_layer_decay

    groups = param_groups_layer_decay(small(), weight_decay=0.05, layer_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(small().parameters()))
    assert len({group["lr_scale"] for group in groups}) == 4 + 2


def test_bfloat16_autocast_keeps_residuals_in_float32() -> None:
    model = small(depth=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = model.forward_features(torch.randn(2, 3, 16, 16))
    assert tokens.dtype == torch.float32
    assert tokens.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 100}, "embed_dim=100 does not give whole heads of 64 channels.*multiple of 32: use 96 or 128"),
        ({"embed_dim": 10}, "multiple of 32: use 32$"),
        ({"patch_size": 3}, "patch_size=3 does not divide the 16x16 image; use patch_size one of 1, 2, 4, 8, or"),
        ({"flip_schedule": "sometimes"}, "'sometimes' is unknown; choose one of alternate, released, pairs, none"),
        ({"ssd_backend": "fast"}, "ssd_backend 'fast' is unknown; choose one of auto, triton, chunked, reference"),
    ],
)
def test_sizes_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**options)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(UserError, match="images are 16x20, this model was built for 16x16; create it with img_size"):
        small()(torch.zeros(1, 3, 16, 20))


def test_a_new_head_and_pooling() -> None:
    model = small()
    model.reset_classifier(3)
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
    model.reset_classifier(0)
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 32)
    with pytest.raises(UserError, match="pools by its class token"):
        model.reset_classifier(3, global_pool="avg")


def test_named_shapes_are_the_models() -> None:
    shape = SHAPES["adventurer_nano"]
    model = patchscale.models.create_model("adventurer_nano", patch_size=4, img_size=16)
    assert len(model.layers) == shape.depth
    assert model.layers[0].mixer.num_heads == shape.num_heads
    assert model.layers[0].mlp.w1.out_features == shape.mlp_dim
    assert math.isclose(count_parameters(copy.deepcopy(model))["total"], count_parameters(model)["total"])
