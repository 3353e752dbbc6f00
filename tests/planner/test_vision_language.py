import numpy as np
import pytest

from patchscale import UserError, fit_law, published
from patchscale.costs.counts import count
from patchscale.planner.plan import plan
from patchscale.planner.vision_language import VisionLanguageSpace, price_vision_language

QWEN = {"0.5B": 0.5e9, "1.8B": 1.8e9, "4B": 4e9, "7B": 7e9}
TOKENS = [1, 4, 16, 36, 64, 144, 576]


@pytest.fixture(scope="module")
def reasoning():
    table = published("vlm/tokens-llm-size").query("task == 'visual reasoning'")
    return fit_law(
        table,
        form="vlm",
        target="error",
        draws=300,
    )


@pytest.fixture(scope="module")
def ocr():
    table = published("vlm/tokens-llm-size").query("task == 'OCR'")
    return fit_law(
        table,
        form="vlm",
        target="error",
        draws=300,
    )


def test_prices_of_tokens_alone():
    priced = price_vision_language(VisionLanguageSpace(llms=QWEN, visual_tokens=TOKENS, text_tokens=50))
    assert len(priced) == 28
    row = priced.query("llm == '4B' and visual_tokens == 144")
    assert row["infer_flops"].item() == 2 * 4e9 * (50 + 144)
    assert row["llm_params"].item() == 4e9
    assert "left out" in priced.attrs["request"]


def test_an_image_becomes_tokens_by_patch_and_merge_factor_and_the_encoder_costs_the_same_for_all_merges():
    space = VisionLanguageSpace(
        llms=QWEN,
        encoders=["vit_large"],
        img_sizes=[224, 448],
        patch_sizes=[14],
        merge_factors=[1, 2, 3],
        text_tokens=0,
    )
    priced = price_vision_language(space, flops_per_s=1e14)
    # 3 divides neither 16 nor 32 patches
    assert sorted(set(zip(priced["img_size"], priced["merge_factor"], priced["visual_tokens"], strict=True))) == [
        (224, 1, 256), (224, 2, 64), (448, 1, 1024), (448, 2, 256)
    ]  # fmt: skip
    row = priced.query("img_size == 448 and merge_factor == 2 and llm == '7B'")
    encoder = count("vit_large", patch_size=14, img_size=448, num_classes=0).flops_forward
    assert row["encoder_flops"].item() == encoder
    assert row["infer_flops"].item() == encoder + 2 * 7e9 * 256
    assert row["latency_s"].item() == pytest.approx((encoder + 2 * 7e9 * 256) / 1e14)
    without = price_vision_language(space, count_encoder=False)
    assert np.allclose(without["infer_flops"], without["prefill_flops"])


def test_reasoning_prefers_the_larger_language_model_and_text_in_pictures_the_tokens(reasoning, ocr):
    """The finding of arXiv 2411.03312, planned with laws fitted to its table at one budget."""
    space = VisionLanguageSpace(llms=QWEN, visual_tokens=TOKENS, text_tokens=50)
    budgets = {"infer_flops": 2 * 7e9 * (50 + 36)}
    reason = plan(reasoning, space, budgets=budgets)
    read = plan(ocr, space, budgets=budgets)
    assert reason.best["llm"] == "7B"
    assert reason.best["llm_params"] > read.best["llm_params"]
    assert reason.best["visual_tokens"] < read.best["visual_tokens"]
    assert reason.axes == ("visual_tokens", "llm")
    assert "language model 7B" in str(reason)


def test_visual_tokens_can_be_the_budget(reasoning):
    space = VisionLanguageSpace(
        llms=QWEN, encoders=["vit_large"], img_sizes=[224, 448, 896], patch_sizes=[14], merge_factors=[1, 2, 4]
    )
    made = plan(reasoning, space, budgets={"visual_tokens": 64, "infer_flops": 1e13})
    assert made.best["visual_tokens"] == 64
    assert made.axes == ("img_size", "merge_factor", "llm")
    assert len(made.steps)
    assert "visual tokens" in str(made)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"llms": {}}, "no llms"),
        ({}, "give either visual_tokens, or encoders"),
        ({"visual_tokens": [4], "encoders": ["vit_base"]}, "give either visual_tokens, or encoders"),
        ({"encoders": ["vit_base"]}, "no img_sizes"),
        ({"visual_tokens": [0]}, "visual_tokens: 0 is not a positive number"),
        ({"visual_tokens": [4], "text_tokens": -1}, "text_tokens=-1 cannot be negative"),
    ],
)
def test_mistakes_are_one_line(options, message):
    with pytest.raises(UserError) as caught:
        VisionLanguageSpace(**{"llms": QWEN, **options})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no merge factor divides"):
        VisionLanguageSpace(
            llms=QWEN, encoders=["vit_base"], img_sizes=[224], patch_sizes=[16], merge_factors=[5]
        ).frame()
