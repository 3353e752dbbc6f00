"""Sweeps for real: processes, kills, locks. One fork server serves all tests of this file."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tests.pausing import go_on, pause, wait_until_paused

from patchscale.config import build_config
from patchscale.errors import UserError
from patchscale.runs.record import RunDirectory
from patchscale.sweeps.executors.base import Ending
from patchscale.sweeps.executors.local import visible_gpus
from patchscale.sweeps.runner import run_study
from patchscale.sweeps.states import judge, write_down
from patchscale.sweeps.stop import SweepInterrupted

from .conftest import wait_until, whole_rows


def state_of(run):
    return json.loads((run.path / "status.json").read_text())


def train_steps(run):
    return [row["step"] for row in whole_rows(run) if row["kind"] == "train"]


def runs_of(study, root):
    return [RunDirectory(root / study.name / config.run_id) for config in study.configs]


def test_a_study_runs_once_and_is_skipped_the_second_time(tiny, recorder, tmp_path):
    study = tiny(model=["vit_test", "adventurer_test"], patch_size=[16, 8])
    first = recorder()
    table = run_study(study, tmp_path, workers=2, progress=first)
    assert table["status"].tolist() == ["done"] * 4
    assert set(table["run_id"]) == {config.run_id for config in study.configs}
    assert len(first.started_runs) == 4
    assert table["flops_train_total"].is_monotonic_increasing
    assert {state for state, _ in first.ended_runs.values()} == {"done"}

    second = recorder()
    again = run_study(study, tmp_path, progress=second)
    assert second.started_runs == []
    assert again.equals(table)

    wider = recorder()
    table = run_study(tiny(model=["vit_test", "adventurer_test"], patch_size=[16, 8, 4]), tmp_path, progress=wider)
    assert len(wider.started_runs) == 2
    assert len(table) == 6
    for path in table["path"]:
        assert "starting at step 0 of 8" in (RunDirectory(tmp_path / path).log_path).read_text()


def test_one_failing_run_does_not_stop_the_others(tiny, recorder, tmp_path):
    study = tiny("training.clip_grad_norm=null", **{"training.learning_rate": [1e30, 1e-3]}, patch_size=[16, 8])
    table = run_study(study, tmp_path, workers=1).set_index("path")
    assert sorted(table["status"]) == ["done", "done", "failed", "failed"]
    failed = table[table["status"] == "failed"]
    assert set(failed["failure_kind"]) == {"non_finite"}
    assert failed["message"].str.contains("learning rate").all()

    again = recorder()
    table = run_study(study, tmp_path, retry_failed=True, progress=again)
    assert again.started_runs == [], "a non-finite run would become non-finite again"
    assert sorted(table["status"]) == ["done", "done", "failed", "failed"]


def test_a_mistake_that_only_the_run_can_find_is_its_failure_alone(tiny, tmp_path):
    for name in ("cat", "dog"):
        for number in range(10):
            path = tmp_path / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((16, 16, 3), 20 * number, np.uint8)).save(path)
    root = str(tmp_path / "photos")
    study = tiny(f"data.root={root}", "data.name=image_folder", "data.val_images=null", "data.test_images=null")
    study = replace(
        study,
        configs=tuple(
            build_config(study.configs[0].to_dict(), [f"data.train_images={count}"]) for count in (12, 100_000)
        ),
    )
    table = run_study(study, tmp_path / "runs", workers=2).set_index("run_id")
    good, bad = (config.run_id for config in study.configs)
    assert table["status"].to_dict() == {good: "done", bad: "failed"}
    assert table.loc[bad, "failure_kind"] == "config"
    assert "data.train_images=100000" in table.loc[bad, "message"]


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [(signal.SIGKILL, "out_of_memory", "want of memory"), (signal.SIGSEGV, "crash", "died of SIGSEGV")],
)
def test_a_killed_run_is_marked_and_the_others_go_on(tiny, recorder, tmp_path, number, kind, words):
    study = tiny(patch_size=[8, 16], steps=20)
    victim = study.configs[0].run_id

    def kill(job):
        status = state_of(job.run)
        if job.config.run_id == victim and status["state"] == "running":  # else the sweep wrote it, between two tries
            with suppress(ProcessLookupError):
                os.kill(status["pid"], number)
        return job.config.run_id == victim  # the next attempt waits as well

    killing = recorder(kill, at_step=2)
    table = run_study(study, tmp_path, workers=2, progress=killing).set_index("run_id")
    assert table["status"].to_dict() == {victim: "failed", study.configs[1].run_id: "done"}
    assert table.loc[victim, "failure_kind"] == kind
    assert words in table.loc[victim, "message"]
    assert "log.txt" in table.loc[victim, "message"]

    left = recorder()
    run_study(study, tmp_path, progress=left)
    assert left.started_runs == [], "failed runs are left unless asked for"
    killing.let_go()
    table = run_study(study, tmp_path, retry_failed=True, progress=left)
    assert left.started_runs == [victim]
    assert table["status"].tolist() == ["done", "done"]


def test_ctrl_c_saves_the_runs_and_the_same_study_goes_on(tiny, recorder, tmp_path):
    study = tiny(patch_size=[8, 16], seed=[0, 1], steps=60)
    asked = []

    def press_ctrl_c(job):
        if not asked:
            asked.append(job)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    stopped = recorder(press_ctrl_c, at_step=3)
    with pytest.raises(SweepInterrupted) as caught:
        run_study(study, tmp_path, workers=2, progress=stopped)
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert len(stopped.started_runs) == 2
    assert any("stopping" in text for text in stopped.messages)
    states = Counter(RunDirectory(run.path).status()["state"] for run in runs_of(study, tmp_path))
    assert states["queued"] == 2
    assert states["interrupted"] + states["done"] == 2
    assert states["running"] == 0
    interrupted = RunDirectory(tmp_path / "tiny" / asked[0].config.run_id)

    stopped.let_go()
    table = run_study(study, tmp_path, workers=2)
    assert table["status"].tolist() == ["done"] * 4
    assert "resumed at step" in interrupted.log_path.read_text()
    for run in runs_of(study, tmp_path):
        assert train_steps(run) == list(range(1, 61)), "no step is lost or logged twice"

    whole = run_study(study, tmp_path / "undisturbed", workers=2)
    assert table["test_loss"].tolist() == whole["test_loss"].tolist(), "an interruption changes nothing, bit for bit"


def test_a_second_ctrl_c_kills_and_loses_no_more_than_the_last_checkpoint(tiny, recorder, tmp_path):
    study = tiny("execution.checkpoint_every_s=0", steps=100_000)
    pressed = []

    def press_twice(job):
        if not pressed:
            pressed.append(job)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    stopped = recorder(press_twice, at_step=5)
    with pytest.raises(SweepInterrupted):
        run_study(study, tmp_path, progress=stopped)
    (run,) = runs_of(study, tmp_path)
    assert stopped.ended_runs[run.path.name][0] == "interrupted"
    assert state_of(run)["state"] == "running", "it had no time to say a word"
    assert run.status()["state"] == "interrupted"
    assert run.status()["step"] >= 4
    assert not run.is_locked()


def test_two_sweeps_of_one_study_share_its_runs(tiny, recorder, tmp_path):
    study = tiny(patch_size=[16, 8], seed=[0, 1, 2], steps=8)
    watchers = [recorder(), recorder()]
    threads = [
        threading.Thread(target=run_study, args=(study, tmp_path), kwargs={"workers": 1, "progress": watcher})
        for watcher in watchers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for run in runs_of(study, tmp_path):
        assert run.status()["state"] == "done"
        assert len(run.read_json("environment.json")["attempts"]) == 1, "carried out twice"
        assert train_steps(run) == list(range(1, 9))
    assert all(watcher.ended_runs for watcher in watchers)


def test_a_run_held_by_another_process_is_left_alone(tiny, recorder, tmp_path):
    study = tiny(patch_size=[16, 8])
    held = RunDirectory.create(tmp_path, study.name, study.configs[0])
    watcher = recorder()
    with held.lock():
        held.write_status("running", step=1, steps=8)
        table = run_study(study, tmp_path, workers=2, progress=watcher).set_index("run_id")
    assert watcher.left == [study.configs[0].run_id]
    assert table["status"].to_dict() == {study.configs[0].run_id: "running", study.configs[1].run_id: "done"}


def test_a_damaged_run_is_reported_and_spares_the_others(tiny, recorder, tmp_path):
    study = tiny(patch_size=[16, 8])
    damaged = RunDirectory.create(tmp_path, study.name, study.configs[0])
    (damaged.path / "status.json").write_text("{")
    table = run_study(study, tmp_path).set_index("run_id")
    assert table["status"].to_dict() == {study.configs[0].run_id: "unreadable", study.configs[1].run_id: "done"}
    assert "status.json" in table.loc[study.configs[0].run_id, "message"]


def test_what_a_run_prints_goes_to_its_log_and_settings_of_execution_are_taken_over(tiny, tmp_path, capfd):
    study = tiny(patch_size=[16])
    RunDirectory.create(tmp_path, study.name, study.configs[0])
    run_study(tiny("execution.num_threads=2", patch_size=[16]), tmp_path)
    (run,) = runs_of(study, tmp_path)
    assert run.config().execution.num_threads == 2
    assert run.read_json("environment.json")["num_threads"] == 2
    assert "done: test top1" in run.log_path.read_text()
    assert capfd.readouterr() == ("", "")


def test_runs_see_the_environment_of_their_sweep(tiny, tmp_path, monkeypatch):
    """Not that of the first sweep of the process, which started the server."""
    monkeypatch.setenv("PATCHSCALE_DATA", str(tmp_path / "kept here"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    study = tiny("data.name=mnist", "data.train_images=32")
    table = run_study(study, tmp_path)
    assert table["failure_kind"].tolist() == ["config"]
    assert str(tmp_path / "kept here") in table["message"].iloc[0]


@pytest.mark.parametrize(
    ("before", "exit_code", "state", "kind"),
    [
        ("running", -signal.SIGSEGV, "failed", "crash"),
        ("running", -signal.SIGKILL, "failed", "out_of_memory"),
        ("interrupted", -signal.SIGSEGV, "failed", "crash"),
        ("queued", 1, "failed", "crash"),
        ("interrupted", 143, "interrupted", None),
        ("running", -signal.SIGTERM, "interrupted", None),
        ("done", -signal.SIGSEGV, "done", None),
    ],
)
def test_how_a_run_ended_is_told_from_its_last_word_and_exit_code(tiny, tmp_path, before, exit_code, state, kind):
    run = RunDirectory.create(tmp_path, "tiny", tiny().configs[0])
    run.write_status(before)
    verdict = judge(run, Ending(exit_code=exit_code), stopping=False)
    write_down(run, verdict)
    assert verdict.state == state
    assert run.status().get("kind") == kind
    assert judge(run, Ending(exit_code=exit_code), stopping=True).state in (state, "interrupted")


def test_workers_share_the_cores(tiny, tmp_path):
    study = tiny(seed=[0, 1])
    table = run_study(study, tmp_path, workers=2)
    allowed = int(os.environ["OMP_NUM_THREADS"])  # the tests' own setting, which a sweep does not exceed
    for path in table["path"]:
        environment = RunDirectory(tmp_path / path).read_json("environment.json")
        assert environment["num_threads"] == min(allowed, max(1, len(os.sched_getaffinity(0)) // 2))


def test_wrong_arguments_are_refused_before_anything_starts(tiny, tmp_path):
    with pytest.raises(UserError, match="executor 'slrum': no such executor; choose one of local, slurm, ray"):
        run_study(tiny(), tmp_path, executor="slrum")
    with pytest.raises(UserError, match="workers=0"):
        run_study(tiny(), tmp_path, workers=0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tiny, tmp_path):
    (tmp_path / "tiny").write_text("a file")
    with pytest.raises(UserError, match=r"tiny: is a file, not a folder of runs"):
        run_study(tiny(), tmp_path)
    with pytest.raises(UserError, match=r"/proc/tiny/vit_test-.* cannot be written"):
        run_study(tiny(), "/proc")


def test_gpus_are_found_without_torch(monkeypatch, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: a)'\necho '  MIG 1g'\necho 'GPU 1: NVIDIA H100'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b,")
    assert visible_gpus() == ["GPU-a", "GPU-b"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert visible_gpus() == []


UNGUARDED_SCRIPT = """
import sys
from pathlib import Path
from patchscale.sweeps.runner import run_study
from patchscale.sweeps.states import judge, write_down
from patchscale.sweeps.stop import SweepInterrupted
from patchscale.sweeps.study import load_study
print("top level", flush=True)
run_study(load_study(Path(sys.argv[1])), sys.argv[2], workers=2)
"""


def test_when_the_sweep_is_killed_its_runs_save_and_stop(tiny, tmp_path):
    """The sweep is a script without a `__main__` guard, which must not be run again in every child."""
    import yaml

    study = tiny(patch_size=[8], seed=[0, 1], steps=100_000)
    base = {"base": study.configs[0].to_dict(), "study": "tiny", "grid": {"seed": [0, 1]}}
    del base["base"]["training"]["epochs"], base["base"]["recipe"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(base))
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED_SCRIPT)
    command = [sys.executable, script, tmp_path / "study.yaml", tmp_path / "runs"]
    runs = runs_of(study, tmp_path / "runs")
    for run in runs:
        pause(run.path, after_step=2)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sweep:
        wait_until_paused(*(run.path for run in runs))
        os.kill(sweep.pid, signal.SIGKILL)
        for run in runs:
            go_on(run.path)
        assert sweep.communicate()[0] == "top level\n"
    wait_until(lambda: not any(run.is_locked() for run in runs))
    for run in runs:
        assert run.status()["state"] == "interrupted"
        assert state_of(run)["state"] == "interrupted", "it had the time to save"
        assert run.status()["step"] >= 2
