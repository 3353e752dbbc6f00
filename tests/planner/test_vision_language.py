import numpy as np
import pytest

from patchscale import UserError, fit_law, published
from patchscale.costs.counts import count
from patchscale.costs.vision_language import LANGUAGE_MODELS, MODELS, estimate_vision_language_cost, vary
from patchscale.costs.vision_language.language_models import decoder_params
from patchscale.costs.vision_language.time import first_token_time
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


@pytest.fixture
def named():
    return VisionLanguageSpace(
        models=["qwen2.5-vl-7b"],
        llms=["qwen2.5-1.5b", "qwen2.5-7b"],
        img_sizes=[224, 448],
        patch_sizes=[14, 28],
        merge_factors=[1, 2],
        text_tokens=20,
    )


def test_variations_of_a_named_model_are_priced_as_the_costs_price_them(named):
    priced = price_vision_language(named, device="a100", batch_size=3, num_images=2, new_tokens=10)
    assert len(priced) == 2 * 2 * 2 * 2
    for row in priced.to_dict("records"):
        model = vary(
            MODELS["qwen2.5-vl-7b"],
            patch_size=row["patch_size"],
            merge_size=row["merge_factor"],
            llm=LANGUAGE_MODELS[row["llm"]],
        )
        cost = estimate_vision_language_cost(
            model, img_size=row["img_size"], text_tokens=20, batch_size=3, num_images=2, new_tokens=10
        )
        assert row["infer_flops"] == cost.flops_prefill
        assert row["encoder_flops"] + row["prefill_flops"] == cost.flops_prefill
        side = row["img_size"] // row["patch_size"] // row["merge_factor"]
        assert row["visual_tokens"] == cost.visual_tokens == 2 * side**2
        assert row["kv_cache_bytes"] == cost.kv_cache_bytes
        assert row["peak_memory_bytes"] == cost.peak_memory_bytes
        assert row["latency_s"] == first_token_time(cost, "a100").seconds
        # attention comes on top of 2 N (Q + V), the embedding table costs nothing
        blocks = decoder_params(model.llm)["llm_blocks"]
        plain = 2 * blocks * (20 + row["visual_tokens"])
        assert plain < row["prefill_flops"] < 1.4 * plain
    assert "assumed: " in priced.attrs["time"]
    without = price_vision_language(named, count_encoder=False)
    assert without["infer_flops"].tolist() == without["prefill_flops"].tolist()


def test_what_is_not_given_stays_as_the_model_has_it():
    frame = VisionLanguageSpace(
        models=["llava-1.5-7b", "internvl2-8b", "llava-next-mistral-7b"], img_sizes=[448]
    ).frame()
    rows = frame.set_index("model")
    assert rows["llm"].to_dict() == {
        "llava-1.5-7b": "vicuna-7b", "internvl2-8b": "internlm2-7b", "llava-next-mistral-7b": "mistral-7b"
    }  # fmt: skip
    assert rows["patch_size"].unique().tolist() == [14]
    assert rows.loc["internvl2-8b", ["merge_factor", "visual_tokens"]].tolist() == [
        2,
        256 + 2,
    ]  # start and end of the image
    assert rows.loc["llava-1.5-7b", "visual_tokens"] == (448 // 14) ** 2  # its one square is what varies
    whole = estimate_vision_language_cost("llava-1.5-7b", img_size=336)
    own = price_vision_language(VisionLanguageSpace(models=["llava-1.5-7b"], img_sizes=[336], text_tokens=64))
    assert own["infer_flops"].tolist() == [whole.flops_prefill]


def test_a_named_model_is_planned_within_time_and_memory(reasoning, named):
    free = plan(reasoning, named, budgets={"latency_s": 10.0}, device="a100")
    assert free.best["llm"] == "qwen2.5-7b"
    tight = plan(reasoning, named, budgets={"latency_s": 10.0, "peak_memory_bytes": 8e9}, device="a100")
    assert tight.best["llm"] == "qwen2.5-1.5b"
    assert tight.binds == ("peak_memory_bytes",)
    assert tight.axes == ("img_size", "patch_size", "merge_factor", "llm")
    assert "time to the first token" in str(tight)
    assert "training" not in str(tight)
    small = plan(reasoning, named, budgets={"latency_s": 1e3}, device="rtx4090", batch_size=64)
    assert "It does not fit" in str(small)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ["qwen2.5-vl-8b"]}, "did you mean qwen2.5-vl"),
        ({"llms": ["qwen-9b"]}, "language model 'qwen-9b' is not known"),
        ({"llms": QWEN}, "named models take language models by name"),
        ({"img_sizes": []}, "no img_sizes"),
        ({"visual_tokens": [4]}, "give either visual_tokens"),
        ({"models": [], "visual_tokens": [4], "llms": ["qwen2.5-7b"]}, "without named models give parameters"),
    ],
)
def test_mistakes_with_named_models_are_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        VisionLanguageSpace(**{"models": ["llava-1.5-7b"], "img_sizes": [336], **options})
    assert "\n" not in str(caught.value)


def test_a_calibrated_profile_is_refused_with_the_reason(tmp_path, monkeypatch):
    """Profiles hold speeds of vision models alone; a measured speed can be given instead."""
    monkeypatch.setenv("PATCHSCALE_CONFIG_DIR", str(tmp_path))
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "my-gpu.json").write_text("{}")
    space = VisionLanguageSpace(llms=QWEN, visual_tokens=[4])
    with pytest.raises(UserError, match="it is a profile, and profiles hold no speed of these models; choose one of"):
        price_vision_language(space, device="my-gpu")
    priced = price_vision_language(space, flops_per_s=1e14)
    assert (priced["latency_s"] == priced["infer_flops"] / 1e14).all()


def test_what_cannot_be_built_is_left_out_and_refused_if_nothing_is_left():
    some = VisionLanguageSpace(models=["paligemma-3b-224"], img_sizes=[224, 225], patch_sizes=[14, 16])
    assert some.frame()[["img_size", "patch_size"]].to_numpy().tolist() == [[224, 14], [224, 16]]
    none = VisionLanguageSpace(models=["paligemma-3b-224"], img_sizes=[225], patch_sizes=[14, 16])
    with pytest.raises(UserError, match="none of these can be built with paligemma-3b-224: a square of 225 pixels"):
        none.frame()
    with pytest.raises(UserError, match="num_images: only requests to named models"):
        price_vision_language(VisionLanguageSpace(llms=QWEN, visual_tokens=[4]), num_images=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"llms": {}}, "no llms"),
        ({}, "give either visual_tokens, or encoders"),
        ({"visual_tokens": [4], "encoders": ["vit_base"]}, "give either visual_tokens, or encoders"),
        ({"encoders": ["vit_base"]}, "no img_sizes"),
        ({"visual_tokens": [4], "img_sizes": [224], "merge_factors": [2]}, "leave out img_sizes and merge_factors"),
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
