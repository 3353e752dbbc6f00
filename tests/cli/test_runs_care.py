"""`patchscale runs --watch`, `--verify`, `--archive` and `--delete-failed`."""

import json

import pytest

from patchscale.config import build_config
from patchscale.runs.record import RunDirectory, append_jsonl


def make(root, patch_size, steps=10):
    values = {
        "model": {"name": "vit_nano", "img_size": 28, "patch_size": patch_size},
        "data": {"name": "scenes", "train_images": 32},
        "training": {"steps": steps, "batch_size": 4},
    }
    return RunDirectory.create(root, "study", build_config(values))


@pytest.fixture
def runs(tmp_path):
    """One of each state; the running one is held while the test lasts."""
    root = tmp_path / "runs"
    done, failed, running, queued = (make(root, size) for size in (14, 7, 4, 28))
    done.write_json("result.json", {"run_id": done.path.name, "wall_time_s": 3600.0, "test_loss": 1.0})
    done.write_status("done")
    failed.write_status("failed", kind="non_finite", message="loss is nan")
    with running.lock():
        running.write_status("running", step=4, steps=10)
        append_jsonl(running.metrics_path, {"kind": "train", "step": 5, "wall_time_s": 1800.0})
        yield {"done": done, "failed": failed, "running": running, "queued": queued}


def test_watch_shows_who_does_what_and_what_it_costs(call, runs, tmp_path):
    from patchscale.sweeps.live import snapshot

    seen = snapshot(tmp_path / "runs")
    assert seen.states == {"done": 1, "failed": 1, "running": 1, "queued": 1}
    assert seen.spent_hours == pytest.approx(1.5)
    assert seen.left_hours > 0.5, "half of the running one, and the queued one"
    (live,) = seen.running
    assert live.share == 0.5
    assert live.owner.endswith(str(runs["running"].owner().pid))
    assert 0 <= live.beat_age_s < 30


def test_watch_ends_with_the_last_run(call, runs):
    for name in ("running", "queued"):
        runs[name].write_json("result.json", {"run_id": runs[name].path.name, "wall_time_s": 60.0})
    code, out, _ = call("runs", "runs", "--watch", "--early-fit", "--json")
    (look,) = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert look["states"] == {"done": 3, "failed": 1}
    assert look["device_hours_left"] == 0
    assert look["early_fit"], "a fit, or why there is none"
    code, out, _ = call("runs", "runs", "--watch")
    assert "4 runs: 3 done, 1 failed" in out
    assert "device hours: 1.03 used, 0 predicted to come" in out


def test_verify_names_what_has_changed(call, runs):
    code, out, err = call("runs", "runs", "--verify")
    assert (code, out) == (0, "")
    assert "1 of 1 finished runs are whole" in err
    path = runs["done"].path / "result.json"
    path.write_text(path.read_text().replace("1.0", "0.5"))
    code, out, err = call("runs", "runs", "--verify")
    assert code == 1
    assert "result.json has changed since the run was done" in out


def test_archive_takes_the_rows_that_were_asked_for(call, runs, tmp_path):
    code, out, _ = call("runs", "runs", "--status", "done", "--archive", "done.tar.gz")
    assert code == 0
    assert "1 run, " in out
    assert (tmp_path / "done.tar.gz").is_file()
    code, _, err = call("runs", "runs", "--archive", "all.tar.gz")
    assert code == 2
    assert "1 runs are under way" in err


def test_failed_runs_are_deleted_when_that_is_meant(call, runs):
    code, out, _ = call("runs", "runs", "--delete-failed")
    assert code == 0
    assert "1 failed run; add --yes to delete" in out
    assert runs["failed"].path.is_dir()
    code, out, _ = call("runs", "runs", "--delete-failed", "--yes")
    assert f"deleted {runs['failed'].path.name}" in out.replace("runs/study/", "")
    assert not runs["failed"].path.exists()
    assert all(runs[name].path.is_dir() for name in ("done", "running", "queued"))


def test_one_thing_at_a_time(call, runs):
    code, _, err = call("runs", "runs", "--verify", "--watch")
    assert code == 2
    assert "give one of --watch, --verify" in err


def test_watch_counts_every_device_of_a_run(call, runs, tmp_path):
    from patchscale.sweeps.live import snapshot

    runs["running"].write_json("environment.json", {"ranks": [{"host": name} for name in "ab"]})
    result = runs["done"].result()
    runs["done"].write_json("result.json", result | {"world_size": 16})
    assert snapshot(tmp_path / "runs").spent_hours == pytest.approx(16 * 1.0 + 2 * 0.5)


def test_watch_ends_with_a_stage_that_waits_for_a_failed_one_and_names_damaged_runs(call, tmp_path):
    first = make(tmp_path / "runs", 14)
    later = build_config(
        {
            "model": {"name": "vit_nano", "img_size": 28, "patch_size": 7},
            "data": {"name": "scenes", "train_images": 32},
            "training": {"steps": 10, "batch_size": 4, "init_run": first.config().identity, "init_settings": "x"},
        }
    )
    RunDirectory.create(tmp_path / "runs", "study", later)
    first.write_status("failed", kind="crash", message="it crashed")
    damaged = make(tmp_path / "runs", 4)
    (damaged.path / "status.json").write_text("{")
    code, out, _ = call("runs", "runs", "--watch", "--json")
    (look,) = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert look["states"] == {"failed": 1, "blocked": 1, "unreadable": 1}
    assert look["device_hours_left"] == 0
    assert str(damaged.path / "status.json").endswith(look["unreadable"][0].partition(":")[0])
    code, out, _ = call("runs", "runs", "--watch")
    assert "unreadable: " in out
    assert "status.json: cannot be read" in out


def test_a_fit_that_fails_is_a_line_and_the_next_comes_a_minute_later(tmp_path, monkeypatch):
    from patchscale.cli.early_fit import EVERY_S, EarlyFit

    (tmp_path / "runs").write_text("no folder")
    fit = EarlyFit(tmp_path / "runs")
    (line,) = fit.again()
    assert line.startswith("early fit: ")
    assert "no such folder" in line
    assert fit.again() is None
    assert fit.again(last=True) == [line]
    fit.ended_at -= EVERY_S
    assert fit.again() == [line]


def test_no_error_of_a_fit_ends_a_study(tmp_path):
    from patchscale.cli.early_fit import early_fit

    run = make(tmp_path / "runs", 14)
    run.write_json("result.json", {"model": "vit_nano", "tokens": [1], "test_loss": {}, "patch_size": "x"})
    run.write_status("done")
    assert all(line.startswith("early fit: ") for line in early_fit(tmp_path / "runs"))


def test_a_state_that_there_is_not(call, runs):
    code, out, err = call("runs", "runs", "--status", "finished")
    assert (code, out) == (2, "")
    states = "queued, running, done, failed, interrupted, blocked, unreadable"
    assert err == f"error: --status finished: no such state; choose from {states}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--status", "failed", "--yes", "--every", "3"], "on the table; leave out --every and --yes"),
        (["--early-fit"], "on the table; leave out --early-fit"),
        (["--watch", "--status", "failed", "--sort", "nope"], "with --watch; leave out --sort and --status"),
        (["--watch", "--csv"], "with --watch; leave out --csv"),
        (["--show", "p14", "--where", "seed=0"], "with --show; leave out --where"),
        (["--verify", "--columns", "seed", "--device", "h100"], "with --verify; leave out --columns and --device"),
        (["--archive", "a.tar", "--json"], "with --archive; leave out --json"),
        (["--delete-failed", "--json"], "with --delete-failed; leave out --json"),
    ],
)
def test_options_without_effect_are_refused(call, runs, arguments, words):
    code, out, err = call("runs", "runs", *arguments)
    assert (code, out) == (2, "")
    assert err == f"error: of no effect {words}\n"
    assert runs["failed"].path.is_dir()
