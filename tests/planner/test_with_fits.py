"""Planning with the laws that the package fits: joint, grouped, logit, one curve."""

import numpy as np
import pandas as pd
import pytest

from patchscale import fit_law, published
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
        fit = fit_law(adventurer, form="relative-patch:C=0", target="logit-error", draws=30)
    elif kind == "grouped":
        both = pd.concat([adventurer, published("patchification/imagenet").query("model == 'DeiT-Base'")])
        form = "relative-patch:h=0,C=0"
        fit = fit_law(both, form=form, target="error", groups=["architecture"], draws=30)
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
    wider = Space(models=["adventurer_*"], img_sizes=[224], images_seen=[3e8])
    assert plan(fit, wider, budgets={"train_gpu_hours": 2000}, device="a100").blind == ("model",)
