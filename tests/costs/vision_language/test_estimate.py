"""The whole estimate: how its parts hang together, and what it refuses."""

import pytest

from patchscale.costs.vision_language.estimate import estimate_vision_language_cost
from patchscale.costs.vision_language.models import MODELS
from patchscale.errors import UserError


def estimate(model="qwen2.5-vl-7b", img_size=(1080, 1920), **request):
    return estimate_vision_language_cost(model, img_size=img_size, **request)


def test_images_add_up():
    one, three = estimate(num_images=1), estimate(num_images=3)
    for part in ("encoder_patch_embed", "encoder_linear", "encoder_attention", "projector"):
        assert three.macs[part] == 3 * one.macs[part]
    assert three.prompt_tokens == 3 * one.visual.llm_tokens + one.text_tokens
    assert three.memory["encoder_working"] == 3 * one.memory["encoder_working"]


def test_a_batch_changes_memory_alone():
    one, eight = estimate(batch_size=1), estimate(batch_size=8)
    assert eight.macs == one.macs
    assert eight.weights_bytes == one.weights_bytes
    assert eight.kv_cache_bytes == 8 * one.kv_cache_bytes


def test_new_tokens_take_room_in_the_cache():
    cost, longer = estimate(), estimate(new_tokens=1000)
    assert longer.kv_cache_bytes - cost.kv_cache_bytes == 1000 * 2 * 28 * 4 * 128 * 2  # blocks, heads, width, bytes


def test_precision_and_quantized_weights():
    assert estimate(precision="fp32").weights_bytes == 2 * estimate().weights_bytes
    assert estimate(weight_bytes_per_param=0.5).weights_bytes == estimate().params_total // 2


def test_windows_make_the_encoder_cheaper():
    windowed, full = estimate("qwen2.5-vl-7b"), estimate("qwen2-vl-7b")
    assert windowed.visual.encoder_tokens == full.visual.encoder_tokens
    ratio = windowed.macs["encoder_attention"] / full.macs["encoder_attention"]
    assert 4 / 32 < ratio < 4 / 32 + 0.01  # four of 32 blocks attend to everything


def test_prefix_models_have_one_convention():
    assert estimate("paligemma-3b-224", convention="causal").macs == estimate("paligemma-3b-224").macs
    assert estimate(convention="causal").flops_prefill < estimate().flops_prefill


@pytest.mark.parametrize("name", MODELS)
def test_frame_adds_up(name):
    cost = estimate(name)
    frame = cost.frame()
    assert frame["params"].sum() == cost.params_total
    assert 2 * frame["macs"].sum() == cost.flops_prefill
    assert 2 * frame["macs_new_token"].sum() == cost.flops_new_token
    assert frame["macs_share"].sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"model": "qwen"}, "vision-language model 'qwen' is not known"),
        ({"precision": "int3"}, "precision='int3' is not known"),
        ({"convention": "half"}, "convention='half' is not known"),
        ({"text_tokens": -1}, "text_tokens=-1: give at least 0"),
        ({"num_images": 0, "text_tokens": 0}, "give an image or some text"),
        ({"weight_bytes_per_param": 0}, "weight_bytes_per_param=0: give more than 0"),
        ({"img_size": (10, 4000)}, "longer than 200:1"),
    ],
)
def test_refusals(request_, message):
    with pytest.raises(UserError, match=message):
        estimate(**request_)
