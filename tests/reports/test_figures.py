import numpy as np
import pandas as pd
import pytest

from patchscale.laws.fit import fit_curves
from patchscale.reports.figures import MAX_CURVES, report_charts


def test_a_study_has_loss_metric_and_price(study):
    charts = report_charts(*study)
    assert [chart.title for chart in charts] == [
        "Test loss against patch size",
        "Mean IoU against patch size",
        "What finer patches cost",
    ]
    assert [series.label for series in charts[0].series] == ["vit_nano", "adventurer_nano"]
    kinds = [sorted(set(chart.curves["kind"])) for chart in charts]
    assert kinds == [["law"], ["mean"], ["mean"]]


def test_the_drawn_law_is_the_fits_prediction(study):
    table, fits = study
    chart = report_charts(table, fits)[0]
    law = chart.curves[chart.curves["series"] == "vit_nano"]
    expected = fits[0].predict(law["patch_size"].tolist())
    np.testing.assert_array_equal(law["test_loss"], expected["predicted"])
    np.testing.assert_array_equal(law["low"], expected["low"])
    assert set(table["patch_size"]) <= set(law["patch_size"])
    assert law["patch_size"].between(4, 24).all()


def test_an_error_law_is_drawn_as_the_metric(imagenet):
    table, fits = imagenet
    chart = report_charts(table, fits)[0]
    assert chart.name == "metric-by-patch-size-1"
    law = chart.curves[(chart.curves["series"] == "DeiT-Base, 64 px") & (chart.curves["kind"] == "law")]
    assert (law["low"] <= law["metric"]).all()
    assert (law["metric"] <= law["high"]).all()
    expected = fits[0].predict([16.0])["predicted"].iloc[0]
    assert law[law["patch_size"] == 16]["metric"].iloc[0] == pytest.approx(1 - expected)
    # the curve with two patch sizes has points and a straight line
    assert set(chart.curves[chart.curves["series"] == "DeiT-Base, 224 px"]["kind"]) == {"mean"}


def test_points_are_the_tables_own_numbers(imagenet):
    table, fits = imagenet
    points = report_charts(table, fits)[0].points
    assert sorted(points["metric"]) == sorted(table["metric"])


def test_values_that_cannot_be_compared_do_not_share_axes(founding):
    charts = report_charts(*founding)
    assert [chart.title.rpartition(": ")[2] for chart in charts] == [
        "classification, ImageNet-1k, panel a",
        "classification, ImageNet-1k, panel c",
        "segmentation, ADE20k, panel d",
    ]


def test_patch_sizes_run_from_coarse_to_fine_with_their_tokens(founding):
    chart = report_charts(*founding)[0]
    assert [text for _, text in chart.x.ticks] == ["16", "8", "4", "2", "1"]
    ((heading, cells),) = chart.x.rows
    assert heading == "tokens, 64 px"
    assert [text for _, text in cells] == ["16", "64", "256", "1\u202f024", "4\u202f096"]
    (axes,) = chart.figure().axes
    left, right = axes.get_xlim()
    assert left > right


def test_what_breaks_the_trend_has_a_ring(study):
    chart = report_charts(*study)[0]
    broken = chart.points[chart.points["breaks_trend"]]
    assert set(zip(broken["series"], broken["patch_size"], strict=True)) == {("vit_nano", 6)}
    gids = [artist.get_gid() for artist in chart.figure().findobj() if (artist.get_gid() or "").startswith("ring-")]
    assert len(gids) == len(broken)
    assert "ring" in chart.caption


def test_a_row_the_fit_left_out_is_open():
    table = pd.DataFrame({"patch_size": [16, 8, 4, 2, 1, 1], "test_loss": [1.3, 1.1, 1.0, 0.95, 0.93, 0.94]})
    table["run_id"] = ["a", "b", "c", "d", "e", "e"]
    chart = report_charts(table, fit_curves(table))[0]
    assert list(chart.points["run_id"]) == ["a", "b", "c", "d", "e", "e"]
    table = table.drop(columns="run_id").assign(seed=range(6))
    chart = report_charts(table, fit_curves(table[:5]))[0]
    assert list(chart.points["used"]) == [True] * 5 + [False]
    assert "open marker" in chart.caption


def test_wall_time_is_the_price_without_flops(study):
    table, _ = study
    price = report_charts(table.drop(columns="flops_train_total"))[-1]
    assert price.x.column == "wall_time_s"
    notes = price.points["note"].dropna()
    assert sorted(map(int, set(notes))) == [4, 6, 8, 12, 16, 24]


def test_no_price_without_either(study):
    table, fits = study
    charts = report_charts(table.drop(columns=["flops_train_total", "wall_time_s"]), fits)
    assert [chart.name for chart in charts] == ["loss-by-patch-size-1", "metric-by-patch-size-1"]


def test_many_curves_are_spread_over_figures():
    rows = [
        {"model": f"model {model}", "img_size": size, "patch_size": patch, "test_loss": 1 + 0.01 * model + patch / 20}
        for model in range(9)
        for size in (32, 64)
        for patch in (8, 4, 2, 1)
    ]
    charts = report_charts(pd.DataFrame(rows))
    assert all(len(chart.series) <= MAX_CURVES for chart in charts)
    assert sum(len(chart.series) for chart in charts) == 18
    assert charts[0].title == "Test loss against patch size: 32 px images, 1 of 2"
    colors = {series.label: series.style.color for chart in charts for series in chart.series}
    assert colors["model 0"] == colors["model 6"]
    assert colors["model 0"] != colors["model 1"]


@pytest.mark.parametrize("sizes", [[8], [8, 8]], ids=["one run", "two seeds"])
def test_one_patch_size_is_drawn(sizes):
    table = pd.DataFrame({"model": "vit", "patch_size": sizes, "test_loss": 1.0})
    (chart,) = report_charts(table)
    assert len(chart.points) == len(sizes)
    chart.svg()


def test_nothing_to_draw():
    assert report_charts(pd.DataFrame({"patch_size": [8], "test_loss": [None], "status": ["failed"]})) == []
