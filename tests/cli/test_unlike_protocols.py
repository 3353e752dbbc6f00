"""Runs that would be one curve but for their protocol: real runs, refused and taken by `fit` and `report`."""

import pickle
import shutil
from pathlib import Path

import pandas as pd
import pytest
from tests.data.conftest import write_pairs

import patchscale as ps
from patchscale.config import build_config
from patchscale.laws.protocols import UnlikeProtocols
from patchscale.reports.curves import collect_curves
from patchscale.runs.record import RunDirectory
from patchscale.training.loop import run_training

SIZES = (8, 4, 2, 1)
FIT, REPORT = ["fit", "runs"], ["report", "runs"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of a segmentation on pictures with label maps: crops at four patch sizes, whole pictures at two of them."""
    place = tmp_path_factory.mktemp("unlike")
    for part, count in (("train", 6), ("test", 2)):
        write_pairs(place / "pictures", part, count)
    for mode, sizes in (("crop", SIZES), ("whole", (4, 2))):
        for patch_size in sizes:
            values = {
                "task": "segmentation",
                "model": {"name": "vit_test", "img_size": 16, "patch_size": patch_size},
                "data": {"name": "mask_folder", "root": str(place / "pictures"), "num_classes": 3, "eval_mode": mode},
                "training": {"steps": 1, "batch_size": 2, "num_validations": 1},
                "execution": {"device": "cpu"},
            }
            run_training(RunDirectory.create(place / "runs", "mine", build_config(values)))
    return place / "runs"


@pytest.fixture
def runs(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


CROP = "centre crop of the whole shorter side; linear head, bilinear logits"
WHOLE = "whole picture, squeezed, 16x16 px; original masks; linear head, bilinear logits"


@pytest.mark.parametrize("command", [FIT, REPORT])
def test_unlike_protocols_are_refused_with_what_to_do(call, runs, command):
    code, out, err = call(*command)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert f"differ in eval_protocol ({CROP} in 4 runs, {WHOLE} in 2 runs); keep one with" in err
    assert f"--where 'eval_protocol={CROP}'" in err
    assert "--by +eval_protocol" in err
    assert "--mix-protocols" in err
    assert not (runs / "report.html").exists()


@pytest.mark.parametrize("command", [FIT, REPORT])
def test_where_chooses_one(call, runs, command):
    code, out, err = call(*command, "--where", f"eval_protocol={CROP}")
    assert (code, err) == (0, "")
    assert out


def test_mixed_on_purpose_they_are_marked(call, runs):
    code, out, _ = call(*FIT, "--mix-protocols")
    assert code == 0
    assert f"fail: mixed: rows differ in eval_protocol ({CROP}, {WHOLE})" in out
    code, out, _ = call(*REPORT, "--mix-protocols")
    assert (code, out) == (0, "runs/report.html\n")
    page = (runs / "report.html").read_text(encoding="utf-8")
    assert "Unlike protocols on one curve" in page
    assert f"eval_protocol ({CROP} in 4 runs, {WHOLE} in 2 runs)" in page
    assert "--mix-protocols</" in page


def test_apart_on_purpose_they_are_two_curves(call, runs):
    code, _, err = call(*REPORT, "--by", "+eval_protocol")
    assert code == 0
    assert "not fitted: " in err  # two patch sizes are too few
    page = (runs / "report.html").read_text(encoding="utf-8")
    assert "Unlike protocols on one curve" not in page
    code, out, err = call(*FIT, "--by", "+eval_protocol")
    assert code == 0
    assert CROP in out
    assert WHOLE in err


def curve(**columns):
    sizes = (16, 8, 4, 2, 1)
    table = pd.DataFrame({"patch_size": sizes, "test_loss": [1.31, 1.12, 1.02, 0.96, 0.93]})
    return table.assign(model="m", **columns)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("eval_mode", ["crop"] * 3 + ["slide"] * 2),
        ("flip", [False, False, False, True, True]),
        ("crop_ratio", [0.875, 0.875, 0.875, 1, 1]),
        ("mask_size", [512, 512, 512, 256, 256]),
        ("steps", [100, 100, 100, 200, 200]),
        ("iterations", [100, 100, 100, 200, 200]),
        ("test_images", [8, 8, 8, 16, 16]),
    ],
)
def test_tables_with_such_columns(call, column, values):
    curve(**{column: values}).to_csv("table.csv", index=False)
    for command in ("fit", "report"):
        code, out, err = call(command, "table.csv")
        assert (code, out) == (2, "")
        assert f"differ in {column} ({values[0]} in 3 runs, {values[-1]} in 2 runs)" in err
        assert call(command, "table.csv", "--mix-protocols")[0] == 0


def test_what_follows_from_another_column_is_not_named_again():
    table = curve(steps=[100] * 3 + [200] * 2, epochs=[1.0] * 3 + [2.0] * 2, settings=["a"] * 3 + ["b"] * 2)
    with pytest.raises(UnlikeProtocols, match=r"differ in steps \(100 in 3 runs, 200 in 2 runs\); keep one") as refused:
        ps.fit_law(table)
    assert "epochs" not in str(refused.value)
    with pytest.raises(UnlikeProtocols, match="differ in steps"):
        collect_curves(table)
    assert ps.fit_law(table, mix_protocols=True).check("mixed").state == "fail"


def test_heads_and_recipes_are_curves_of_their_own(call):
    parts = [
        curve(head=head, eval_protocol=f"whole scene; {head} head", settings=head, steps=steps)
        for head, steps in (("linear", 100), ("upernet", 200))
    ]
    pd.concat(parts).to_csv("table.csv", index=False)
    code, out, err = call("fit", "table.csv")
    assert (code, err) == (0, "")
    assert "m, head linear: " in out
    assert "m, head upernet: " in out
    assert call("report", "table.csv")[0] == 0


def test_other_differences_stay_what_they_were():
    with pytest.raises(ps.UserError, match="differ in recipe") as refused:
        ps.fit_law(curve(recipe=list("aaabb"), steps=[100] * 3 + [200] * 2), mix_protocols=True)
    assert not isinstance(refused.value, UnlikeProtocols)


def test_steps_are_no_mistake_where_the_law_has_an_axis_for_them():
    rows = [
        {"patch_size": p, "images_seen": n, "steps": n / 100, "epochs": n / 1e4, "test_loss": 0.5 + 0.02 * p + 90 / n}
        for p in (16, 8, 4, 2)
        for n in (1e3, 1e4, 1e5, 1e6)
    ]
    law = {"form": "additive:patch_size,images_seen", "draws": 50}
    ps.fit_law(pd.DataFrame(rows), **law)
    table = pd.DataFrame(rows).assign(eval_mode=["crop", "slide"] * 8)
    with pytest.raises(UnlikeProtocols, match=r"eval_mode \(crop in 8 runs, slide in 8 runs\).*groups=\['eval_mode'\]"):
        ps.fit_law(table, **law)
    ps.fit_law(table, groups=["eval_mode"], **law)
    assert ps.fit_law(table, mix_protocols=True, **law).check("mixed").state == "fail"


def seen(learning_rates, *, per_length=False):
    """A curve over the images seen, with settings as runs have them: a hash of the learning rate and the length."""
    rows = [
        {"images_seen": n, "steps": n / 100, "test_loss": 0.5 + 900 / n, "settings": f"{rate:g} for {n:g}"}
        for place, n in enumerate((1e3, 1e4, 1e5, 1e6, 1e7))
        for rate in (learning_rates[place % 2 : place % 2 + 1] if per_length else learning_rates)
    ]
    return pd.DataFrame(rows).assign(model="m", patch_size=8)


def test_settings_may_follow_from_an_axis_and_nothing_more():
    law = {"form": "additive:images_seen", "draws": 50}
    assert ps.fit_law(seen([1e-3]), **law).check("mixed").state == "ok"
    assert ps.fit_law(seen([1e-3, 1e-2], per_length=True), **law).check("mixed").state == "ok"
    with pytest.raises(UnlikeProtocols, match=r"unlike settings would be one curve, .* such as the learning rate"):
        ps.fit_law(seen([1e-3, 1e-2]), **law)
    assert ps.fit_law(seen([1e-3, 1e-2]), mix_protocols=True, **law).check("mixed").state == "fail"


def test_settings_may_follow_from_the_compute_where_no_column_says_the_length():
    law = {"form": "additive:flops_train_total", "draws": 50}
    one = seen([1e-3]).rename(columns={"images_seen": "flops_train_total"}).drop(columns="steps")
    assert ps.fit_law(one, **law).check("mixed").state == "ok"
    two = seen([1e-3, 1e-2]).rename(columns={"images_seen": "flops_train_total"}).drop(columns="steps")
    with pytest.raises(UnlikeProtocols, match="unlike settings"):
        ps.fit_law(two, **law)


def test_settings_of_joint_fits_may_follow_from_the_model():
    models = {"small": 1e6, "middle": 1e7, "large": 1e8}
    rows = [
        {"patch_size": p, "params_backbone": n, "model": model, "test_loss": 0.5 + 0.02 * p + 90 / n**0.3}
        for p in (16, 8, 4, 2)
        for model, n in models.items()
    ]
    law = {"form": "additive:patch_size,params_backbone", "draws": 50}
    table = pd.DataFrame(rows)
    ps.fit_law(table.assign(settings=table["model"]), **law)
    by_patch_size = table.assign(settings=["a"] * 6 + ["b"] * 6)
    with pytest.raises(UnlikeProtocols, match="unlike settings"):
        ps.fit_law(by_patch_size, **law)
    assert ps.fit_law(by_patch_size, mix_protocols=True, **law).check("mixed").state == "fail"


def test_settings_are_not_called_a_protocol(call):
    rates = curve(settings=["a1"] * 3 + ["b2"] * 2, path=[f"runs/s/{number}" for number in range(5)])
    rates.to_csv("table.csv", index=False)
    for command in ("fit", "report"):
        code, out, err = call(command, "table.csv")
        assert (code, out) == (2, "")
        assert "unlike settings would be one curve, the runs differ in what the hash `settings` is of, such as" in err
        assert "(a1 in 3 runs, b2 in 2 runs; compare config.yaml of runs/s/0 and runs/s/3)" in err
        assert "keep one with --where settings=a1, tell them apart with --by +settings, or" in err
    assert call("report", "table.csv", "--mix-protocols")[0] == 0
    assert "Unlike settings on one curve" in Path("report-table.html").read_text(encoding="utf-8")


def two_learning_rates(root):
    """A table of runs at five patch sizes, made with two learning rates: configs of their own, and invented losses."""
    table = curve().drop(columns="model")
    runs = []
    for patch_size in table["patch_size"]:
        rate = 0.001 if patch_size > 2 else 0.01
        values = {
            "model": {"name": "vit_nano", "img_size": 32, "patch_size": patch_size},
            "training": {"learning_rate": rate},
            "seed": patch_size,
        }
        runs.append(RunDirectory.create(root, "rates", build_config(values)))
    return table.assign(
        model="vit_nano", path=[str(run.path) for run in runs], settings=[run.config().settings for run in runs]
    )


def test_settings_that_differ_are_named_by_the_configs_of_the_runs(call, tmp_path):
    table = two_learning_rates(tmp_path / "runs")
    table.to_csv("table.csv", index=False)
    slow, fast = table["settings"].iloc[[0, -1]]
    words = f"settings ({slow} in 3 runs, {fast} in 2 runs: training.learning_rate 0.001, 0.01)"
    for command in ("fit", "report"):
        code, _, err = call(command, "table.csv")
        assert code == 2
        assert f"unlike settings would be one curve, the runs differ in {words}; keep one with --where" in err
    assert call("report", "table.csv", "--mix-protocols")[0] == 0
    assert words in Path("report-table.html").read_text(encoding="utf-8")
    assert call("fit", "table.csv", "--where", f"settings={slow}")[0] == 2  # three patch sizes are too few
    changed = RunDirectory(Path(table["path"].iloc[0]))
    changed.config_path.write_text(
        changed.config_path.read_text().replace("learning_rate: 0.001", "learning_rate: 0.5")
    )
    with pytest.raises(UnlikeProtocols, match="what the hash `settings` is of"):
        ps.fit_law(table)


def test_functions_advise_their_own_arguments():
    table = curve(steps=[100] * 3 + [200] * 2)
    with pytest.raises(UnlikeProtocols, match=r"keep one, give each its own floor with groups=\['steps'\], or") as law:
        ps.fit_law(table)
    for function in (ps.fit_curves, collect_curves):
        with pytest.raises(UnlikeProtocols, match=r"keep one, tell them apart with by=\['\+steps'\], or"):
            function(table)
    joint = pd.concat([seen([1e-3])] * 2).assign(eval_mode=["crop"] * 5 + ["slide"] * 5)
    with pytest.raises(UnlikeProtocols, match=r"keep one, tell them apart with by=\['\+eval_mode'\], or"):
        ps.fit_curves(joint, form="additive:images_seen")
    assert str(pickle.loads(pickle.dumps(law.value))) == str(law.value)  # as a pool of processes hands it on


def test_each_caller_is_told_of_what_it_has(call):
    table = curve(steps=[100] * 3 + [200] * 2).assign(img_size=64, params_backbone=1e6, metric=0.5)
    table.to_csv("table.csv", index=False)
    groups, by = "give each its own floor with --groups steps", "tell them apart with --by +steps"
    plan = ["plan", "table.csv", "--target", "loss", "--budget", "train_gpu_hours=9", "--model", "vit_*"]
    for command, words in (
        (plan, groups),
        (["fit", "table.csv", "--compare"], groups),
        (["fit", "table.csv", "--design", "a"], groups),
        (["fit", "table.csv"], by),
        (["fit", "table.csv", "--huber", "0.001"], f"{groups} or {by}"),
        (["report", "table.csv"], by),
    ):
        code, out, err = call(*command)
        assert (code, out) == (2, "")
        assert f"; keep one with --where steps=100, {words}, or take them together with --mix-protocols" in err
    with pytest.raises(
        UnlikeProtocols, match=r"keep one, tell them apart with by=\['\+steps'\], or .* mix_protocols=True"
    ):
        ps.fit_curves(table)


def test_an_early_fit_of_one_curve_does_not_wait_for_another(trained, tmp_path):
    from patchscale.cli.early_fit import early_fit

    shutil.copytree(trained, tmp_path / "runs")
    for run in sorted((tmp_path / "runs" / "mine").iterdir()):
        other = RunDirectory(tmp_path / "runs" / "whole" / f"{run.name}-again")
        shutil.copytree(run, other.path)
        result = other.result()
        if result["eval_protocol"] == WHOLE:
            shutil.rmtree(other.path)
        else:
            other.write_json(
                "result.json",
                result | {"study": "whole", "run_id": other.path.name, "test_loss": 0.9 + 0.01 * result["patch_size"]},
            )
    lines = early_fit(tmp_path / "runs")
    assert len(lines) == 2
    refused, fitted = sorted(lines, key=lambda line: not line.startswith("early fit: not yet"))
    assert "unlike protocols would be one curve" in refused
    assert "--" not in refused, "a sweep has no such options"
    assert refused.endswith(f"; `patchscale fit {tmp_path / 'runs'}` says what can be done")
    assert "patchscale fit" not in fitted
    assert "vit_test, 16 px, whole: " in fitted
