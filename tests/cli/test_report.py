"""`patchscale report`, from the command line to the file."""

import json

import pandas as pd
import pytest

from patchscale.config import build_config
from patchscale.runs.record import RunDirectory

SIZES = (16, 8, 4, 2, 1)


@pytest.fixture
def runs(tmp_path):
    """A folder with one curve, of which the coarsest patch failed."""
    for patch_size in SIZES:
        config = build_config({"model": {"name": "vit_test", "img_size": 16, "patch_size": patch_size}})
        run = RunDirectory.create(tmp_path / "runs", "mine", config)
        if patch_size == 16:
            run.write_status("failed", kind="non_finite", message="loss is nan at step 3")
            continue
        row = {"model": "vit_test", "architecture": "vit", "patch_size": patch_size, "img_size": 16, "seed": 0}
        row |= {"task": "classification", "dataset": "scenes", "tokens": (16 // patch_size) ** 2, "metric_name": "top1"}
        row |= {"test_loss": 0.3 + 0.05 * patch_size**0.9, "metric": 0.9 - 0.02 * patch_size, "wall_time_s": 12.0}
        run.write_json("result.json", row)
        run.write_status("done")
    return tmp_path / "runs"


@pytest.fixture
def curve(tmp_path):
    table = pd.DataFrame({"patch_size": SIZES, "test_loss": [1.31, 1.12, 1.02, 0.96, 0.93]})
    table.to_csv(tmp_path / "curve.csv", index=False)


def test_a_folder_of_runs(call, runs):
    code, out, err = call("report", "runs")
    assert (code, err) == (0, "")
    assert out == "runs/report.html\n"
    text = (runs / "report.html").read_text(encoding="utf-8")
    assert "Patch size and quality in mine" in text
    assert "patchscale report runs" in text
    assert "failed (non_finite): loss is nan at step 3" in text
    assert "1 of 5 runs without a result" in text


def test_the_report_in_a_folder_is_no_run(call, runs):
    call("report", "runs")
    code, out, _ = call("report", "runs")
    assert (code, out) == (0, "runs/report.html\n")


def test_a_published_table(call, tmp_path):
    code, out, _ = call("report", "published:patchification/ade20k")
    assert code == 0
    assert out == "report-patchification-ade20k.html\n"
    text = (tmp_path / out.strip()).read_text(encoding="utf-8")
    assert "ADE20k mIoU by model" in text
    assert "arXiv 2502.03738v2" in text
    assert "Known limits of this table" in text


def test_curves_without_a_law_are_told(call):
    code, out, err = call("report", "published:patchification/ade20k", "--target", "error", "--output", "page.html")
    assert (code, out) == (0, "page.html\n")
    assert err.count("not fitted: ") == 2
    assert "needs at least 4" in err


def test_export_and_json(call, curve, tmp_path):
    code, out, err = call("report", "curve.csv", "--export", "figures", "--title", "Mine & yours", "--json")
    said = json.loads(out)
    assert code == 0
    assert said["report"] == "report-curve.html"
    assert said["laws"] == 1
    assert [tmp_path / name for name in said["figures"]] == [
        tmp_path / "figures" / f"loss-by-patch-size-1{suffix}" for suffix in (".png", ".svg", ".csv")
    ]
    assert all((tmp_path / name).stat().st_size > 300 for name in said["figures"])
    assert "3 files of figures in figures" in err
    text = (tmp_path / "report-curve.html").read_text(encoding="utf-8")
    assert "<title>Mine &amp; yours</title>" in text
    assert "patchscale report curve.csv --title &#39;Mine &amp; yours&#39; --export figures" in text


def test_nothing_to_fit_is_still_a_report(call, tmp_path):
    pd.DataFrame({"patch_size": [8, 4], "test_loss": [1.0, 0.9]}).to_csv(tmp_path / "two.csv", index=False)
    code, out, err = call("report", "two.csv")
    assert (code, out) == (0, "report-two.html\n")
    assert "not fitted: " in err
    assert "2 distinct patch_size (8, 4)" in (tmp_path / "report-two.html").read_text(encoding="utf-8")


MISTAKES = {
    "no such folder": (["absent"], "absent"),
    "no runs": (["."], "no runs"),
    "unknown table": (["published:patchification/imagnet"], "patchification/imagenet"),
    "a table without curves": (["published:patchification/recipes"], "patch_size"),
    "unknown target": (["curve.csv", "--target", "speed"], "loss, error"),
    "a target that is not there": (["curve.csv", "--target", "error"], "use --target loss"),
    "a folder as output": (["curve.csv", "--output", "."], "give the name of a file"),
    "a file as folder": (["curve.csv", "--export", "curve.csv"], "cannot be used as a folder"),
    "an output below a file": (["curve.csv", "--output", "curve.csv/page.html"], "cannot be used as a folder"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(call, curve, tmp_path, name):
    arguments, words = MISTAKES[name]
    code, out, err = call("report", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert [path.name for path in tmp_path.iterdir()] == ["curve.csv"]
