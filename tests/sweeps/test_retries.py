"""What becomes of a run after each kind of failure, and that the study stops where all its runs would fail."""

import os
import signal
import subprocess
from contextlib import suppress

import pytest
from PIL import Image

from patchscale.errors import UserError
from patchscale.files import write_json
from patchscale.runs.record import RunDirectory
from patchscale.sweeps.executors.base import Ending
from patchscale.sweeps.resources import resources_of
from patchscale.sweeps.retries import FRUITLESS, FRUITLESS_KILLS, decide, forget, reconsider, with_retries
from patchscale.sweeps.runner import run_study
from patchscale.sweeps.states import Verdict, judge, write_down

KILLED = Ending(exit_code=-signal.SIGKILL)


@pytest.fixture
def run(tiny, tmp_path):
    (config,) = tiny("training.batch_size=8").configs
    return RunDirectory.create(tmp_path, "tiny", config)


def verdict(kind, *, written=True):
    return Verdict(state="failed", kind=kind, message="", written=written)


def after(run, given, ending=KILLED, processes=1, any_trained=False):
    return decide(run, given, ending, processes=processes, any_trained=any_trained)


def test_a_preempted_run_is_tried_again_as_long_as_it_gets_on(run):
    lost = Verdict(state="interrupted", kind="preempted")
    for step in range(3 * FRUITLESS):
        run.write_status("interrupted", step=step + 1, steps=100)
        assert after(run, lost, Ending(lost="node")).again
    tries = [after(run, lost, Ending(lost="node")).again for _ in range(FRUITLESS + 1)]
    assert tries == [True] * (FRUITLESS - 1) + [False] * 2


def test_a_cancelled_job_is_not_submitted_again(run):
    ending = Ending(cancelled="its job was cancelled")
    given = judge(run, ending, before=0)
    assert given.state == "interrupted"
    assert not after(run, given, ending).again


def test_out_of_memory_halves_the_micro_batch_of_the_same_batch_until_nothing_is_left(run):
    seen = []
    while after(run, verdict("out_of_memory"), Ending(exit_code=1)).again:
        execution = run.config().execution
        seen.append((execution.activation_checkpointing, execution.micro_batch_size))
    assert seen == [("on", 8), ("on", 4), ("on", 2), ("on", 1)]
    assert run.config().training.batch_size == 8
    assert run.path.name == run.config().run_id, "it is the same run"


def test_what_was_learned_about_memory_outlives_the_next_sweep(run, tiny):
    after(run, verdict("out_of_memory"), Ending(exit_code=1))
    after(run, verdict("out_of_memory"), Ending(exit_code=1))
    (config,) = tiny("training.batch_size=8").configs
    assert with_retries(run, config).execution.micro_batch_size == 4
    forget(run)
    assert with_retries(run, config).execution.micro_batch_size == 4


def test_memory_goes_on_from_what_training_had_chosen(run):
    write_json(run.path / "environment.json", {"memory": {"splittable": True, "micro_batch_size": 2}})
    after(run, verdict("out_of_memory"), Ending(exit_code=1))
    assert run.config().execution.micro_batch_size == 2
    after(run, verdict("out_of_memory"), Ending(exit_code=1))
    assert run.config().execution.micro_batch_size == 1


def test_a_run_that_ran_out_of_memory_while_no_sweep_looked_is_tried_again(run):
    short = Verdict(state="failed", kind="out_of_memory", message="no memory")
    for _ in range(4):
        run.write_status("failed", kind="out_of_memory", message="no memory")
        assert reconsider(run, short, processes=1)
        assert run.status()["state"] == "interrupted"
    run.write_status("failed", kind="out_of_memory", message="no memory")
    assert not reconsider(run, short, processes=1), "nothing is left to try"
    assert run.status()["state"] == "failed"
    forget(run)
    assert not reconsider(run, Verdict(state="failed", kind="non_finite"), processes=1)


def test_a_model_that_needs_its_whole_batch_is_not_split(run):
    write_json(run.path / "environment.json", {"memory": {"splittable": False, "micro_batch_size": 8}})
    assert not after(run, verdict("out_of_memory"), Ending(exit_code=1)).again


def test_a_kill_that_nobody_explains_is_taken_for_memory_only_when_it_comes_again_and_again(run):
    for _ in range(FRUITLESS_KILLS):
        assert after(run, verdict("out_of_memory", written=False)).again
        assert run.config().execution.micro_batch_size == "auto", "the same, bit for bit"
    assert after(run, verdict("out_of_memory", written=False)).again
    assert run.config().execution.micro_batch_size == 8
    assert run.config().execution.activation_checkpointing == "on"


def test_a_kill_for_want_of_memory_is_taken_for_one_at_once(run):
    ending = Ending(exit_code=-signal.SIGKILL, out_of_memory=True)
    assert after(run, judge(run, ending, before=0), ending).again
    assert run.config().execution.activation_checkpointing == "on"


@pytest.mark.parametrize(
    ("kind", "written", "processes", "again"),
    [
        ("non_finite", True, 1, False),
        ("data", True, 1, False),
        ("crash", True, 1, False),
        ("crash", True, 2, True),
        ("crash", False, 1, True),
        ("hung_rank", True, 2, True),
    ],
)
def test_other_kinds(run, kind, written, processes, again):
    assert after(run, verdict(kind, written=written), Ending(exit_code=1), processes).again is again


def test_a_mistake_in_the_configuration_stops_the_study_unless_a_run_has_trained(run):
    assert after(run, verdict("config")).stops_study
    assert not after(run, verdict("config"), any_trained=True).stops_study
    assert after(run, verdict("storage"), any_trained=True).stops_study


def test_what_a_process_said_counts_by_its_attempt(run):
    """The exit code of torchrun tells nothing."""
    before = run.attempt()
    with run.lock():
        run.write_status("failed", kind="non_finite", message="loss is nan")
    assert judge(run, Ending(), before=before).kind == "non_finite"
    silent = judge(run, Ending(), before=run.attempt())
    assert (silent.state, silent.kind, silent.written) == ("failed", "crash", False)
    write_down(run, silent)
    assert run.status()["kind"] == "crash"


def test_a_study_of_which_every_run_would_fail_is_stopped_at_once(tiny, recorder, tmp_path):
    for name in ("cat", "dog"):
        for number in range(10):
            path = tmp_path / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (20 * number, 0, 0)).save(path)
    where = (
        f"data.root={tmp_path / 'photos'}",
        "data.name=image_folder",
        "data.val_images=null",
        "data.test_images=null",
    )
    watcher = recorder()
    study = tiny(*where, "data.train_images=100000", seed=[0, 1, 2, 3])
    table = run_study(study, tmp_path, workers=1, progress=watcher)
    assert len(watcher.started_runs) == 1
    assert sorted(table["status"]) == ["failed", "queued", "queued", "queued"]
    assert set(table["failure_kind"].dropna()) == {"config"}
    assert any("no further run is started" in text and "--keep-going" in text for text in watcher.messages)
    everything = recorder()
    table = run_study(study, tmp_path, workers=1, keep_going=True, progress=everything)
    assert len(everything.started_runs) == 3
    assert table["status"].tolist() == ["failed"] * 4


def test_an_attempt_that_cannot_be_counted_stops_the_study(tiny, tmp_path):
    (config,) = tiny("training.batch_size=8").configs
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        run = RunDirectory.create(tmp_path, "tiny", config)
        with suppress(OSError), (tmp_path / "fill").open("wb", buffering=0) as fill:
            while fill.write(b"0" * 4096):
                pass
        for given in (Verdict(state="interrupted", kind="preempted"), verdict("out_of_memory")):
            retry = after(run, given)
            assert (retry.again, retry.stops_study) == (False, True)
            assert retry.reason.endswith("retries.json: No space left on device, no run can be saved")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("size", ["60k", "300k"])
def test_a_full_disk_stops_the_study_and_not_the_sweep(tiny, recorder, tmp_path, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    watcher = recorder()
    try:
        table = run_study(tiny(seed=[0, 1, 2, 3]), disk, workers=1, progress=watcher)
    finally:
        subprocess.run(["umount", disk], check=True)
    assert len(watcher.started_runs) == 1
    assert table["status"].isin(["failed", "interrupted", "queued"]).all()
    assert any("no further run is started: " in text and "no run can be saved" in text for text in watcher.messages)


def test_a_killed_run_goes_on_by_itself_and_ends_the_same(tiny, recorder, tmp_path):
    study = tiny(patch_size=[8], steps=60)
    killed = []

    def kill_once(job):
        if not killed:
            killed.append(job)
            os.kill(job.run.read_json("status.json")["pid"], signal.SIGKILL)

    table = run_study(study, tmp_path, workers=1, progress=recorder(kill_once, at_step=20))
    assert killed
    assert table["status"].tolist() == ["done"]
    whole = run_study(study, tmp_path / "undisturbed", workers=1)
    assert table["test_loss"].tolist() == whole["test_loss"].tolist()


def test_a_study_stops_before_its_budget_is_exceeded(tiny, recorder, tmp_path):
    watcher = recorder()
    study = tiny(patch_size=[16, 8], seed=[0, 1, 2])
    first = run_study(tiny(patch_size=[16], seed=[0]), tmp_path, workers=1)
    hours = first["wall_time_s"].iloc[0] / 3600
    table = run_study(study, tmp_path, workers=1, budget_hours=1.5 * hours, progress=watcher)
    assert watcher.started_runs == []
    assert table["status"].value_counts().to_dict() == {"queued": 5, "done": 1}
    assert any("5 runs are left" in text for text in watcher.messages)


def test_a_curve_of_two_versions_of_the_code_is_refused_unless_asked_for(tiny, tmp_path):
    run_study(tiny(patch_size=[16]), tmp_path)
    (run,) = [RunDirectory(path.parent) for path in tmp_path.rglob("result.json")]
    environment = run.read_json("environment.json")
    assert environment["code"] == environment["attempts"][0]["code"]
    run.write_json("environment.json", environment | {"code": "0123456789"})
    with pytest.raises(UserError, match=r"1 of 2 runs were made by other code \(.*: 0123456789, here: .*--mix-code"):
        run_study(tiny(patch_size=[16, 8]), tmp_path)
    other_curve = tiny("training.learning_rate=0.01", patch_size=[8])
    assert run_study(other_curve, tmp_path)["status"].tolist() == ["done"]
    assert set(run_study(tiny(patch_size=[16, 8]), tmp_path, mix_code=True)["status"]) == {"done"}


def test_resources_are_those_of_the_last_rule_that_holds(tiny):
    study = tiny("resources.time_h=3", patch_size=[16, 8])
    assert [resources_of(config, study.resources).time_h for config in study.configs] == [3, 3]
