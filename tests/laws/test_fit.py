import json
import math
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from patchscale import UserError, fit_curves, fit_law, published
from patchscale.laws.table import suggest_patch_sizes


@pytest.fixture
def study(planted):
    """Two models, two image sizes, two seeds each: four curves, as run records would hold them."""
    parts = []
    for i, (model, img_size) in enumerate([("vit_nano", 32), ("vit_nano", 64), ("big", 32), ("big", 64)]):
        table = planted.curve(E=0.5 + 0.1 * i, A=0.02, alpha=1.2, noise=2e-3, seeds=2, rng=i)
        parts.append(table.assign(model=model, img_size=img_size, study="s", status="done", recipe="r"))
    table = pd.concat(parts, ignore_index=True)
    table["run_id"] = [f"run-{i}" for i in range(len(table))]
    return table.assign(metric=1 - table["test_loss"] / 2, metric_name="top1")


def test_one_fit_per_curve_and_seeds_are_replicates(study):
    fits = fit_curves(study)
    assert [fit.label for fit in fits] == ["vit_nano, 32 px", "vit_nano, 64 px", "big, 32 px", "big, 64 px"]
    assert [len(fit.rows) for fit in fits] == [10] * 4
    assert fits[0].curve == {"study": "s", "model": "vit_nano", "img_size": 32, "recipe": "r", "metric_name": "top1"}
    assert [fit.parameters["E"].value for fit in fits] == pytest.approx([0.5, 0.6, 0.7, 0.8], rel=0.03)
    assert not fits.refused


def test_grouping_can_be_chosen(study):
    assert len(fit_curves(study[study["img_size"] == 32], by=["model"])) == 2
    with pytest.raises(UserError, match=r"cannot group by 'modle': no such column; did you mean 'model'"):
        fit_curves(study, by=["modle"])
    mixed = fit_curves(study, by=["model"])
    assert not mixed
    assert mixed.refused[0].reason.startswith("vit_nano: the rows differ in img_size (32, 64), not in patch_size alone")


def test_the_error_is_one_minus_the_metric(study):
    rows = study[(study["model"] == "big") & (study["img_size"] == 64)]
    error, loss = fit_law(rows, target="error"), fit_law(rows, target="loss")
    assert error.parameters["E"].value == pytest.approx(loss.parameters["E"].value / 2, rel=1e-5)
    assert error.parameters["alpha"].value == pytest.approx(loss.parameters["alpha"].value, rel=1e-5)
    assert "error (1 - top1)" in str(error)
    assert " %" in str(error)


def test_unfinished_and_repeated_runs_are_dropped_with_their_reason(study):
    study.loc[0, "status"] = "failed"
    study.loc[2, "test_loss"] = np.nan
    study.loc[4, "patch_size"] = np.nan
    study.loc[7, "run_id"] = "run-6"
    fits = fit_curves(study)
    assert sorted(fits.dropped["reason"]) == [
        "no patch_size",
        "no test_loss",
        "status is failed, not done",
        "the same run is in the table twice",
    ]
    assert len(fits[0].rows) == 6
    assert list(fits[0].dropped["run_id"]) == ["run-0", "run-2", "run-4", "run-6"]
    assert len(fits[1].dropped) == 0


def test_a_curve_with_too_few_sizes_is_refused_by_name_and_the_others_are_fitted(study):
    short = study[(study["model"] != "big") | (study["img_size"] != 64) | study["patch_size"].isin([16, 2])]
    fits = fit_curves(short)
    assert len(fits) == 3
    (refused,) = fits.refused
    assert refused.label == "big, 64 px"
    assert refused.reason == (
        "big, 64 px: 2 distinct patch_size (16, 2); form 'patch' needs at least 4; add patch_size 8 and 4"
    )


def test_a_list_without_fits_says_why(study):
    fits = fit_curves(study[study["patch_size"].isin([16, 8])])
    assert list(fits) == []
    assert len(fits.refused) == 4
    assert fits.why_empty().startswith("no curve could be fitted: vit_nano, 32 px: 2 distinct")
    assert fits.why_empty().endswith("; and 1 more")
    assert fit_curves(study.assign(status="queued")).why_empty() == "no row can be fitted: status is queued, not done"
    assert fit_curves(study.iloc[:0]).why_empty() == "no row can be fitted: the table is empty"
    with pytest.raises(UserError, match=r"0 distinct patch_size \(none\) \(40 rows dropped: status is queued"):
        fit_law(study.assign(status="queued"))


def test_fitted_rows_keep_their_place_in_the_table(study):
    fits = fit_curves(study)
    assert sorted(index for fit in fits for index in fit.rows.index) == list(study.index)


def test_mixed_recipes_are_refused_unless_allowed(planted):
    table = planted.curve(noise=1e-3).assign(model="m", recipe=["a", "a", "a", "b", "b"])
    with pytest.raises(UserError, match=r"m: the rows differ in recipe \(a, b\), not in patch_size alone"):
        fit_law(table)
    assert fit_law(table, allow_mixed=True).check("mixed").state == "fail"
    longer = planted.curve(noise=1e-3).assign(epochs=[1, 1, 1, 1, 2])
    with pytest.raises(UserError, match="epochs"):
        fit_law(longer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "ptch"}, "form 'ptch' is not known"),
        ({"target": "accuracy"}, "target 'accuracy' is not known; use one of loss, error"),
        ({"level": 95}, "level=95 is not between 0 and 1"),
        ({"noise": "sd"}, "no column 'sd'"),
        ({"target": "error"}, "no column 'metric'; it has 'test_loss': use target 'loss'"),
    ],
)
def test_wrong_arguments_are_one_line_errors(planted, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        fit_law(planted.curve(), **arguments)
    assert "\n" not in str(caught.value)


def test_missing_columns_and_impossible_values(planted):
    table = planted.curve()
    with pytest.raises(UserError, match="no column 'patch_size'; rename 'patch_sizes'"):
        fit_law(table.rename(columns={"patch_size": "patch_sizes"}))
    with pytest.raises(UserError, match="the error at patch 1 is not positive"):
        fit_law(table.assign(metric=[0.5, 0.7, 0.8, 0.9, 1.0]), target="error")
    with pytest.raises(
        UserError, match=r"metric=81.2 in row 2 .* is not a fraction: metrics lie in \[0, 1\]; divide per"
    ):
        fit_law(table.assign(metric=[0.5, 0.7, 81.2, 0.9, 0.95]), target="error")
    with pytest.raises(UserError, match="column 'sd' must hold a positive standard deviation"):
        fit_law(table.assign(sd=0.0), noise="sd")
    with pytest.raises(UserError, match="cannot be predicted"):
        fit_law(table).predict([0])
    for residuals in (None, "log"):
        with pytest.raises(UserError, match=r"patch_size=1e\+300 in row 1"):
            fit_law(table, residuals=residuals).predict([4, 1e300])


@pytest.mark.parametrize("form", ["patch", "bnsl:patch_size", "additive:patch_size"])
@pytest.mark.parametrize("value", [1e300, 1e31, 1e-31, 1e-300, 5e-324])
@pytest.mark.parametrize("column", ["patch_size", "test_loss"])
def test_numbers_far_beyond_any_are_refused_by_name(planted, form, value, column):
    table = planted.curve(noise=1e-3).astype(float)
    table.loc[1, column] = value
    with pytest.raises(UserError, match=f"{column}={value:g} in row 1 .* lie between 1e-30 and 1e".replace("+", ".")):
        fit_law(table, form=form)


@pytest.mark.parametrize(("loss", "side"), [(1e25, 1e20), (1e-25, 1e-20)])
def test_a_fit_does_not_depend_on_units_however_far_they_are(planted, loss, side):
    table = planted.curve(noise=1e-3)
    fit, same = (
        fit_law(one)
        for one in (table, table.assign(test_loss=table.test_loss * loss, patch_size=table.patch_size * side))
    )
    assert same.parameters["alpha"].value == pytest.approx(fit.parameters["alpha"].value, rel=1e-5)
    assert same.parameters["E"].value == pytest.approx(fit.parameters["E"].value * loss, rel=1e-5)


def test_known_noise_weights_the_rows_and_bounds_the_interval_from_below(planted):
    table = planted.curve(noise=1e-6).assign(sd=1e-3)
    lucky, known = fit_law(table).parameters["alpha"], fit_law(table, noise="sd").parameters["alpha"]
    assert known.value == pytest.approx(lucky.value, rel=1e-3)
    assert known.high - known.low > 100 * (lucky.high - lucky.low)
    outlier = planted.curve()
    outlier.loc[2, "test_loss"] *= 1.05
    weighted = fit_law(outlier.assign(sd=[0.001, 0.001, 1.0, 0.001, 0.001]), noise="sd")
    assert weighted.parameters["alpha"].value == pytest.approx(1.4, rel=1e-3)


def test_predictions_are_flagged_outside_the_measured_range(planted):
    fit = fit_law(planted.curve(noise=1e-3, patch_sizes=(32, 16, 8, 4, 2)))
    table = fit.predict([64, 32, 3, 2, 1])
    assert list(table.columns) == ["patch_size", "predicted", "low", "high", "extrapolated"]
    assert table["extrapolated"].tolist() == [True, False, False, False, True]
    assert ((table["low"] < table["predicted"]) & (table["predicted"] < table["high"])).all()
    # predictions are those of the law, to rounding
    e = {name: estimate.value for name, estimate in fit.parameters.items()}
    assert table["predicted"].tolist() == pytest.approx([e["E"] + e["A"] * p ** e["alpha"] for p in [64, 32, 3, 2, 1]])


def test_a_noise_free_curve_predicts_itself(planted):
    fit = fit_law(planted.curve(patch_sizes=(32, 16, 8, 4, 2)))
    assert fit.predict([1])["predicted"][0] == pytest.approx(0.806, rel=1e-5)
    assert fit.holdout.predicted == pytest.approx(fit.holdout.measured, rel=1e-5)
    assert fit.holdout.carried_forward == pytest.approx(0.8 + 0.006 * 4**1.4, rel=1e-5)


def test_the_sentence_says_what_halving_buys(planted):
    measured = str(fit_law(planted.curve(noise=1e-3), label="mine"))
    assert measured.startswith(
        "mine: in the fitted law halving the patch from 2 to 1 px (both measured) takes the test loss from 0.81"
    )
    assert "not measured" not in measured
    further = str(fit_law(planted.curve(noise=1e-3, patch_sizes=(32, 16, 8, 4, 2))))
    assert "halving the patch from 2 to 1 px" in further
    assert "1 px, outside the measured range," in further
    odd = str(fit_law(planted.curve(noise=1e-3, patch_sizes=(28, 14, 7, 4, 3))))
    assert "going from a patch of 4 to 3 px" in odd
    weak = str(fit_law(published("patchification/test-loss").query("panel == 'i'")))
    assert "exponent alpha 1.62 [0.231, >6]" in weak
    assert "Weak: 5 points cannot bound alpha" in weak


def test_the_result_is_frozen_and_keeps_its_numbers(planted):
    table = planted.curve(noise=1e-3).assign(model="vit", img_size=32)
    fit = fit_law(table)
    with pytest.raises(AttributeError):
        fit.label = "other"
    assert fit.frame()["parameter"].tolist() == ["E", "A", "alpha"]
    points = fit.points()
    np.testing.assert_allclose(points["measured"] - points["fitted"], points["residual"])
    relative = points["residual"] / points["measured"]
    assert fit.objective == pytest.approx(float((relative**2).sum()), rel=1e-6)
    values = json.loads(json.dumps(fit.to_dict(), allow_nan=False))
    assert values["parameters"]["alpha"]["text"] == str(fit.parameters["alpha"])
    assert values["curve"]["img_size"] == 32
    assert {check["code"] for check in values["checks"]} >= {"weak-exponent", "replicates", "holdout"}
    assert set(fit.conventions) >= {"residuals", "objective", "intervals", "target", "patch_size"}
    assert all(-1 <= value <= 1 for value in fit.correlation.to_numpy().ravel())


def test_the_plot_shows_points_law_and_band(planted):
    _, axes = plt.subplots()
    assert fit_law(planted.curve(noise=1e-3), label="mine").plot(axes) is axes
    assert len(axes.lines) == 2
    assert len(axes.collections) == 1
    assert axes.get_xlabel() == "patch size (px)"
    assert axes.xaxis_inverted()
    plt.close("all")


def test_a_form_with_too_many_exponents_for_one_curve_is_sent_to_fit_law(planted):
    with pytest.raises(UserError, match=r"has 4 exponents, .* at most 3; fit all rows at once with fit_law"):
        fit_curves(planted.curve(), form="relative-patch")


AMPLITUDES = (("a", 0.006), ("b", 0.01))


def test_curves_are_fitted_with_any_law_of_one_axis(planted):
    curves = pd.concat([planted.curve(A=A, patch_sizes=(16, 12, 8, 6, 4, 2, 1)).assign(model=m) for m, A in AMPLITUDES])
    fits = fit_curves(curves, form="shifted")
    assert [fit.curve["model"] for fit in fits] == ["a", "b"]
    for fit, (_, A) in zip(fits, AMPLITUDES, strict=True):
        assert fit.predict([4.0])["predicted"].iloc[0] == pytest.approx(0.8 + A * 4**1.4, rel=1e-4)
        assert str(fit).startswith(f"{fit.label}: y = E + A * (p + p0)^a describes the test loss")
    with pytest.raises(UserError, match="form 'tokens' has 2 axes, and a curve has one; fit all rows at once"):
        fit_curves(curves, form="tokens")


def test_curves_of_logits_describe_logits(planted):
    p = planted.curve()["patch_size"]
    error = 1 / (1 + np.exp(-(-1.5 + 0.05 * p**1.2)))
    fits = fit_curves(pd.DataFrame({"patch_size": p, "metric": 1 - error}), target="logit-error")
    assert fits[0].parameters["E"].value == pytest.approx(-1.5, abs=1e-3)


def test_the_input_table_is_left_alone(study):
    before = study.copy()
    fit_curves(study)
    pd.testing.assert_frame_equal(study, before)


def test_a_rectangular_image_size_is_a_label(planted):
    fit = fit_law(planted.curve(noise=1e-3).assign(model="vit", img_size="32x64"))
    assert fit.label == "vit, 32x64 px"


@pytest.mark.parametrize(
    ("have", "needed", "img_size", "suggested"),
    [
        ([], 4, None, [8, 4, 2, 1]),
        ([16, 4], 2, None, [8, 2]),
        ([16, 8], 2, 224, [4, 2]),
        ([1], 3, 64, [8, 4, 2]),
        ([2, 1], 2, 32, [8, 4]),
        ([14, 7], 2, 28, [2, 1]),
        ([5], 3, 5, [1]),
    ],
)
def test_what_to_run_next(have, needed, img_size, suggested):
    assert suggest_patch_sizes(have, needed, img_size) == suggested


def test_fitting_needs_no_torch():
    code = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "timm", "torchvision"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Block())
import patchscale as ps
fit = ps.fit_law(ps.published("patchification/test-loss").query("panel == 'c'"))
print(fit.parameters["alpha"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    value = float(done.stdout.split()[0])
    assert math.isclose(value, 0.901, abs_tol=1e-3)
