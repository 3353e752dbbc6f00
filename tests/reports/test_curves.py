import pandas as pd

from patchscale.laws.fit import fit_law
from patchscale.reports.curves import collect_curves, why_not_fitted


def table(**columns):
    rows = [
        {"model": model, "img_size": img_size, "patch_size": patch_size, "test_loss": 1 + 0.02 * patch_size}
        for model in ("one", "two")
        for img_size in (32, 64)
        for patch_size in (8, 4, 2, 1)
    ]
    return pd.DataFrame(rows).assign(**columns)


def test_curves_differ_in_patch_size_and_seed_alone():
    curves = collect_curves(table(status="done"))
    assert [curve.label for curve in curves] == ["one, 32 px", "one, 64 px", "two, 32 px", "two, 64 px"]
    assert all(list(curve.runs["patch_size"]) == [8, 4, 2, 1] for curve in curves)


def test_a_fit_claims_its_rows():
    runs = table()
    mine = runs[(runs["model"] == "two") & (runs["img_size"] == 64)]
    curves = collect_curves(runs, [fit_law(mine)])
    assert [curve.label for curve in curves if "loss" in curve.fits] == ["two, 64 px"]
    assert sorted(index for curve in curves for index in curve.runs.index) == list(runs.index)


def test_two_laws_of_one_curve():
    runs = table(metric=lambda rows: 1 - rows["test_loss"] / 4)[:4]
    (curve,) = collect_curves(runs, [fit_law(runs), fit_law(runs, target="error")])
    assert set(curve.fits) == {"loss", "error"}


def test_unfinished_runs_make_no_curve_of_their_own():
    runs = table(status="done", eval_protocol="whole")[:4]
    runs.loc[2, ["status", "eval_protocol", "test_loss"]] = ["failed", None, None]
    (curve,) = collect_curves(runs)
    assert list(curve.runs["patch_size"]) == [8, 4, 1]


def test_no_finished_run_no_curve():
    assert collect_curves(table(status="failed")) == []
    assert collect_curves(pd.DataFrame()) == []


def test_rises_are_judged_by_means_over_seeds():
    runs = pd.DataFrame(
        {
            "patch_size": [8, 8, 4, 4, 2, 2],
            "seed": [0, 1] * 3,
            "test_loss": [1.0, 1.2, 0.9, 1.4, 0.8, 0.9],
        }
    )
    (curve,) = collect_curves(runs)
    assert curve.rises("loss") == [(8, 4)]
    assert list(curve.means("loss").index) == [8, 4, 2]


def test_rectangles_and_squares_in_one_table():
    runs = table(img_size=lambda rows: rows["img_size"].map({32: 32, 64: "32x64"}))
    assert [curve.label for curve in collect_curves(runs)][:2] == ["one, 32 px", "one, 32x64 px"]


def test_why_not_fitted_is_the_fitters_reason():
    (curve,) = collect_curves(table()[:3])
    assert why_not_fitted(curve, "loss").startswith("3 distinct patch_size (8, 4, 2)")


def test_an_index_that_repeats_is_no_obstacle():
    runs = pd.concat([table()[:4], table()[8:12]])
    runs.index = [0] * len(runs)
    assert [len(curve.runs) for curve in collect_curves(runs)] == [4, 4]
