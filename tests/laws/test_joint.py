"""Joint fits on noisy data: intervals, draws, predictions, refusals."""

import json
import time
from itertools import product

import numpy as np
import pandas as pd
import pytest

from patchscale import UserError, fit_law
from patchscale.laws.table import accuracy_noise

TRUE = {"E": 0.08, "A": 450.0, "B": 300.0, "a": 1.6, "h": 0.33, "b": 0.5}
FORM = "relative-patch:C=0"


def sweep(*, noise=0.01, curve_noise=0.0, rng=0, sizes=(64, 128, 224)) -> pd.DataFrame:
    """Runs over patch size, image size and model size on a known law; a curve may be off as a whole."""
    random = np.random.default_rng(rng)
    models = {"tiny": 5e6, "small": 22e6, "base": 86e6, "large": 304e6}
    rows = []
    for (model, N), r in product(models.items(), sizes):
        shift = curve_noise * random.normal()
        for p in (16, 8, 4, 2):
            law = TRUE["E"] + TRUE["A"] * (p / r) ** TRUE["a"] * N ** -TRUE["h"] + TRUE["B"] * N ** -TRUE["b"]
            error = law * np.exp(shift + noise * random.normal())
            rows.append({"model": model, "img_size": r, "patch_size": p, "params_backbone": N, "metric": 1 - error})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def fit():
    return fit_law(sweep(curve_noise=0.005), form=FORM, target="error", draws=400)


def test_intervals_hold_the_truth_and_the_seed_decides_them(fit):
    for name in ("a", "h", "b"):
        estimate = fit.parameters[name]
        assert estimate.low < estimate.value < estimate.high
        assert estimate.low < TRUE[name] < estimate.high
    assert fit.interval_method == "bootstrap"
    assert fit.bootstrap.converged > 0.99
    table = sweep(curve_noise=0.005)
    same, other = (fit_law(table, form=FORM, target="error", draws=400, seed=seed) for seed in (0, 1))
    assert same.parameters["a"].low == fit.parameters["a"].low
    assert other.parameters["a"].low != fit.parameters["a"].low
    assert other.parameters["a"].value == pytest.approx(fit.parameters["a"].value, rel=1e-6)


def test_clusters_are_curves_by_default_and_can_be_chosen(fit):
    assert (fit.bootstrap.clusters, fit.bootstrap.clustered_by) == (12, "model x img_size")
    table = sweep(curve_noise=0.005)
    # four models are too few to draw from
    few = fit_law(table, form=FORM, target="error", draws=40, cluster_by=["model"])
    assert few.bootstrap.clusters == len(table)
    assert few.check("clusters").state == "warn"
    # curves that are off as a whole widen the interval only if they are drawn as a whole
    shifted = sweep(noise=0.002, curve_noise=0.02, rng=4)
    whole, rows = (
        fit_law(shifted.assign(run=range(len(shifted))), form=FORM, target="error", draws=400, cluster_by=by)
        for by in (None, ["run"])
    )
    width = [one.parameters["b"].high / one.parameters["b"].low for one in (whole, rows)]
    assert width[0] > width[1]


def test_predictions_keep_the_rows_and_name_the_axes_they_leave(fit):
    points = pd.DataFrame(
        {"name": ["in", "out"], "patch_size": [4, 1], "img_size": [224, 512], "params_backbone": [86e6, 86e6]}
    )
    table = fit.predict(points)
    added = ["predicted", "low", "high", "extrapolated", "outside"]
    assert list(table.columns) == [*points.columns, *added]
    assert table["outside"].tolist() == ["", "patch_size,img_size"]
    assert table["extrapolated"].tolist() == [False, True]
    assert ((table["low"] < table["predicted"]) & (table["predicted"] < table["high"])).all()
    draws = fit.draws(points)
    assert draws.shape == (400, 2)
    np.testing.assert_allclose(np.quantile(draws, [0.025, 0.975], axis=0, method="weibull"), table[["low", "high"]].T)
    e = {name: estimate.value for name, estimate in fit.parameters.items()}
    by_hand = e["E"] + e["A"] * (4 / 224) ** e["a"] * 86e6 ** -e["h"] + e["B"] * 86e6 ** -e["b"]
    assert table["predicted"].iloc[0] == pytest.approx(by_hand, rel=1e-9)
    with pytest.raises(UserError, match="the points have no column 'params_backbone'"):
        fit.predict(points[["patch_size", "img_size"]])
    with pytest.raises(UserError, match="predicts the rows of a table"):
        fit.predict([4, 2])
    with pytest.raises(UserError, match="img_size must be a positive number"):
        fit.predict(points.assign(img_size=0))


def test_a_derived_quantity_has_the_interval_of_the_draws(fit):
    ratio = fit.derived(lambda p: p["h"] / p["b"])
    assert ratio.value == pytest.approx(fit.parameters["h"].value / fit.parameters["b"].value)
    assert ratio.low < 0.33 / 0.5 < ratio.high
    draws = fit.parameter_draws()
    assert list(draws.columns) == list(fit.parameters)
    assert (ratio.low, ratio.high) == pytest.approx(
        np.quantile(draws["h"] / draws["b"], [0.025, 0.975], method="weibull")
    )


@pytest.mark.parametrize("simulations", [16, pytest.param(100, marks=pytest.mark.slow)])
def test_the_interval_covers_as_often_as_it_claims(simulations):
    """Nominal 90 %; curves are disturbed together. Refused below two and a half standard deviations of chance."""
    held = {"a": 0, "h": 0, "prediction": 0}
    point = pd.DataFrame({"patch_size": [1], "img_size": [224], "params_backbone": [86e6]})
    truth = TRUE["E"] + TRUE["A"] * (1 / 224) ** 1.6 * 86e6**-0.33 + TRUE["B"] * 86e6**-0.5
    for rng in range(simulations):
        fit = fit_law(sweep(curve_noise=0.01, rng=rng), form=FORM, target="error", draws=200, level=0.9, seed=rng)
        for name in ("a", "h"):
            held[name] += fit.parameters[name].low <= TRUE[name] <= fit.parameters[name].high
        predicted = fit.predict(point)
        held["prediction"] += predicted["low"][0] <= truth <= predicted["high"][0]
    least = 0.9 - 2.5 * np.sqrt(0.09 / simulations)
    assert all(count >= least * simulations for count in held.values()), held


def test_few_points_with_few_exponents_have_profile_intervals():
    table = sweep(noise=0.01).query("img_size == 224 and model != 'tiny'")
    fit = fit_law(table, form="additive:patch_size,params_backbone", target="error")
    assert (len(table), fit.interval_method) == (12, "profile")
    assert fit.parameters["a"].low < fit.parameters["a"].value < fit.parameters["a"].high
    predicted = fit.predict(table)
    assert ((predicted["low"] < predicted["predicted"]) & (predicted["predicted"] < predicted["high"])).all()
    draws = fit.draws(table)
    spread = (np.quantile(draws, 0.975, axis=0) - np.quantile(draws, 0.025, axis=0)) / (
        predicted["high"] - predicted["low"]
    )
    assert spread.between(0.6, 1.6).all(), spread


@pytest.mark.slow
def test_a_thousand_draws_take_seconds(planted):
    started = time.perf_counter()
    fit_law(sweep().iloc[:40], form="relative-patch", target="error")
    assert time.perf_counter() - started < 10
    problem = planted.chinchilla(noise=0.01, budgets=10, points=25)
    table = pd.DataFrame({"params_backbone": problem.axes["N"], "images_seen": problem.axes["D"]})
    started = time.perf_counter()
    fit_law(table.assign(test_loss=problem.measured), form="additive:params_backbone,images_seen")
    assert time.perf_counter() - started < 20


def test_noise_weights_the_rows():
    table = sweep(noise=1e-5).assign(sd=1e-5)
    table.loc[3, "metric"] -= 0.05
    plain, known = (
        fit_law(table.assign(sd=np.where(table.index == 3, sd, 1e-5)), form=FORM, target="error", noise="sd", draws=40)
        for sd in (1e-5, 1.0)
    )
    assert known.parameters["h"].value == pytest.approx(TRUE["h"], rel=1e-2)
    assert abs(plain.parameters["h"].value - TRUE["h"]) > 3 * abs(known.parameters["h"].value - TRUE["h"])


def test_the_noise_of_an_accuracy_is_binomial_and_seeds_and_rounding():
    # 0.16 to 0.18 points at 80 to 85 % of 50,000 images
    assert 100 * accuracy_noise(0.80, 50_000, seed_points=0) == pytest.approx(0.179, abs=1e-3)
    assert 100 * accuracy_noise(0.85, 50_000, seed_points=0) == pytest.approx(0.160, abs=1e-3)
    assert 100 * accuracy_noise(1.0, 50_000, seed_points=0, rounded_points=0.1) == pytest.approx(0.029, abs=1e-3)
    assert 100 * accuracy_noise(np.array([0.8]), 50_000, seed_points=0.2)[0] == pytest.approx(0.268, abs=1e-3)
    with pytest.raises(UserError, match="divide percentages by 100"):
        accuracy_noise(80.0, 50_000)
    with pytest.raises(UserError, match="number of evaluated images"):
        accuracy_noise(0.8, 0)


def test_the_search_reaches_what_a_dense_grid_of_starts_finds(fit):
    from patchscale.laws.descent import descend

    problem = fit.problem
    low, high = problem.bounds
    axes = np.meshgrid(*(np.linspace(a, b, 6) for a, b in zip(low, high, strict=True)), indexing="ij")
    dense = descend(problem, np.stack([axis.ravel() for axis in axes], axis=1)).at.objective.min()
    assert fit.objective <= dense * (1 + 1e-8)
    assert fit.starts_agreeing > 0.5


def test_a_joint_fit_says_what_it_is_in_words_and_in_json(fit):
    text = str(fit)
    assert "describes the error of 48 runs to" in text
    assert "95% bootstrap intervals" in text
    values = json.loads(json.dumps(fit.to_dict(), default=float))
    assert values["interval_method"] == "bootstrap"
    assert {one["column"] for one in values["holdouts"]} >= {"patch_size", "params_backbone"}
    assert list(fit.points().columns) == ["patch_size", "img_size", "params_backbone", "measured", "fitted", "residual"]
    assert "bootstrap, 400 draws (seed 0), 12 clusters: model x img_size, which share " in fit.conventions["intervals"]


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda t: t[t["img_size"] == 64 * 16 / t["patch_size"]], {}, "needs at least|vary together"),
        (lambda t: t.assign(patch_size=t["img_size"] // 16), {}, "vary together, so there are 256 tokens in every row"),
        (
            lambda t: t.assign(params_backbone=1e9 / t["patch_size"]),
            {},
            "params_backbone vary together .*cannot be told",
        ),
        (lambda t: t[t["model"] == "base"], {}, "1 distinct params_backbone .*add 2 or more values of params_backbone"),
        (lambda t: t[t["img_size"] == 64], {"form": "relative-patch"}, "1 distinct img_size .*additive:patch_size"),
        (lambda t: t[(t["img_size"] == 64) | (t["patch_size"] == 16)], {"form": "relative-patch"}, "at img_size 128"),
        (lambda t: t.assign(recipe=np.where(t["patch_size"] > 4, "a", "b")), {}, r"groups=\['recipe'\]"),
        (lambda t: t, {"form": "tokens"}, "img_size varies .*select one image size"),
        (
            lambda t: t.query("patch_size > 2").iloc[::3].head(6),
            {"form": "additive"},
            "needs at least|rows cannot settle",
        ),
        (lambda t: t, {"groups": "model"}, "give a list of columns"),
        (lambda t: t, {"groups": ["famly"]}, "no column 'famly'"),
        (lambda t: t, {"residuals": "abs"}, "use log or relative"),
        (lambda t: t, {"huber": -1.0}, "huber=-1.0 is not positive"),
        (lambda t: t, {"draws": 3}, "draws=3 are too few"),
        (lambda t: t, {"draws": 38}, "draws=38 are too few for 95 % intervals; give 39 or more"),
        (lambda t: t, {"draws": 198, "level": 0.99}, "draws=198 are too few for 99 % intervals; give 199 or more"),
        (
            lambda t: pd.concat([t] * 14, ignore_index=True),
            {"draws": 100_000},
            "more than 50,000,000 numbers of noise",
        ),
        (lambda t: t, {"form": "additive:patchsize"}, "no law has an axis 'patchsize'; did you mean 'patch_size'"),
        (lambda t: t, {"form": "relative-patch:c=0"}, "no option 'c=0'; options: h=0, C=0"),
    ],
)
def test_what_the_data_cannot_support_is_refused_by_name(change, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        fit_law(change(sweep()), **({"form": FORM, "target": "error", "draws": 40} | arguments))
    assert "\n" not in str(caught.value)


def encoders(visual_tokens) -> pd.DataFrame:
    """Runs of vision-language models; `visual_tokens(encoder_tokens, share)` is what the language model gets."""
    rows = [
        {"llm_params": N, "img_size": r, "patch_size": 14, "visual_tokens": visual_tokens((r / 14) ** 2, share)}
        for N, r, share in product((5e8, 2e9, 7e9), (224, 336, 448, 672), (1, 4, 16))
    ]
    table = pd.DataFrame(rows)
    N, V, ratio = table["llm_params"], table["visual_tokens"], table["patch_size"] / table["img_size"]
    return table.assign(metric=1 - (0.1 + 10 * N**-0.2 * V**-0.1 + 2 * ratio**1.1))


def test_the_encoder_term_needs_tokens_that_do_not_follow_from_the_image():
    fit = fit_law(encoders(lambda tokens, share: tokens / share), form="vlm:encoder", target="error", draws=40)
    assert fit.parameters["a"].value == pytest.approx(1.1, rel=1e-3)
    assert fit.parameters["C"].value == pytest.approx(2.0, rel=1e-3)
    following = encoders(lambda tokens, share: tokens)
    with pytest.raises(UserError, match="visual_tokens and img_size vary together"):
        fit_law(following, form="vlm:encoder", target="error", draws=40)
    # with several patch sizes no pair of axes shows it, but all of them together do
    crossed = following.assign(patch_size=[14, 28, 7] * 12)
    crossed["visual_tokens"] = (crossed["img_size"] / crossed["patch_size"]) ** 2
    with pytest.raises(UserError, match=r"follows from .* cannot be told apart"):
        fit_law(crossed, form="vlm:encoder", target="error", draws=40)
    few = encoders(lambda tokens, share: tokens / share).query("img_size < 400")
    with pytest.raises(UserError, match=r"2 distinct patch_size / img_size; .*run more image sizes, or use form 'vlm'"):
        fit_law(few, form="vlm:encoder", target="error", draws=40)
    with pytest.raises(UserError, match="vlm has no option 'encodr'; the only one is vlm:encoder"):
        fit_law(few, form="vlm:encodr", target="error", draws=40)


def test_an_unknown_group_or_factor_value_is_not_predicted():
    table = sweep().assign(family=lambda t: np.where(t["patch_size"] + t["img_size"] > 134, "x", "y"))
    point = table.head(1)
    grouped = fit_law(table, form=FORM, target="error", groups=["family"], draws=40)
    with pytest.raises(UserError, match="group 'z' was not fitted"):
        grouped.predict(point.assign(family="z"))
    with pytest.raises(UserError, match="no column 'family', which tells the groups apart"):
        grouped.predict(point.drop(columns="family"))
    factored = fit_law(table, form=FORM, target="error", factors=["family"], draws=40)
    with pytest.raises(UserError, match="family 'z' was not fitted"):
        factored.predict(point.assign(family="z"))
    # without the column a factor is at its baseline
    baseline = factored.predict(point.drop(columns="family"))["predicted"].iloc[0]
    assert baseline == factored.predict(point.assign(family="x"))["predicted"].iloc[0]


@pytest.mark.parametrize("kind", ["joint", "groups and factors", "logit", "curve"])
def test_values_are_the_predictions_without_intervals(kind):
    table = sweep().assign(family=lambda t: np.where(t["patch_size"] + t["img_size"] > 134, "x", "y"))
    table["recipe"] = np.where(table["model"] == "tiny", "long", "short")
    options = {
        "joint": {"form": FORM, "target": "error", "draws": 40},
        "groups and factors": {
            "form": FORM, "target": "error", "groups": ["family"], "factors": ["recipe"], "draws": 40
        },
        "logit": {"form": FORM, "target": "logit-error", "draws": 40, "allow_mixed": True},
        "curve": {"form": "patch", "target": "error"},
    }[kind]  # fmt: skip
    rows = table.query("model == 'base' and img_size == 128") if kind == "curve" else table
    fit = fit_law(rows, **{"allow_mixed": True} | options)
    points = table.iloc[::-1]
    assert fit.values(points).tolist() == fit.predict(points)["predicted"].tolist()
    with pytest.raises(UserError, match="patch_size"):
        fit.values(points.assign(patch_size=-1))


def test_a_group_is_extrapolated_outside_of_what_was_measured_of_it():
    """Group y has one model, one image size and fewer patch sizes; what x has does not count for it."""
    both = pd.concat(
        [
            sweep().assign(family="x"),
            sweep(rng=1).query("model == 'base' and img_size == 128 and patch_size >= 4").assign(family="y"),
        ]
    )
    fit = fit_law(both, form=FORM, target="error", groups=["family"], draws=40)
    points = pd.DataFrame(
        [
            {"family": "x", "params_backbone": 5e6, "img_size": 64, "patch_size": 2},
            {"family": "y", "params_backbone": 5e6, "img_size": 64, "patch_size": 2},
            {"family": "y", "params_backbone": 86e6, "img_size": 128, "patch_size": 8},
            {"family": "y", "params_backbone": 304e6, "img_size": 128, "patch_size": 16},
        ]
    )
    told = fit.predict(points)
    assert [set(names.split(",")) for names in told["outside"]] == [
        {""}, {"params_backbone", "img_size", "patch_size"}, {""}, {"params_backbone"}
    ]  # fmt: skip
    assert told["extrapolated"].tolist() == [False, True, False, True]
