"""`patchscale fit` and `patchscale published`, through the command's own parser."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from patchscale.cli.fit import fit
from patchscale.cli.published import published
from patchscale.config import build_config
from patchscale.errors import UserError
from patchscale.runs.record import RunDirectory

app = typer.Typer(pretty_exceptions_enable=False)
app.command("fit")(fit)
app.command("published")(published)

FOUNDING = ("published:patchification/imagenet", "--target", "error", "--where", "architecture=adventurer")


def run(*arguments: str):
    """Standard output and error of the command; a `UserError` is raised as it is."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def curve_csv(tmp_path):
    p = np.array([16, 8, 4, 2, 1])
    scatter = 1 + 1e-3 * np.array([1, -1, 0.5, -0.5, 1])
    loss = (0.8 + 0.006 * p**1.4) * scatter
    path = tmp_path / "mine.csv"
    pd.DataFrame({"model": "mine", "patch_size": p, "test_loss": loss}).to_csv(path, index=False)
    return path


def test_a_csv_gives_a_sentence_a_table_and_the_warnings(curve_csv):
    out = run("fit", str(curve_csv), "--predict", "2,1,0.5").stdout
    lines = out.splitlines()
    assert lines[0].startswith("mine: in the fitted law halving the patch from 2 to 1 px (both measured)")
    assert lines[1].split("\t") == ["patch_size", "measured", "predicted", "low", "high", "note"]
    assert [line.split("\t")[0] for line in lines[2:5]] == ["2", "1", "0.5"]
    assert lines[4].endswith("extrapolated")
    assert any(line.startswith("warn: replicates: one run per patch size") for line in lines)


def test_json_is_one_document_without_infinities(curve_csv):
    values = json.loads(run("fit", "published:patchification/test-loss", "--where", "panel=i", "--json").stdout)
    (one,) = values["fits"]
    alpha = one["parameters"]["alpha"]
    assert alpha["high"] is None
    assert alpha["high_open"]
    assert alpha["text"].endswith(">6]")
    assert [row["patch_size"] for row in one["predictions"]] == [16, 8, 4, 2, 1]
    assert values["refused"] == []


def test_curves_that_cannot_be_fitted_are_named_and_the_others_printed():
    result = run("fit", "published:patchification/imagenet", "--target", "error", "--where", "img_size=64")
    assert "DeiT-Base, 64 px: in the fitted law halving" in result.stdout
    assert "not fitted: Adventurer-Tiny, 64 px: 1 distinct patch_size (1)" in result.stderr
    assert "not fitted" not in result.stdout


def test_a_study_folder_uses_finished_runs_and_says_what_it_left_out(tmp_path):
    for patch_size in (16, 8, 4, 2, 1):
        config = build_config({"model": {"name": "vit_test", "patch_size": patch_size, "img_size": 32}})
        record = RunDirectory.create(tmp_path, "study", config)
        if patch_size == 1:
            record.write_status("failed", kind="out_of_memory", message="too large")
            continue
        loss = 0.8 + 0.006 * patch_size**1.4
        row = {"run_id": config.run_id, "status": "done", "model": "vit_test", "img_size": 32, "patch_size": patch_size}
        record.write_json("result.json", {**row, "seed": 0, "test_loss": loss, "task": "classification"})
        record.write_status("done")
    result = run("fit", str(tmp_path))
    assert result.stdout.startswith("vit_test, 32 px: halving the patch from 2 to 1 px")
    assert "1 px, outside the measured range," in result.stdout
    assert "1 of 5 rows are left out: status is failed, not done" in result.stderr


def test_columns_are_chosen_and_rows_selected():
    out = run(
        "fit", "published:patchification/coco", "--target", "error", "--by", "model, metric_name",
        "--where", "model=Adventurer-Tiny", "--where", "metric_name=box AP",
    ).stdout  # fmt: skip
    assert out.count("halving the patch") == 1
    assert "the error (1 - box AP)" in out


def test_the_forms_are_listed():
    assert "y = E + A * p^alpha" in run("fit", "--list-forms").stdout
    assert json.loads(run("fit", "--list-forms", "--json").stdout)[0]["form"] == "patch"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to fit: give a folder of runs, published:NAME, or a CSV file"),
        (["no-such-folder"], "no such folder or file"),
        (["published:nothing"], "no published table 'nothing'"),
        (["published:patchification/imagenet"], "use target 'error'"),
        (
            ["published:patchification/imagenet", "--target", "error", "--where", "img_size=99"],
            "img_size is 64, 128, 224",
        ),
        (["published:patchification/test-loss", "--where", "panel"], "not of the form column=value"),
        (["published:patchification/test-loss", "--where", "pannel=a"], "did you mean 'panel'"),
        (["published:patchification/test-loss", "--predict", "2;1"], "not a list of patch sizes"),
        (["published:patchification/test-loss", "--predict", "0"], "positive"),
        (["published:patchification/test-loss", "--form", "cubic"], "form 'cubic' is not known"),
        (["published:patchification/test-loss", "--level", "95"], "level=95.0 is not between 0 and 1"),
        (["published:patchification/test-loss", "--level", "nan"], "level=nan is not between 0 and 1"),
        ([*FOUNDING, "--form", "additive", "--huber", "nan"], "huber=nan is not positive and finite"),
        ([*FOUNDING, "--form", "additive", "--huber", "inf"], "huber=inf is not positive and finite"),
        ([*FOUNDING, "--form", "additive", "--draws", "-1"], "draws=-1 are too few for an interval"),
        ([*FOUNDING, "--form", "additive", "--draws", "1000000000"], "draws=1000000000 are too many, above 100000"),
        ([*FOUNDING, "--form", "additive", "--seed", "-1"], "seed=-1 is negative"),
        ([*FOUNDING, "--compare", "--seed", "-1"], "seed=-1 is negative"),
        ([*FOUNDING, "--forms", "additive"], "forms are compared with --compare; one is named by --form; leave out"),
        ([*FOUNDING, "--models", "vit_base", "--device", "a100"], "leave out --models and --device"),
        ([*FOUNDING, "--compare", "--predict", "4"], "only a fit predicts; leave out --predict"),
        ([*FOUNDING, "--compare", "--level", "0.9", "--huber", "1e-3"], "least squares, without intervals; leave out"),
        ([*FOUNDING, "--compare", "--form", "patch"], "leave out --form"),
        ([*FOUNDING, "--compare", "--draws", "1000", "--cluster-by", "model"], "leave out --draws and --cluster-by"),
        ([*FOUNDING, "--draws", "40", "--seed", "0"], "of a single curve are profiles, without draws; leave out"),
        ([*FOUNDING, "--cluster-by", "model"], "leave out --cluster-by"),
        ([*FOUNDING, "--runs", "3", "--design-method", "draws"], "leave out --runs and --design-method"),
        (
            [*FOUNDING, "--design", "a", "--candidates", "c.csv", "--models", "vit_base", "--device", "a100"],
            "--candidates brings its own runs and prices; leave out --models and --device",
        ),
        ([*FOUNDING, "--predict", "4,nan"], "patch sizes are positive numbers of pixels"),
        ([*FOUNDING, "--predict", "9" * 400], "patch sizes are positive numbers of pixels"),
        (
            ["published:patchification/imagenet", "--target", "error", "--where", "patch_size=1"],
            "no curve could be fitted",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UserError) as caught:
        run("fit", *arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_draws_without_effect_are_said_to_be(tmp_path):
    rows = [{"patch_size": p, "test_loss": 0.6 + 0.05 * p**0.9} for p in (16, 8, 4, 2, 1)]
    pd.DataFrame(rows).to_csv(tmp_path / "curve.csv", index=False)
    few = ["fit", str(tmp_path / "curve.csv"), "--form", "patch", "--huber", "1e-3"]
    assert "--draws: without effect, the intervals are profiles" in run(*few, "--draws", "40").stderr
    assert run(*few).stderr == ""


def test_folders_without_runs_and_files_that_are_no_tables(tmp_path):
    with pytest.raises(UserError, match="no runs below this folder"):
        run("fit", str(tmp_path))
    broken = tmp_path / "broken.csv"
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a CSV table"):
        run("fit", str(broken))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match="not a CSV table"):
        run("fit", str(tmp_path / "empty.csv"))


def test_published_lists_and_prints():
    assert "patchification/imagenet\t53\t" in run("published").stdout
    result = run("published", "patchification/test-loss")
    assert result.stdout.splitlines()[0].startswith("panel\ttask\tdataset\tmodel")
    assert "note: losses compare within a panel only" in result.stderr
    table = pd.read_csv(io.StringIO(run("published", "patchification/test-loss", "--csv").stdout))
    assert len(table) == 45
    rows = json.loads(run("published", "patchification/test-loss", "--json").stdout)
    assert len(rows) == 45
    assert rows[15]["model"] is None
    assert rows[0]["img_size"] == 64
    with pytest.raises(UserError, match="give one"):
        run("published", "--json", "--csv")


def test_a_joint_law_prints_its_parameters_checks_and_the_points_asked_for(tmp_path):
    points = tmp_path / "points.csv"
    points.write_text("patch_size,img_size,params_backbone\n4,224,97e6\n1,448,97e6\n")
    out = run(
        "fit", "published:patchification/imagenet", "--target", "error", "--where", "architecture=adventurer",
        "--form", "relative-patch", "--draws", "40", "--predict", str(points),
    ).stdout  # fmt: skip
    assert "describes the error of 42 runs" in out
    assert "exponent of the patch size relative to the image" in out
    assert "extrapolated in img_size" in out
    assert "warn: floor-resolution: E and C trade off" in out


def test_a_joint_law_is_fitted_to_each_part():
    result = run(
        "fit", "published:vlm/tokens-llm-size", "--target", "error", "--form", "vlm", "--by", "task", "--draws", "40",
        "--json",
    )  # fmt: skip
    fits = json.loads(result.stdout)["fits"]
    assert [one["label"] for one in fits] == ["visual reasoning", "OCR"]
    assert fits[0]["parameters"]["alpha"]["value"] > fits[0]["parameters"]["beta"]["value"]
    assert fits[1]["parameters"]["alpha"]["value"] < fits[1]["parameters"]["beta"]["value"]


def test_groups_and_factors_on_the_command_line():
    common = ["fit", "published:patchification/imagenet", "--target", "error", "--form", "relative-patch"]
    grouped = run(*common, "--groups", "architecture", "--draws", "40").stdout
    assert "E[adventurer]" in grouped
    factored = run(*common, "--factors", "architecture", "--draws", "40").stdout
    assert "x[architecture=vit]" in factored


def test_laws_are_compared():
    result = run(
        "fit", *FOUNDING, "--compare", "--forms", "relative-patch:h=0; product; tokens; additive:patch_size,tokens"
    )
    lines = result.stdout.splitlines()
    assert lines[0].startswith("2 forms on 42 runs: by AICc relative-patch:h=0 leads, ")
    assert "carrying the last value forward" in lines[0]
    header, first, second, blank, title, axes, *left_out = (line.split("\t") for line in lines[1:10])
    assert header == ["form", "parameters", "AICc", "behind", "RMSE (points)", "inside levels"]
    assert (first[0], second[0]) == ("relative-patch:h=0", "product")
    assert first[3] == "0.0"
    assert float(second[3]) > 10
    assert (blank, "left out and predicted from the rest" in title[0]) == ([""], True)
    sides = ["patch_size inside", "patch_size 1", "img_size inside", "img_size 224"]
    assert axes == ["form", *sides, "params_backbone inside", "params_backbone 3.442e+08"]
    assert [row[0] for row in left_out] == ["relative-patch:h=0", "product", "last value carried forward"]
    assert float(left_out[0][1]) < float(left_out[1][1]) < float(left_out[2][1])
    assert "not compared: tokens: img_size varies" in result.stdout
    assert "not compared: additive:patch_size,tokens: the rows differ in " in result.stdout


def test_a_comparison_as_json():
    values = json.loads(run("fit", *FOUNDING, "--compare", "--forms", "product", "--json").stdout)
    (product, carried) = values["forms"]
    assert product["form"] == "product"
    assert carried["aicc"] is None
    assert {row["side"] for row in values["holdouts"]} == {"start", "inside", "end"}


DESIGN = (
    *FOUNDING, "--form", "relative-patch:C=0", "--draws", "200", "--patch-sizes", "16,8", "--img-sizes", "128,224",
    "--models", "adventurer_tiny,adventurer_base", "--device", "a100", "--runs", "2",
)  # fmt: skip


def test_next_runs_are_proposed_for_a_prediction_with_their_gpu_hours():
    out = run("fit", *DESIGN, "--design", "patch_size=4,img_size=224,model=adventurer_large").stdout
    assert (
        "To settle the prediction at patch_size 4, img_size 224, params_backbone 3.442e+08, run model adventurer_"
        in out
    )
    assert "GPU-hours the 95% interval should narrow from" in out
    assert "Prices: 1,281,167 images seen in training; A100" in out
    lines = out.splitlines()
    start = lines.index("next runs, in order (widths in points):")
    header = lines[start + 1].split("\t")
    assert header[:5] == ["model", "patch_size", "img_size", "params_backbone", "GPU-hours"]
    rows = [dict(zip(header, line.split("\t"), strict=True)) for line in lines[start + 2 : start + 4]]
    assert float(rows[1]["width after"]) < float(rows[0]["width now"])


def test_next_runs_for_a_parameter_or_a_choice_as_json(tmp_path):
    values = json.loads(run("fit", *DESIGN, "--design", "a", "--design-method", "linear", "--json").stdout)["design"]
    assert values["decision"] == "the logarithm of a"
    assert values["method"] == "linear"
    assert len(values["ranking"]) == 8
    gains = [row["narrowing_per_price"] for row in values["ranking"]]
    assert gains == sorted(gains, reverse=True)
    csv = tmp_path / "candidates.csv"
    csv.write_text("patch_size,img_size,params_backbone,price\n16,128,1.1e7,1\n4,224,9.7e7,30\n")
    choice = run(
        "fit", *DESIGN[:9], "--candidates", str(csv), "--json",
        *(x for p in (2, 4, 8) for x in ("--design", f"patch_size={p},img_size=224,params_backbone=1e8")),
    )  # fmt: skip
    found = json.loads(choice.stdout)
    assert found["design"]["decision"].startswith("which of 3 configurations is best")
    assert found["prices"].startswith("as given in ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--design", "z"], "the law has no parameter 'z' (parameters: E, A, B, a, h, b)"),
        (["--design", "a", "--design", "patch_size=4"], "a parameter cannot be compared with a configuration"),
        (["--design", "a", "--compare"], "two questions"),
        (["--compare", "--by", "model"], "--by does not go with"),
        (["--design", "a", "--models", "vit_none"], "vit_none"),
        (["--design", "a", "--patch-sizes", "5"], "patch size 5 divides none"),
        (["--design", "a", "--img-sizes", "nan"], "'nan' is not a positive whole number"),
        (["--design", "a", "--images-seen", "nan"], "images_seen: nan is not a positive number"),
        (["--design", "patch_size=nan,img_size=224,model=vit_base"], "--design patch_size=nan: give a finite number"),
        (["--design", f"patch_size={'9' * 400},img_size=224,model=vit_base"], "give a finite number"),
    ],
)
def test_mistakes_of_comparing_and_designing_are_one_line(arguments, message):
    with pytest.raises(UserError) as caught:
        run("fit", *FOUNDING, "--form", "relative-patch:C=0", "--draws", "40", *arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
