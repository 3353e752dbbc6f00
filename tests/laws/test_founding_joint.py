"""Published tables refitted by joint laws: Adventurer (arXiv 2502.03738), SigLIP 2, visual tokens x LLM size."""

import pytest

from patchscale import UserError, fit_law, published
from patchscale.laws.descent import descend


@pytest.fixture(scope="module")
def adventurer():
    """The forty runs of complete curves: Base at 64 px, all sizes at 128 px, Tiny to Base at 224 px."""
    table = published("patchification/imagenet")
    table = table[table["architecture"] == "adventurer"]
    table = table[(table["img_size"] > 64) | (table["model"] == "Adventurer-Base")]
    assert len(table) == 40
    return fit_law(table, form="relative-patch", target="error")


def test_the_patch_exponent_of_the_founding_table(adventurer):
    a = adventurer.parameters["a"]
    assert 1.45 <= a.value <= 1.77
    assert a.value == pytest.approx(1.60, abs=0.01)
    assert (a.low, a.high) == pytest.approx((1.40, 1.76), abs=0.03)
    assert adventurer.parameters["h"].value == pytest.approx(0.33, abs=0.01)
    assert adventurer.parameters["c"].value == pytest.approx(0.16, abs=0.01)


def test_pixel_patches_are_predicted_from_larger_ones(adventurer):
    holdout = next(one for one in adventurer.holdouts if one.column == "patch_size")
    assert (holdout.value, holdout.rows) == (1, 8)
    assert 100 * holdout.rmse <= 0.40


def test_floor_and_resolution_are_said_to_trade_off(adventurer):
    assert adventurer.parameters["E"].value == 0
    assert adventurer.check("floor-resolution").state == "warn"
    assert "E and C trade off" in adventurer.check("floor-resolution").message
    assert adventurer.check("conditioning").message.startswith("E and C trade off")
    assert "E and C trade off" in str(adventurer)
    assert adventurer.check("at-bound").state == "warn"
    assert "b or c" in adventurer.check("weak-exponent").message


def test_no_start_of_a_dense_grid_does_better(adventurer):
    import numpy as np

    low, high = adventurer.problem.bounds
    axes = np.meshgrid(*(np.linspace(a, b, 5) for a, b in zip(low, high, strict=True)), indexing="ij")
    dense = descend(adventurer.problem, np.stack([axis.ravel() for axis in axes], axis=1)).at.objective.min()
    assert adventurer.objective <= dense * (1 + 1e-8)
    assert adventurer.starts_agreeing > 0.5


def test_the_joint_forms_rank_as_in_the_documents(adventurer):
    """Differences of AICc and hold-outs of p = 1, as docs/laws.md states them."""
    expected = {
        "relative-patch:h=0": (30.6, 0.51),
        "relative-patch:C=0": (73.3, None),
        "additive": (73.1, 0.96),
        "product": (58.3, 1.21),
    }
    for form, (behind, missed) in expected.items():
        fit = fit_law(adventurer.rows, form=form, target="error", draws=40)
        assert fit.aicc - adventurer.aicc == pytest.approx(behind, abs=3), form
        holdout = next(one for one in fit.holdouts if one.column == "patch_size")
        if missed is not None:
            assert 100 * holdout.rmse == pytest.approx(missed, abs=0.03), form


def test_siglip2_without_a_resolution_term():
    fit = fit_law(published("siglip2/imagenet"), form="relative-patch:C=0", target="error", draws=200)
    a, h, E = (fit.parameters[name] for name in ("a", "h", "E"))
    assert a.value == pytest.approx(1.20, abs=0.06)
    assert h.value == pytest.approx(0.53, abs=0.03)
    assert E.value == pytest.approx(0.124, abs=0.01)
    assert h.low > 0, "large models gain less from small patches"


def test_language_model_against_visual_tokens():
    """Only the ratio of the exponents is known, and it is all that the optimum needs (Li et al., arXiv 2411.03312)."""
    table = published("vlm/tokens-llm-size")
    table = table[(table["task"] == "visual reasoning")]
    fit = fit_law(table, form="vlm", target="error", draws=400)
    assert fit.parameters["D"].value == 0
    assert "D is at 0" in fit.check("at-bound").message
    assert fit.check("conditioning").state == "warn"
    ratio = fit.derived(lambda p: p["alpha"] / p["beta"])
    assert ratio.value == pytest.approx(4.7, abs=0.1)
    assert ratio.high / ratio.low < 1.4 < fit.parameters["alpha"].high / fit.parameters["alpha"].low
    # visual tokens that go best with 50 text tokens; with the published exponents 12.1
    best = fit.derived(lambda p: 50 * p["beta"] / (p["alpha"] - p["beta"]))
    assert best.low < 13.8 < best.high


def test_xcit_with_distillation_as_one_factor():
    table = published("timm/imagenet-vit").query("family == 'xcit'")
    table = table.assign(params_backbone=table["params_total"])
    assert len(table) == 42
    fit = fit_law(table, form="relative-patch:C=0", target="error", factors=["pretrain_tag"], draws=200)
    assert fit.parameters["a"].value == pytest.approx(1.24, abs=0.01)
    assert fit.parameters["h"].value == pytest.approx(0.40, abs=0.01)
    assert fit.parameters["b"].value == pytest.approx(1.17, abs=0.01)
    # distilled models make 8 % fewer errors
    assert 1 / fit.parameters["x[pretrain_tag=fb_in1k]"].value == pytest.approx(0.92, abs=0.005)
    with pytest.raises(UserError, match=r"the rows differ in pretrain_tag .*groups=\['pretrain_tag'\]"):
        fit_law(table, form="relative-patch:C=0", target="error")
