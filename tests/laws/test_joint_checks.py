"""Each check of a joint fit meets data that trigger it, and data that do not."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from patchscale import fit_law
from patchscale.laws.joint_checks import JOINT_CHECKS

FORM = "relative-patch:C=0"


def sweep(*, noise=0.005, E=0.08, A=450.0, B=300.0, models=(5e6, 22e6, 86e6, 304e6), sizes=(64, 128, 224)):
    """Runs over patch size, image size and model size on a known law."""
    random = np.random.default_rng(0)
    rows = []
    for N, r, p in product(models, sizes, (16, 8, 4, 2)):
        error = E + A * (p / r) ** 1.6 * N**-0.33 + B * N**-0.5
        error *= np.exp(noise * random.normal())
        model = f"{N / 1e6:g}M"
        rows.append({"model": model, "img_size": r, "patch_size": p, "params_backbone": N, "metric": 1 - error})
    return pd.DataFrame(rows)


def fit(table, form=FORM, **arguments):
    return fit_law(table, form=form, target="error", draws=40, **arguments)


@pytest.fixture(scope="module")
def clean():
    return fit(sweep())


def test_a_clean_design_passes(clean):
    states = {check.code: check.state for check in clean.checks}
    assert list(states) == list(JOINT_CHECKS)
    trusted = set(states) - {"weak-exponent", "conditioning"}
    assert {states[code] for code in trusted} <= {"ok", "n/a"}, clean.checks


def test_an_absent_effect_is_named():
    check = fit(sweep(B=0.0, noise=1e-4, E=0.2)).check("trend")
    assert check.state == "ok" or "B is 0" in check.message
    random = np.random.default_rng(0)
    table = sweep()
    flat = fit(table.assign(metric=0.5 + 0.01 * np.sort(random.normal(size=len(table)))[::-1]), form="product")
    assert flat.check("trend").state in ("warn", "fail", "ok")
    rising = fit(table.assign(metric=table["metric"].to_numpy()[::-1]))
    assert rising.check("trend").state in ("warn", "fail")


def test_allowed_mixtures_are_marked_as_failed():
    table = sweep().assign(recipe=lambda t: np.where(t["patch_size"] > 4, "long", "short"))
    check = fit(table, allow_mixed=True).check("mixed")
    assert check.state == "fail"
    assert "recipe" in check.message


def test_few_levels_are_counted_per_axis():
    check = fit(sweep(models=(5e6, 22e6, 86e6))).check("levels")
    assert check.state == "warn"
    assert "3 values of params_backbone, 4 or more are better" in check.message


def test_models_that_differ_a_little_by_patch_size_are_one_level():
    table = sweep().assign(params_backbone=lambda t: t["params_backbone"] * (1 + 0.001 * t["patch_size"]))
    assert "4 values of params_backbone" in fit(table).check("levels").message


def test_axes_that_vary_together_are_named(clean):
    table = sweep()
    # large models were run at large images only, but for a few runs
    kept = table[
        ((table["params_backbone"] < 3e7) & (table["img_size"] == 64))
        | ((table["params_backbone"] > 3e7) & (table["img_size"] == 224))
        | ((table["img_size"] == 128) & (table["params_backbone"] == 22e6))
    ]
    check = fit(kept).check("collinear")
    assert check.state == "warn"
    assert "img_size and params_backbone (+0." in check.message
    assert clean.check("collinear").state == "ok"


def test_three_image_sizes_cannot_tell_floor_from_resolution(clean):
    check = fit(sweep(), form="relative-patch").check("floor-resolution")
    assert check.state == "warn"
    assert check.message.startswith("E and C trade off: 3 image sizes")
    four = fit(sweep(sizes=(64, 128, 224, 384)), form="relative-patch")
    assert four.check("floor-resolution").state == "ok"
    assert clean.check("floor-resolution").state == "n/a"


def test_a_floor_at_zero_is_at_its_bound(clean):
    # logarithmic in N: no power falls so steadily, so the floor goes to 0 and the exponent to its lower bound
    table = sweep(B=0.0, noise=0.0)
    check = fit(table.assign(metric=lambda t: t["metric"] + 0.015 * np.log(t["params_backbone"] / 3e8))).check(
        "at-bound"
    )
    assert check.state == "warn"
    assert "E is at 0" in check.message
    assert clean.check("at-bound").state == "ok"


def test_what_trades_off_is_named():
    table = sweep(E=0.0, sizes=(64, 128, 224), noise=0.0)
    table["metric"] -= 0.15 * (table["img_size"] / 224) ** -0.16
    check = fit(table, form="relative-patch").check("conditioning")
    assert check.state == "warn"
    assert "E and C" in check.message
    assert "trade off" in check.message


def test_an_exponent_that_nothing_bounds_is_weak():
    check = fit(sweep(B=5.0, noise=0.05)).check("weak-exponent")
    assert check.state == "warn"
    assert " b " in check.message


def test_few_clusters_are_told_of(clean):
    assert clean.check("clusters").state == "ok"
    check = fit(sweep(), cluster_by=["img_size"]).check("clusters")
    assert check.state == "warn"
    assert "fewer than 5 of img_size" in check.message


def test_a_family_off_the_law_is_named(clean):
    table = sweep()
    table["series"] = np.where(np.arange(len(table)) % 4 == 0, "other", "main")
    table.loc[table["series"] == "other", "metric"] -= 0.02
    check = fit(table, cluster_by=["series"]).check("residual-pattern")
    assert check.state == "warn"
    assert "other (above the law)" in check.message
    assert fit(table, groups=["series"]).check("residual-pattern").state == "ok"
    assert clean.check("residual-pattern").state == "ok"


def test_a_position_table_counted_in_the_model_size_is_noticed(clean):
    assert clean.check("position-table").state == "ok"
    tokens = lambda t: (t["img_size"] / t["patch_size"]) ** 2  # noqa: E731
    table = sweep().assign(params_backbone=lambda t: t["params_backbone"] + 768 * tokens(t))
    check = fit(table).check("position-table")
    assert check.state == "warn"
    assert "grows with the tokens, as a position table does" in check.message
    said = fit(sweep().assign(pos_embed_counted=True)).check("position-table")
    assert "column pos_embed_counted says" in said.message
    short = sweep().assign(params_total=lambda t: t["params_backbone"] + 1000, embed_dim=768)
    assert "less than a position table" in fit(short).check("position-table").message


def test_hold_outs_along_every_axis(clean):
    message = clean.check("holdout").message
    assert "patch_size 2 (12 rows)" in message
    assert "params_backbone 3.04e+08 (12 rows)" in message
    assert " points RMS" in message
    table = sweep()
    smallest = table["patch_size"] == 2
    broken = table.assign(metric=np.where(smallest, table["metric"] - 0.2, table["metric"]))
    assert fit(broken).check("holdout").state == "warn"


def test_the_measured_ranges_are_stated(clean):
    assert "patch_size 2 to 16, img_size 64 to 224" in clean.check("extrapolation").message


def test_degrees_of_freedom_are_counted():
    table = sweep(models=(5e6, 22e6, 86e6), sizes=(64, 224)).query("patch_size != 4 or img_size == 64").iloc[::3]
    check = fit(table).check("dof")
    assert check.state == "warn"
    assert "degrees of freedom" in check.message
