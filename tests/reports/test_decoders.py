"""The decoder's benefit against patch size, from pairs of runs that differ in the head alone."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from patchscale.config import build_config
from patchscale.data.datasets import load_splits
from patchscale.published_tables.tables import published
from patchscale.reports.decoders import benefit_interval, decoder_benefit, decoder_charts
from patchscale.reports.figures import report_charts
from patchscale.reports.html import render_report
from patchscale.tasks import build_task

SIZES = (32, 16, 8, 4)


def study(seeds=(0, 1, 2), models=("vit_nano",), heads=("linear", "upernet_nano")) -> pd.DataFrame:
    """mIoU grows as patches shrink; the decoder adds 0.001 of it for each pixel of the patch."""
    noise = np.random.default_rng(0)
    rows = [
        {
            "run_id": f"{model}-{head}-{size}-{seed}",
            "status": "done",
            "task": "segmentation",
            "dataset": "scenes",
            "metric_name": "mIoU",
            "model": model,
            "head": head,
            "patch_size": size,
            "img_size": 64,
            "seed": seed,
            "metric": 0.4 - 0.004 * size + (head != "linear") * 0.001 * size + noise.normal(0, 0.002),
            "test_loss": 0.3 + 0.01 * size - (head != "linear") * 0.003 * size + noise.normal(0, 0.005),
            "eval_protocol": f"whole scene; {head} head, bilinear logits",
        }
        for model in models
        for head in heads
        for size in SIZES
        for seed in seeds
    ]
    return pd.DataFrame(rows)


def test_differences_are_paired_by_seed():
    table = study()
    benefit = decoder_benefit(table)
    assert len(benefit) == 2 * len(SIZES) * 3
    row = benefit[(benefit["quantity"] == "metric") & (benefit["patch_size"] == 8) & (benefit["seed"] == 1)].iloc[0]
    both = table[(table["patch_size"] == 8) & (table["seed"] == 1)].set_index("head")["metric"]
    assert row["benefit"] == pytest.approx(both["upernet_nano"] - both["linear"])


def test_the_interval_is_that_of_the_paired_t_test():
    table = study().query("patch_size == 16").sort_values("seed")
    linear, decoded = (table[table["head"] == head]["metric"].to_numpy() for head in ("linear", "upernet_nano"))
    mean, low, high = benefit_interval(decoded - linear)
    expected = ttest_rel(decoded, linear).confidence_interval(0.95)
    assert mean == pytest.approx((decoded - linear).mean())
    assert (low, high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert np.isnan(benefit_interval([0.1])[1:]).all()


def test_the_charts_show_the_planted_benefit():
    metric, loss = decoder_charts(study(models=("vit_nano", "adventurer_nano")))
    assert (metric.name, loss.name) == ("metric-decoder-benefit-1", "loss-decoder-benefit-1")
    assert [series.label for series in metric.series] == ["vit_nano", "adventurer_nano"]
    means = metric.curves[metric.curves["series"] == "vit_nano"].set_index("patch_size")
    assert list(means.index) == [32, 16, 8, 4]
    for size in SIZES:
        assert means.loc[size, "metric_benefit"] == pytest.approx(0.001 * size, abs=0.006)
        assert means.loc[size, "low"] < means.loc[size, "metric_benefit"] < means.loc[size, "high"]
    assert (loss.curves.query("patch_size == 32")["loss_benefit"] < -0.05).all()
    assert "upernet_nano minus linear" in metric.y.label
    assert len(metric.points) == 2 * len(SIZES) * 3


def test_only_what_was_measured_alike_is_compared():
    table = study()
    other = table["head"] != "linear"
    table.loc[other, "eval_protocol"] = "sliding window, stride 0.667; upernet_nano head, bilinear logits"
    assert len(decoder_benefit(table)) == 0
    assert decoder_charts(table) == []


def detection_study() -> pd.DataFrame:
    """The same numbers as those of detectors, with protocols as runs record them."""
    protocols = {
        "linear": "whole scene; linear, COCO AP of boxes, at most 100 an image",
        "mask_rcnn_nano": "whole scene; mask_rcnn_nano, COCO AP of boxes and masks, at most 30 an image",
    }
    table = study(heads=tuple(protocols))
    return table.assign(
        task="detection", metric_name="box_ap", eval_protocol=[protocols[head] for head in table["head"]]
    )


def test_detectors_are_compared_by_their_metric_alone():
    """Boxes or boxes and masks, and how many, follow from the head; its loss has terms of its own."""
    table = detection_study()
    benefit = decoder_benefit(table)
    assert set(benefit["quantity"]) == {"metric"}
    assert len(benefit) == len(SIZES) * 3
    (chart,) = decoder_charts(table)
    assert chart.y.label == "Box AP, mask_rcnn_nano minus linear"
    table.loc[table["head"] == "linear", "eval_protocol"] = (
        "other scenes; linear, COCO AP of boxes, at most 100 an image"
    )
    assert len(decoder_benefit(table)) == 0


def test_protocols_are_those_that_tasks_record():
    """Built for real, so that other words there are noticed here."""
    rows = []
    for head in ("linear", "mask_rcnn_nano", "cascade_mask_rcnn_nano"):
        config = build_config(
            {
                "task": "detection",
                "head": head,
                "model": {"name": "vit_test", "patch_size": 8, "img_size": 32},
                "data": {"name": "scenes", "train_images": 1, "val_images": 1, "test_images": 1},
            }
        )
        protocol = build_task(config, load_splits(config)).eval_protocol
        rows.append(detection_study().iloc[0].to_dict() | {"head": head, "eval_protocol": protocol})
    assert sorted(decoder_benefit(pd.DataFrame(rows))["head"]) == ["cascade_mask_rcnn_nano", "mask_rcnn_nano"]


@pytest.mark.parametrize("column", ["seed", "img_size", "dataset"])
def test_runs_that_differ_in_more_than_the_head_are_no_pair(column):
    table = study()
    table.loc[table["head"] != "linear", column] = {"seed": 9, "img_size": 128, "dataset": "ade20k"}[column]
    assert len(decoder_benefit(table)) == 0


def test_unfinished_runs_and_tables_without_heads_have_no_benefit():
    table = study()
    assert len(decoder_benefit(table.drop(columns="head"))) == 0
    table.loc[table["head"] != "linear", "status"] = "failed"
    assert len(decoder_benefit(table)) == 0


def test_the_published_rows_of_the_paper_give_its_two_benefits():
    benefit = decoder_benefit(published("patchification/ade20k"))
    found = {row["model"]: round(row["benefit"], 4) for row in benefit.query("quantity == 'metric'").to_dict("records")}
    assert found == {"Adventurer-Tiny": 0.013, "Adventurer-Base": 0.017}
    metric = decoder_charts(published("patchification/ade20k"))[0]
    assert metric.curves["low"].isna().all()  # one run each: no interval


def test_a_report_draws_it_last_and_only_where_there_is_one(tmp_path):
    names = [chart.name for chart in report_charts(study())]
    assert names[-2:] == ["metric-decoder-benefit-1", "loss-decoder-benefit-1"]
    page = render_report(study(), [], title="heads")
    assert "What a decoder adds, Mean IoU" in page
    assert "What a decoder adds" not in render_report(study(heads=("linear",)), [], title="one head")
    for chart in decoder_charts(study()):
        assert "band-0" in chart.svg()
        chart.save(tmp_path / f"{chart.name}.png")
        assert {"low", "high", f"{chart.name.split('-')[0]}_benefit"} <= set(chart.frame().columns)
