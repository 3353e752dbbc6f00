"""Planning with the laws that the package fits: joint, grouped, logit, one curve."""

import numpy as np
import pandas as pd
import pytest

from patchscale import UserError, fit_law, published
from patchscale.planner.plan import plan
from patchscale.planner.prices import price
from patchscale.planner.quality import Quality
from patchscale.planner.space import Space


@pytest.fixture(scope="module")
def adventurer():
    return published("patchification/imagenet").query("architecture == 'adventurer' and patch_size <= 16")


@pytest.fixture(scope="module")
def priced():
    space = Space(
        models=["adventurer_*"], img_sizes=[64, 128, 160, 224], patch_sizes=[32, 16, 8, 4, 2, 1], images_seen=[3e8]
    )
    return price(space, device="a100")


@pytest.fixture(scope="module")
def joint(adventurer):
    return fit_law(adventurer, form="relative-patch", target="error", draws=300)


@pytest.mark.parametrize("kind", ["joint", "logit", "grouped", "curve"])
def test_values_are_those_that_predict_gives(kind, joint, adventurer, priced):
    if kind == "joint":
        fit = joint
    elif kind == "logit":
        fit = fit_law(adventurer, form="relative-patch:C=0", target="logit-error", draws=40)
    elif kind == "grouped":
        both = pd.concat([adventurer, published("patchification/imagenet").query("model == 'DeiT-Base'")])
        form = "relative-patch:h=0,C=0"
        fit = fit_law(both, form=form, target="error", groups=["architecture"], draws=40)
        priced = priced.assign(architecture="adventurer")
    else:
        fit = fit_law(adventurer.query("model == 'Adventurer-Base' and img_size == 224"), target="error")
    quality = Quality(fit)
    expected = fit.predict(priced)
    np.testing.assert_allclose(quality.values(priced), expected["predicted"], rtol=1e-12)
    told = quality.rows(priced)
    for name in ("predicted", "low", "high"):
        np.testing.assert_allclose(told[name], expected[name], rtol=1e-12)
    assert told["outside"].tolist() == expected["outside"].tolist()
    np.testing.assert_allclose(quality.draws(priced), fit.draws(priced), rtol=1e-12)


def test_a_plan_from_the_founding_table(joint, priced):
    made = plan(joint, priced, budgets={"train_gpu_hours": 500})
    allowed = priced.query("train_gpu_hours <= 500")
    predicted = joint.predict(allowed)
    assert made.best["predicted"] == pytest.approx(predicted["predicted"].min())
    draws = joint.draws(made.candidates)
    leaders = draws.argmin(axis=1)
    assert made.candidates["prob_best"].iloc[0] == pytest.approx((leaders == 0).mean())
    assert made.binds == ("train_gpu_hours",)
    assert "%" in str(made)
    outside = made.candidates.query("img_size == 160 and model == 'adventurer_base'")
    assert outside["outside"].tolist() == ["patch_size" if size == 32 else "" for size in outside["patch_size"]]
    assert (made.candidates.query("model == 'adventurer_huge'")["outside"].str.contains("params_backbone")).all()


def test_a_law_of_one_curve_chooses_the_patch_size_alone(adventurer):
    fit = fit_law(adventurer.query("model == 'Adventurer-Base' and img_size == 224"), target="error")
    space = Space(models=["adventurer_base"], img_sizes=[224], images_seen=[3e8])
    made = plan(fit, space, budgets={"train_gpu_hours": 2000}, device="a100")
    assert made.axes == ("patch_size",)
    finest = price(space, device="a100").query("train_gpu_hours <= 2000")["patch_size"].min()
    assert made.best["patch_size"] == finest
    assert made.steps["axis"].tolist() == ["patch_size"]
    assert made.blind == ()


@pytest.mark.parametrize("residuals", [None, "log"])  # fitted as a curve, and as joint laws are
def test_a_law_of_one_curve_is_refused_for_what_it_was_not_fitted_to(adventurer, residuals):
    fit = fit_law(
        adventurer.query("model == 'Adventurer-Base' and img_size == 224"), target="error", residuals=residuals
    )
    budgets = {"infer_flops": 1e12}
    for models in (["adventurer_*"], ["adventurer_tiny"]):
        with pytest.raises(UserError, match=r"fitted to model Adventurer-Base, .*; plan model adventurer_base, or"):
            plan(fit, Space(models=models, img_sizes=[224]), budgets=budgets)
    with pytest.raises(UserError, match=r"fitted to img_size 224, .*\(asked: 64 and 224\); plan img_size 224, or"):
        plan(fit, Space(models=["adventurer_base"], img_sizes=[64, 224]), budgets=budgets)


def test_a_curve_that_names_no_model_is_planned_for_one_at_a_time(adventurer):
    curve = adventurer.query("model == 'Adventurer-Base' and img_size == 224")[["patch_size", "metric"]]
    fit = fit_law(curve, target="error")
    one = Space(models=["vit_small"], img_sizes=[224], patch_sizes=[16, 8])
    assert plan(fit, one, budgets={"infer_flops": 1e12}).best["patch_size"] == 8
    with pytest.raises(UserError, match="a table that names no model, predicts the same for every model"):
        plan(fit, Space(models=["vit_*"], img_sizes=[224]), budgets={"infer_flops": 1e12})
    with pytest.raises(UserError, match="a table that names no img_size"):
        plan(fit, Space(models=["vit_small"], img_sizes=[128, 224]), budgets={"infer_flops": 1e12})


def test_a_law_without_model_size_is_refused_for_other_models(adventurer):
    fit = fit_law(
        adventurer.query("model == 'Adventurer-Base'"), form="additive:patch_size,img_size", target="error", draws=40
    )
    made = plan(fit, Space(models=["adventurer_base"], img_sizes=[128, 224]), budgets={"infer_flops": 1e12})
    assert made.best["img_size"] == 224
    with pytest.raises(UserError, match="fitted to model Adventurer-Base"):
        plan(fit, Space(models=["adventurer_*"], img_sizes=[128, 224]), budgets={"infer_flops": 1e12})


def test_models_of_another_family_are_extrapolations(joint):
    space = Space(models=["vit_small", "adventurer_small"], img_sizes=[128, 224], patch_sizes=[16, 8])
    made = plan(joint, space, budgets={"infer_flops": 1.5e10})
    for table in (made.candidates, made.frontier, made.doublings, made.steps):
        vit = table["model"].astype(str).str.startswith("vit")
        assert table["extrapolated"].tolist() == vit.tolist()
        assert (table["outside"] == "model family").tolist() == vit.tolist()
    assert made.candidates["extrapolated"].any()
    vits = plan(joint, Space(models=["vit_small"], img_sizes=[224], patch_sizes=[8]), budgets={"infer_flops": 1e13})
    assert "This is an extrapolation (model family): it lies outside of what was measured" in str(vits)
    assert vits.to_dict()["best"]["outside"] == "model family"


def test_a_family_counts_in_its_own_group(adventurer):
    both = pd.concat([adventurer, published("patchification/imagenet").query("model == 'DeiT-Base'")])
    form = "relative-patch:h=0,C=0"
    fit = fit_law(both, form=form, target="error", groups=["architecture"], draws=40)
    for group in ("vit", "adventurer"):
        models = ["deit_base", "vit_base", "adventurer_base"]
        space = Space(models=models, img_sizes=[128], patch_sizes=[16], fixed={"architecture": group})
        told = plan(fit, space, budgets={"infer_flops": 1e13}).candidates.set_index("model")["outside"]
        others = [model for model in models if (group == "vit") == model.startswith("adventurer")]
        assert told[told.str.contains("model family")].index.astype(str).tolist() == sorted(others, key=models.index)


def test_intervals_have_the_level_of_the_fit(adventurer, priced):
    fits = [
        fit_law(adventurer, form="relative-patch:h=0", target="error", draws=200, level=level) for level in (0.5, 0.95)
    ]
    half, wide = (plan(fit, priced, budgets={"train_gpu_hours": 500}) for fit in fits)
    assert (half.level, wide.level) == (0.5, 0.95)
    assert half.best["high"] - half.best["low"] < 0.6 * (wide.best["high"] - wide.best["low"])
    assert len(half.ties) <= len(wide.ties)
    assert "at 50%" in str(half)
    for level in (0.5, 2, 95, "high"):
        with pytest.raises(UserError, match="level: a plan's intervals have the level of the fit"):
            plan(fits[1], priced, budgets={"train_gpu_hours": 500}, level=level)
