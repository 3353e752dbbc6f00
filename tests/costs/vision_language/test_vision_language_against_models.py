"""Parameters and FLOPs equal those of the real models, built on the meta device."""

import pytest

pytest.importorskip("transformers")

import torch
from torch.utils.flop_counter import FlopCounterMode
from vision_language_real_models import build, encode, prefill

from patchscale.costs.vision_language.estimate import estimate_vision_language_cost
from patchscale.costs.vision_language.models import MODELS

FULL_SIZE = [
    ("llava-1.5-7b", (480, 640)),
    ("llava-next-mistral-7b", (1080, 1920)),
    ("qwen2-vl-2b", (480, 640)),
    ("qwen2.5-vl-3b", (330, 500)),  # 24 x 36 patches: whole windows, halves and a corner
    ("qwen3-vl-4b", (480, 640)),
    ("internvl2-2b", (480, 640)),
    pytest.param("internvl3-38b", (900, 450), marks=pytest.mark.slow),
    ("paligemma-3b-448", 448),
    ("paligemma2-3b-224", 224),
]
TEXT_TOKENS = 77
RELEASED = {
    "llava-1.5-7b": 7_063_427_072,
    "qwen2-vl-2b": 2_208_985_600,
    "qwen2-vl-7b": 8_291_375_616,
    "qwen2-vl-72b": 73_405_560_320,
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen2.5-vl-32b": 33_452_718_336,
    "qwen3-vl-2b": 2_127_532_032,
    "qwen3-vl-4b": 4_437_815_808,
    "qwen3-vl-8b": 8_767_123_696,
    "qwen3-vl-32b": 33_357_390_064,
    "internvl2.5-1b": 938_193_024,
    "internvl2.5-2b": 2_205_754_368,
    "internvl2.5-4b": 3_712_637_952,
    "internvl2.5-8b": 8_075_365_376,
    "internvl2.5-26b": 25_514_186_112,
    "internvl2.5-38b": 38_388_164_992,
    "internvl2.5-78b": 78_408_318_336,
    "paligemma-3b-224": 2_923_466_480,
}
"""Of the released weights, as read from their files by others: a check on the sizes, which `build` takes from us."""


def params_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "img_size"), FULL_SIZE)
def test_full_size(name, img_size):
    model = MODELS[name]
    cost = estimate_vision_language_cost(model, img_size=img_size, text_tokens=TEXT_TOKENS)
    built = build(model)

    assert cost.params_total == params_of(built)
    llm = params_of(built.model.language_model) + (0 if model.llm.tied_embeddings else params_of(built.lm_head))
    assert sum(number for part, number in cost.params.items() if part.startswith("llm")) == llm

    counter = FlopCounterMode(display=False)
    with counter:
        encode(built, model, cost.visual)
    vision = sum(number for part, number in cost.macs.items() if not part.startswith("llm"))
    # Not counted by us: turning positions into angles is a small product in some of these models.
    assert 2 * vision == pytest.approx(counter.get_total_flops(), rel=1e-4)

    with counter:
        prefill(built, model, cost.prompt_tokens)
    language = sum(number for part, number in cost.macs.items() if part.startswith("llm"))
    assert 2 * language == pytest.approx(counter.get_total_flops(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_all(name):
    model = MODELS[name]
    cost = estimate_vision_language_cost(model, img_size=448)
    assert cost.params_total == params_of(build(model))


@pytest.mark.parametrize("number", RELEASED)
def test_parameters_of_released_weights(number):
    assert estimate_vision_language_cost(number, img_size=448).params_total == RELEASED[number]


def test_a_new_token():
    model = MODELS["internvl3-1b"]
    cost = estimate_vision_language_cost(model, img_size=448, text_tokens=TEXT_TOKENS)
    built = build(model)
    out, _ = prefill(built, model, cost.prompt_tokens)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        embedding = torch.empty(1, 1, model.llm.embed_dim, device="meta", dtype=torch.bfloat16)
        cache = out.past_key_values
        again = built.model.language_model(inputs_embeds=embedding, past_key_values=cache, use_cache=True)
        built.lm_head(again.last_hidden_state)
    assert cost.flops_new_token == pytest.approx(counter.get_total_flops(), rel=1e-4)


@pytest.mark.parametrize("name", ["qwen2.5-vl-3b", "internvl3-1b", "paligemma2-3b-896"])
def test_cache(name):
    model = MODELS[name]
    cost = estimate_vision_language_cost(model, img_size=(1280, 1280), text_tokens=500)
    out, _ = prefill(build(model), model, cost.prompt_tokens)
    stored = sum(2 * layer.keys.nelement() for layer in out.past_key_values.layers)
    if model.llm.sliding_window is not None:
        # The real cache keeps one token less, since the next one takes its place in the window.
        stored += 2 * model.llm.sliding_blocks * model.llm.num_kv_heads * model.llm.head_dim
    assert cost.kv_cache_bytes == 2 * stored
