import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.pausing import start_in_foreground

from patchscale.runs.record import RunDirectory

STUDY = """
study: tiny
base:
  model: {img_size: 16}
  data: {name: scenes, train_images: 32, val_images: 8, test_images: 8}
  training: {steps: 8, batch_size: 4, num_validations: 1}
  execution: {device: cpu, log_every_steps: 1, checkpoint_every_s: 0.2}
grid:
  model: [vit_test]
  patch_size: [8, 16]
"""


@pytest.fixture(autouse=True)
def _study_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(STUDY)


def test_a_dry_run_prints_the_whole_table_and_writes_nothing(call):
    code, out, err = call("sweep", "study.yaml", "--dry-run", "model=[vit_test,adventurer_test]")
    assert code == 0
    header, *lines = [line.split("\t") for line in out.splitlines()]
    assert header[:5] == ["model", "img_size", "patch_size", "seed", "tokens"]
    assert [(line[0], line[2], line[4], line[-1]) for line in lines] == [
        ("vit_test", "16", "1", "queued"),
        ("vit_test", "8", "4", "queued"),
        ("adventurer_test", "16", "1", "queued"),
        ("adventurer_test", "8", "4", "queued"),
    ]
    assert "2 FLOPs a multiply-add; training: forward and backward x images seen" in err
    assert "4 runs (4 queued)" in err
    assert sorted(path.name for path in Path().iterdir()) == ["study.yaml"]


def test_a_dry_run_as_json_has_plain_numbers(call):
    code, out, _ = call("sweep", "study.yaml", "--dry-run", "--json")
    assert code == 0
    plan = json.loads(out)
    assert plan["study"] == "tiny"
    assert plan["totals"]["runs"] == 2
    assert plan["conventions"]["flops"] == "2 x MACs"
    for row in plan["runs"]:
        assert row["images_seen"] == 32
        patch_embed = 2 * 3 * row["img_size"] ** 2 * 32  # FLOPs of the embedding: its input needs no gradient
        assert row["flops_train_total"] == 32 * (3 * row["flops_forward_per_image"] - patch_embed)
    assert plan["totals"]["flops_train_total"] == sum(row["flops_train_total"] for row in plan["runs"])


def test_a_dry_run_has_memory_and_on_a_device_hours(call):
    overrides = ["training.precision=bf16", "training.batch_size=64", "model=[vit_base]", "model.img_size=224"]
    plain = ["sweep", "study.yaml", "--dry-run", *overrides, "patch_size=[16,4]", "training.steps=1000"]
    _, out, _ = call(*plain, "--json")
    for row in json.loads(out)["runs"]:
        assert row["peak_memory_bytes"] == sum(row["memory_bytes"].values())
        assert (row["activation_checkpointing"], row["device_hours"]) == (False, None)
    _, out, _ = call(*plain, "--device", "rtx3090", "--json")
    plan = json.loads(out)
    # Patch 4 takes 65 GiB unless blocks are computed again; the card has 24.
    assert [row["activation_checkpointing"] for row in plan["runs"]] == [False, True]
    hours = [row["device_hours"] for row in plan["runs"]]
    assert plan["totals"]["device_hours"] == plan["totals"]["device_hours_to_do"] == pytest.approx(sum(hours))
    for row, hour in zip(plan["runs"], hours, strict=True):
        # 32.28 % of 71 TFLOP/s, and blocks computed again are a third more
        expected = row["flops_train_total"] / (0.3228 * 71e12) / 3600
        assert hour == pytest.approx(expected * (1.33 if row["activation_checkpointing"] else 1), rel=0.03)
    code, out, err = call(*plain, "--device", "rtx3090")
    assert code == 0
    assert "hours of one rtx3090" in err
    assert "(checkpointing)" in out
    code, _, err = call("sweep", "study.yaml", "--device", "rtx3090")
    assert code == 2
    assert "give it with --dry-run" in err


def test_a_number_of_images_that_is_unknown_is_said_to_be(call):
    overrides = ["data.name=image_folder", "data.root=photos", "data.train_images=null", "training.epochs=2"]
    code, out, err = call("sweep", "study.yaml", "--dry-run", *overrides)
    assert code == 0
    assert "\t?\t" in out
    assert "the number of training images is unknown here; training.steps or data.train_images fixes it" in err
    assert "train PFLOPs" in out


def test_left_out_combinations_are_told(call):
    code, out, err = call("sweep", "study.yaml", "--dry-run", "patch_size=[8,5,8]", "skip_invalid=true")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert "left out, the patch does not divide the image: patch_size=5 with img_size=16" in err
    assert "1 combinations are the same as others" in err


def test_a_sweep_runs_reports_and_is_skipped_the_second_time(call):
    code, out, err = call("sweep", "study.yaml", "--workers", "2")
    assert code == 0
    assert out.splitlines()[0].startswith("model\timg_size\tpatch_size")
    assert len(out.splitlines()) == 3
    assert re.search(r"\[2/2\] done: vit_test patch \d+ at 16 px, seed 0: top1 .* %", err)
    assert "2 done; in runs/tiny" in err

    code, again, err = call("sweep", "study.yaml")
    assert (code, again) == (0, out)
    assert "0 to do, skipped: 2 done" in err

    code, out, err = call("sweep", "study.yaml", "--dry-run", "patch_size=[8,16,4]")
    assert [line.split("\t")[-1] for line in out.splitlines()[1:]] == ["done", "done", "queued"]
    assert "3 runs (2 done, 1 queued)" in err


def test_a_failed_run_makes_the_exit_code_1_and_is_explained(call):
    code, out, err = call("sweep", "study.yaml", "grid.training.learning_rate=[1e-3,1e30]", "--json")
    assert code == 1
    rows = json.loads(out)
    assert sorted(row["status"] for row in rows) == ["done", "done", "failed", "failed"]
    assert "failed (non_finite): vit_test-p16-" in err
    assert "--retry-failed" not in err, "it would not help"
    assert {row["failure_kind"] for row in rows if row["status"] == "failed"} == {"non_finite"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.yaml"], "absent.yaml: no such file"),
        (["study.yaml", "patch_size=[5]"], "patch_size=5 with img_size=16"),
        (["study.yaml", "patchsize=[8]"], "did you mean patch_size"),
        (["study.yaml", "model=vit_tset", "--dry-run"], "vit_tset"),
    ],
)
def test_mistakes_end_in_one_line(call, arguments, words):
    code, out, err = call("sweep", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1


def test_ctrl_c_says_how_to_go_on_and_exits_with_130():
    command = [sys.executable, "-m", "patchscale", "sweep", "study.yaml", "training.steps=100000", "--workers", "1"]
    with start_in_foreground(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sweep:
        deadline = time.monotonic() + 60
        while not list(Path("runs/tiny").glob("*/metrics.jsonl")):
            assert sweep.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(sweep.pid, signal.SIGINT)
        out, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 130
    assert out == ""
    assert "stopping: running runs finish their step and save" in err
    assert "the others go on with: patchscale sweep study.yaml training.steps=100000 --workers 1" in err
    states = sorted(RunDirectory(path.parent).status()["state"] for path in Path("runs/tiny").glob("*/config.yaml"))
    assert states == ["interrupted", "queued"]


@pytest.mark.parametrize("stopping", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_torch_is_imported_is_no_traceback(stopping):
    """As a terminal or a scheduler sends it: to the sweep and to all that it has started."""
    command = [sys.executable, "-m", "patchscale", "sweep", "study.yaml", "training.steps=100000", "--workers", "1"]
    with start_in_foreground(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as sweep:
        for line in sweep.stderr:
            if line.startswith("starting (torch"):
                break
        time.sleep(0.5)
        os.killpg(sweep.pid, stopping)
        said = sweep.stderr.read()
        assert sweep.wait(60) == 128 + stopping, said
    assert "Traceback" not in said
    assert "the others go on with: patchscale sweep study.yaml" in said
    assert "done" not in {
        RunDirectory(path.parent).status()["state"] for path in Path("runs/tiny").glob("*/config.yaml")
    }


def test_runs_that_differ_in_another_setting_are_told_apart(call):
    Path("study.yaml").write_text(STUDY + "  training.learning_rate: [0.001, 0.002]\n")
    code, out, err = call("sweep", "study.yaml", "patch_size=[8]")
    assert code == 0, err
    for rate in ("0.001", "0.002"):
        assert f"done: vit_test patch 8 at 16 px, seed 0, learning_rate {rate}: " in err
    header, *rows = [line.split("\t") for line in out.splitlines()]
    assert header[0] == "run_id"
    assert len({row[0] for row in rows}) == 2
    _, out, _ = call("runs", "runs")
    header, *again = [line.split("\t") for line in out.splitlines()]
    assert header[0] == "run_id"
    assert {row[0] for row in again} == {row[0] for row in rows}


def test_a_result_that_is_gone_is_no_success(call):
    assert call("sweep", "study.yaml", "patch_size=[8]")[0] == 0
    (result,) = Path("runs/tiny").glob("*/result.json")
    result.unlink()
    code, out, err = call("sweep", "study.yaml", "patch_size=[8]")
    assert code == 1
    assert "1 run: 0 to do, skipped: 1 unreadable" in err
    assert f"{result}: missing though the run is done; restore it, or delete the folder to do the run again" in err
    assert "unreadable" in out
    code, out, err = call("runs", "runs")
    assert (code, "unreadable" in out) == (0, True)
    assert "result.json: missing" in err
    code, out, err = call("runs", "runs", "--verify")
    assert code == 1
    assert "result.json: missing" in out
    assert "0 of 1 finished runs are whole, 1 are not" in err


def test_a_device_that_nobody_knows_is_refused_before_anything_starts(call):
    code, out, err = call("sweep", "study.yaml", "--budget", "1", "--device", "h1000")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "h1000" in err
    assert not Path("runs").exists()
