import json
import os
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest

from patchscale.config import build_config
from patchscale.errors import UserError
from patchscale.files import write_json
from patchscale.runs import record
from patchscale.runs.record import RunDirectory, append_jsonl
from patchscale.runs.store import RUN_COLUMNS, find_runs, last_metrics, load_runs


def make_run(root, study="study", **model):
    config = build_config({"model": {"name": "vit_test", "img_size": 32, **model}})
    return RunDirectory.create(root, study, config)


def finish(run, **values):
    config = run.config()
    run.write_status("running", step=10, steps=10)
    result = {"run_id": config.run_id, "status": "done", "model": config.model.name, "metric": 0.5, **values}
    run.write_json("result.json", result)
    run.write_status("done")


def test_an_empty_folder_gives_an_empty_table_with_all_columns(tmp_path):
    table = load_runs(tmp_path)
    assert len(table) == 0
    assert list(table.columns) == [*RUN_COLUMNS, "path"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="absent: no such folder"):
        load_runs(tmp_path / "absent")


def test_runs_are_found_at_any_depth_and_from_the_run_itself(tmp_path):
    run = make_run(tmp_path / "deep" / "er", patch_size=8)
    make_run(tmp_path, study="other", patch_size=4)
    assert len(load_runs(tmp_path)) == 2
    assert load_runs(run.path)["study"].tolist() == ["study"]
    assert load_runs(str(tmp_path / "deep"))["patch_size"].tolist() == [8]


def test_a_queued_run_shows_what_its_config_knows(tmp_path):
    make_run(tmp_path, patch_size=8, img_size=[32, 48])
    row = load_runs(tmp_path).iloc[0]
    assert (row["status"], row["study"], row["architecture"]) == ("queued", "study", "vit")
    assert (row["img_size"], row["patch_size"], row["tokens"], row["progress"]) == ("32x48", 8, 24, 0.0)
    assert pd.isna(row["metric"])
    assert pd.isna(row["test_loss"])


def test_a_finished_run_shows_its_result_and_its_extras(tmp_path):
    finish(make_run(tmp_path, patch_size=8), test_loss=1.25, versions={"torch": "2"}, precision="fp32")
    table = load_runs(tmp_path)
    row = table.iloc[0]
    assert (row["status"], row["test_loss"], row["precision"], row["progress"]) == ("done", 1.25, "fp32", 1.0)
    assert row["versions"] == {"torch": "2"}
    assert table.columns[-1] == "path"


def test_states_are_those_of_the_directory(tmp_path):
    failed = make_run(tmp_path, patch_size=8)
    failed.write_status("failed", kind="non_finite", message="loss is nan")
    stale = make_run(tmp_path, patch_size=16)
    stale.write_status("running", step=5, steps=20)  # written by a process that holds no lock
    append_jsonl(stale.metrics_path, {"kind": "train", "step": 10})
    held = make_run(tmp_path, patch_size=32)
    held.write_status("running")
    with held.lock():
        table = load_runs(tmp_path).set_index("patch_size")
    assert table["status"].to_dict() == {8: "failed", 16: "interrupted", 32: "running"}
    assert table.loc[8, "failure_kind"] == "non_finite"
    assert table.loc[8, "message"] == "loss is nan"
    assert table.loc[16, "progress"] == 0.5


def test_a_run_killed_between_result_and_status_is_done(tmp_path):
    run = make_run(tmp_path, patch_size=8)
    finish(run)
    run.write_status("running", step=10, steps=10)
    assert load_runs(tmp_path)["status"].tolist() == ["done"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"state": "resting"}', "\x00"])
@pytest.mark.parametrize("name", ["status.json", "result.json"])
def test_a_damaged_file_is_named_in_its_row_and_spares_the_others(tmp_path, name, content):
    finish(make_run(tmp_path, patch_size=8))
    broken = make_run(tmp_path, patch_size=4)
    (broken.path / name).write_text(content)
    table = load_runs(tmp_path)
    row = table[table["path"] == str(broken.path)].iloc[0]
    if name == "result.json" and "resting" in content:
        assert row["status"] == "done"  # an object is a result, whatever it has
    else:
        assert row["status"] == "unreadable"
        assert str(broken.path / name) in row["message"]
    assert (table["status"] == "done").sum() >= 1


def test_foreign_and_half_made_folders(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "config.yaml").write_text("not: ours")  # another program's: passed over
    (tmp_path / "half").mkdir()
    write_json(tmp_path / "half" / "status.json", {"state": "queued"})  # killed before its config was written
    (tmp_path / "alien").mkdir()
    (tmp_path / "alien" / "config.yaml").write_text("batch: 3")
    write_json(tmp_path / "alien" / "status.json", {"state": "done"})
    (tmp_path / ".hidden").mkdir()
    write_json(tmp_path / ".hidden" / "status.json", {"state": "queued"})
    table = load_runs(tmp_path).set_index("run_id")
    assert set(table.index) == {"half", "alien"}
    assert (table["status"] == "unreadable").all()
    assert "no config.yaml" in table.loc["half", "message"]
    assert "batch: no such field" in table.loc["alien", "message"]


def test_folders_inside_a_run_are_not_searched(tmp_path):
    run = make_run(tmp_path, patch_size=8)
    inner = run.path / "checkpoint"
    inner.mkdir()
    write_json(inner / "status.json", {"state": "queued"})
    assert find_runs(tmp_path) == [run.path]


def test_the_last_row_is_found_in_a_long_file_with_a_torn_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_metrics(path) == {}
    for step in range(2000):
        append_jsonl(path, {"kind": "train", "step": step})
    with path.open("a") as file:
        file.write('{"kind": "train", "st')
    assert last_metrics(path)["step"] == 1999
    path.write_text("12\n")
    assert last_metrics(path) == {}


def test_a_table_of_many_runs_is_quick(tmp_path):
    for seed in range(100):
        config = build_config({"model": {"name": "vit_test", "img_size": 32}, "seed": seed})
        finish(RunDirectory.create(tmp_path, "many", config))
    started = time.process_time()
    assert len(load_runs(tmp_path)) == 100
    assert time.process_time() - started < 2


def test_stopping_keeps_how_far_a_run_came(tmp_path):
    run = make_run(tmp_path)
    run.write_status("running", step=3, steps=12)
    run.write_status("interrupted", message="stopped")
    status = json.loads((run.path / "status.json").read_text())
    assert (status["state"], status["step"], status["steps"]) == ("interrupted", 3, 12)


def test_asking_whether_a_run_is_locked_never_turns_its_owner_away(tmp_path):
    run = make_run(tmp_path)
    with run.lock():
        pass
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            run.is_locked()

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        for _ in range(50):
            with run.lock():
                pass
    finally:
        stop.set()
        for asker in askers:
            asker.join()


def test_the_lock_of_another_process_holds_until_that_process_is_killed(tmp_path):
    run = make_run(tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from patchscale.runs.record import RunDirectory\n"
        "run = RunDirectory(Path(sys.argv[1]))\n"
        "with run.lock(): run.write_status('running'); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, run.path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert run.status()["state"] == "running"
        with pytest.raises(UserError, match="another process is running this run"), run.lock():
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        assert run.status()["state"] == "interrupted"
        with run.lock():
            pass


def test_a_run_that_is_being_made_is_never_seen_in_halves(tmp_path, monkeypatch):
    seen = []

    def look(path, text, create=record.create_text):
        create(path, text)
        seen.append(load_runs(tmp_path)["status"].tolist())

    monkeypatch.setattr(record, "create_text", look)
    make_run(tmp_path)
    assert seen == [[], ["queued"]]


@pytest.mark.parametrize("name", ["config.yaml", "status.json"])
def test_a_run_whose_making_was_cut_short_is_made_whole(tmp_path, name):
    run = make_run(tmp_path)
    (run.path / name).unlink()
    make_run(tmp_path)
    assert load_runs(tmp_path)["status"].tolist() == ["queued"]
