"""What a figure of a fit holds: the data drawn, not its pixels."""

from itertools import product

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from patchscale import UserError, fit_law

FORM = "relative-patch:C=0"


def runs(models=(5e6, 22e6, 86e6, 304e6), sizes=(64, 128, 224), patches=(16, 8, 4, 2, 1)) -> pd.DataFrame:
    table = pd.DataFrame(list(product(models, sizes, patches)), columns=["params_backbone", "img_size", "patch_size"])
    N, r, p = (table[name].astype(float) for name in table.columns)
    scatter = 1 + 0.01 * np.random.default_rng(0).normal(size=len(table))
    return table.assign(metric=1 - scatter * (0.08 + 450 * (p / r) ** 1.6 * N**-0.33 + 300 * N**-0.5))


@pytest.fixture
def axes():
    _, axes = plt.subplots()
    yield axes
    plt.close("all")


def test_a_joint_fit_is_one_curve_per_combination_of_the_other_axes(axes):
    table = runs(models=(5e6, 22e6, 86e6), sizes=(64, 224))
    fit = fit_law(table, form=FORM, target="error", draws=40)
    assert fit.plot(axes) is axes
    assert axes.get_xlabel() == "patch size (px)"
    assert axes.xaxis_inverted()
    curves, dots = axes.lines[::2], axes.lines[1::2]
    assert len(curves) == len(dots) == len(axes.collections) == 6
    assert "of" not in axes.get_title()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[0] == "r=64, N=5e+06"
    # the first combination: its runs, and the law with its band at them
    own = table.query("img_size == 64 and params_backbone == 5e6")
    drawn = dict(zip(*dots[0].get_data(), strict=True))
    assert drawn == pytest.approx(dict(zip(own["patch_size"], 1 - own["metric"], strict=True)))
    x, y = curves[0].get_data()
    assert (min(x), max(x)) == pytest.approx((1, 16))
    told = fit.predict(pd.DataFrame({"patch_size": x, "img_size": 64, "params_backbone": 5e6}))
    np.testing.assert_allclose(y, told["predicted"])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((told["low"].min(), told["high"].max()))


def test_of_many_combinations_the_most_populated_are_drawn_and_the_title_says_so(axes):
    table = runs().drop(index=0)
    fit = fit_law(table, form=FORM, target="error", draws=40)
    fit.plot(axes)
    assert "8 of 12 curves, those with most points" in axes.get_title()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(labels) == 8
    assert "r=64, N=5e+06" not in labels, "it has a run less than the others"


def test_another_axis_and_groups_can_be_drawn(axes):
    table = pd.concat([runs(sizes=(64, 224), patches=(16, 8)).assign(recipe=name) for name in ("a", "b")])
    fit = fit_law(table, form=FORM, target="error", groups=["recipe"], draws=40)
    fit.plot(axes, axis="params_backbone")
    assert axes.get_xlabel() == "parameters without head and position table"
    assert not axes.xaxis_inverted()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(labels) == 8
    assert "p=8, r=64, recipe=a" in labels
    with pytest.raises(UserError, match="has no axis 'epochs'; plot along one of patch_size, img_size, params_back"):
        fit.plot(axes, axis="epochs")


def test_a_combination_with_one_value_is_dashed_over_what_others_measured(axes):
    extra = runs(models=(44e6,), sizes=(128,), patches=(4,))
    fit = fit_law(pd.concat([runs(models=(5e6, 22e6, 86e6), sizes=(64,)), extra]), form=FORM, target="error", draws=40)
    fit.plot(axes)
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [line.get_label() for line in dashed] == ["r=128, N=4.4e+07"]
    assert (min(dashed[0].get_xdata()), max(dashed[0].get_xdata())) == pytest.approx((1, 16))
