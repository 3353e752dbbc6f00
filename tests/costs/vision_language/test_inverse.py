"""The largest image for a budget: equal to trying every size, and monotone."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchscale.costs.vision_language.estimate import estimate_vision_language_cost
from patchscale.costs.vision_language.inverse import huge_picture, largest_image
from patchscale.costs.vision_language.models import MODELS
from patchscale.errors import UserError

SMALL_CAPS = {
    "qwen2.5-vl-3b": replace(MODELS["qwen2.5-vl-3b"].image_rule, max_pixels=200 * 28 * 28),
    "qwen3-vl-2b": replace(MODELS["qwen3-vl-2b"].image_rule, max_pixels=200 * 32 * 32),
    "internvl3-1b": replace(MODELS["internvl3-1b"].image_rule, max_tiles=40),
    "llava-next-mistral-7b": MODELS["llava-next-mistral-7b"].image_rule,
}
ratios = st.sampled_from([0.05, 0.3, 0.5, 2 / 3, 0.75, 1.0, 1.2, 4 / 3, 1.5, 16 / 9, 2.0, 3.0, 10.0, 60.0])


def small(name):
    return replace(MODELS[name], image_rule=SMALL_CAPS[name])


def costs_of_all_caps(model, ratio):
    """The cost of a huge image under every cap."""
    picture = huge_picture(ratio)
    return [
        estimate_vision_language_cost(replace(model, image_rule=model.image_rule.with_cap(cap)), img_size=picture)
        for cap in model.image_rule.caps()
    ]


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(SMALL_CAPS)), ratio=ratios, share=st.floats(0.0, 1.1))
def test_equals_trying_every_cap(name, ratio, share):
    model = small(name)
    costs = costs_of_all_caps(model, ratio)
    least, most = costs[0].flops_prefill, costs[-1].flops_prefill
    budget = least + share * (most - least)
    best = max((cost for cost in costs if cost.flops_prefill <= budget), key=lambda cost: cost.flops_prefill)

    found = largest_image(model, aspect_ratio=ratio, prefill_flops=budget)

    assert found.cost.flops_prefill == best.flops_prefill
    assert found.img_size == best.visual.content_size
    assert found.binds == (("prefill_flops",) if best.flops_prefill < most else (model.image_rule.cap_name,))


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(SMALL_CAPS)), ratio=ratios)
def test_cost_never_falls_as_the_cap_rises(name, ratio):
    costs = costs_of_all_caps(small(name), ratio)
    for measure in (lambda c: c.flops_prefill, lambda c: c.peak_memory_bytes, lambda c: c.visual.llm_tokens):
        assert [measure(cost) for cost in costs] == sorted(measure(cost) for cost in costs)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(MODELS)), ratio=ratios, gigabytes=st.floats(0, 30))
def test_the_answer_fits_and_is_reproduced_by_its_setting(name, ratio, gigabytes):
    model = MODELS[name]
    memory = estimate_vision_language_cost(model, img_size=28).weights_bytes + gigabytes * 1e9
    try:
        found = largest_image(model, aspect_ratio=ratio, memory_bytes=memory, text_tokens=100)
    except UserError as error:
        assert "the smallest image of" in str(error)  # noqa: PT017 a budget may be too small, and then says so
        return
    assert found.cost.peak_memory_bytes <= memory
    again = estimate_vision_language_cost(found.cost.model, img_size=found.img_size, text_tokens=100)
    assert again.visual.llm_tokens <= found.visual.llm_tokens
    if found.cap_name == "max_pixels":  # such an image passes as it is
        assert again.visual.resized == found.img_size
        assert again.visual.note is None
        assert found.cap >= found.img_size[0] * found.img_size[1]


def test_a_huge_picture_has_the_ratio():
    assert huge_picture(16 / 9) == (147_456, 262_144)
    assert huge_picture(0.05) == (262_140, 13_107)
    height, width = huge_picture(3.14159)
    assert width / height == pytest.approx(3.14159, rel=1e-6)


def test_more_memory_never_gives_a_smaller_image():
    model = MODELS["qwen2.5-vl-7b"]
    tokens = [
        largest_image(model, memory_bytes=gigabytes * 1e9, batch_size=4).visual.llm_tokens
        for gigabytes in (17, 18, 20, 24, 32, 48, 80)
    ]
    assert tokens == sorted(tokens)
    assert tokens[0] < tokens[2] < tokens[-1]


def test_the_tightest_budget_binds():
    model = MODELS["qwen2-vl-7b"]
    by_memory = largest_image(model, memory_bytes=18e9)
    by_both = largest_image(model, memory_bytes=18e9, latency_s=0.1, flops_per_s=2e14)
    assert by_memory.binds == ("memory_bytes",)
    assert by_both.binds == ("latency_s",)
    assert by_both.visual.llm_tokens < by_memory.visual.llm_tokens
    same = largest_image(model, latency_s=0.1, seconds=lambda cost: cost.flops_prefill / 2e14)
    assert same.img_size == by_both.img_size
    assert str(same).startswith(f"{same.img_size[0]}x{same.img_size[1]} pixels, {same.visual.llm_tokens} tokens; set ")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "no budget is given"),
        ({"latency_s": 1.0}, "give flops_per_s or a function seconds"),
        ({"memory_bytes": 1e9}, "the smallest image of qwen2-vl-7b, 56x56, needs memory_bytes=1.66"),
        ({"memory_bytes": 8e10, "aspect_ratio": 0}, "aspect_ratio=0"),
        ({"memory_bytes": 8e10, "aspect_ratio": 300}, "longer than 200:1"),
        ({"memory_bytes": 8e10, "aspect_ratio": 1001}, "from 0.001 to 1000"),
        ({"memory_bytes": 8e10, "num_images": 0}, "num_images=0: the largest image needs at least 1"),
        ({"memory_bytes": float("nan")}, "memory_bytes=nan: give a finite number above 0"),
        ({"memory_bytes": 8e10, "weight_bytes_per_param": float("nan")}, "weight_bytes_per_param=nan"),
        ({"memory_bytes": 8e10, "batch_size": 0}, "batch_size=0: give at least 1"),
    ],
)
def test_what_cannot_be_answered_is_said(request_, message):
    with pytest.raises(UserError, match=message):
        largest_image("qwen2-vl-7b", **request_)
