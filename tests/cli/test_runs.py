import csv
import io
import json

import pytest

from patchscale.config import build_config
from patchscale.runs.record import RunDirectory


@pytest.fixture
def some_runs(tmp_path):
    """Two finished runs, one failed, one queued."""
    made = []
    for patch_size, metric in ((16, 0.25), (8, 0.5), (4, None), (2, None)):
        config = build_config({"model": {"name": "vit_test", "img_size": 16, "patch_size": patch_size}})
        run = RunDirectory.create(tmp_path / "runs", "study", config)
        if metric is not None:
            model = {"model": "vit_test", "architecture": "vit", "patch_size": patch_size, "img_size": 16, "seed": 0}
            values = {"metric": metric, "metric_name": "top1", "test_loss": 1 - metric, "wall_time_s": 75.0}
            run.write_json("result.json", {**model, **values, "versions": {"torch": "2"}, "params_total": 12345})
            run.write_status("done")
        made.append(run)
    made[2].write_status("failed", kind="out_of_memory", message="out of memory; lower it")
    return made


def test_the_table_has_readable_units(call, some_runs):
    code, out, _ = call("runs")
    assert code == 0
    rows = [dict(zip(out.splitlines()[0].split("\t"), line.split("\t"), strict=True)) for line in out.splitlines()[1:]]
    by_patch = {row["patch_size"]: row for row in rows}
    assert by_patch["8"]["metric"] == "50.0 % top1"
    assert by_patch["8"]["wall_time_s"] == "1 min 15 s"
    assert by_patch["4"]["status"] == "failed (out_of_memory)"
    assert by_patch["2"]["status"] == "queued"
    assert by_patch["2"]["metric"] == ""


def test_csv_is_complete_and_plain(call, some_runs):
    code, out, _ = call("runs", "--csv", "--sort", "patch_size")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["patch_size"] for row in rows] == ["2", "4", "8", "16"]
    assert rows[2]["metric"] == "0.5"
    assert rows[2]["params_total"] == "12345"
    assert json.loads(rows[2]["versions"]) == {"torch": "2"}
    assert rows[0]["metric"] == ""
    assert rows[1]["message"] == "out of memory; lower it"
    assert "path" in rows[0]


def test_json_is_complete_and_plain(call, some_runs):
    code, out, _ = call("runs", "runs", "--json", "--sort=-patch_size")
    assert code == 0
    rows = json.loads(out)
    assert [row["patch_size"] for row in rows] == [16, 8, 4, 2]
    assert rows[1]["params_total"] == 12345
    assert rows[3]["metric"] is None
    assert rows[1]["versions"] == {"torch": "2"}


@pytest.mark.parametrize(
    ("arguments", "patches"),
    [
        (["--status", "done"], {16, 8}),
        (["--where", "patch_size=8"], {8}),
        (["--where", "metric=0.50"], {8}),
        (["--where", "status!=done"], {4, 2}),
        (["--where", "model=vit_test", "--where", "failure_kind=out_of_memory"], {4}),
        (["--where", "patch_size=3"], set()),
    ],
)
def test_rows_are_chosen(call, some_runs, arguments, patches):
    code, out, _ = call("runs", "--json", *arguments)
    assert code == 0
    assert {row["patch_size"] for row in json.loads(out)} == patches


def test_columns_are_chosen_in_the_order_asked_for(call, some_runs):
    _, out, _ = call("runs", "--csv", "--columns", "seed,patch_size", "--status", "failed")
    assert out == "seed,patch_size\n0,4\n"
    _, out, _ = call("runs", "--json", "--columns", "patch_size", "--status", "failed")
    assert json.loads(out) == [{"patch_size": 4}]


def test_show_tells_everything_about_one_run(call, some_runs):
    run_id = some_runs[1].path.name
    code, out, _ = call("runs", "--show", run_id)
    assert code == 0
    fields = dict(line.split("\t") for line in out.splitlines()[1:])
    assert fields["metric"] == "50.0 % top1"
    assert fields["config.training.learning_rate"] == "0.001"
    code, out, _ = call("runs", "--show", run_id[-6:], "--json")
    assert json.loads(out)["config"]["model"]["patch_size"] == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sort", "patchsize"], "column 'patchsize': no such column; did you mean patch_size"),
        (["--columns", "seed,los"], "column 'los': no such column"),
        (["--where", "modle=vit"], "did you mean model"),
        (["--where", "model"], "not of the form column=value"),
        (["--show", "nothing"], "no such run; runs here: vit_test-p16"),
        (["--show", "vit_test"], "4 runs match"),
        (["--csv", "--json"], "give one of them"),
        (["absent"], "absent: no such folder"),
    ],
)
def test_mistakes_end_in_one_line(call, some_runs, arguments, words):
    code, out, err = call("runs", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_an_empty_folder_is_said_to_be_empty(call, tmp_path):
    (tmp_path / "runs").mkdir()
    code, out, err = call("runs")
    assert code == 0
    assert out.startswith("study\tmodel")
    assert err == "no runs in runs\n"
    assert call("runs", "--json")[1] == "[]\n"
    assert call("runs", "--csv")[1].startswith("run_id,study,status")


def test_a_damaged_run_is_named(call, some_runs):
    (some_runs[0].path / "result.json").write_text("{")
    code, out, err = call("runs")
    assert code == 0
    assert "unreadable" in out
    assert f"{some_runs[0].path.name}/result.json: cannot be read" in err
