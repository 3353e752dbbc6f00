"""A killed run, resumed, ends with the same metrics and the same weights, bit for bit."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from PIL import Image
from tests.pausing import LAST_FILE_OF_A_CHECKPOINT, go_on, pause, wait_until_paused
from tests.training.conftest import outcome, start, wait_until

from patchscale.errors import UserError
from patchscale.training.loop import run_training

# Everything that draws random numbers or keeps state: drop path, mixing, augmentation, a moving average.
VIT = (
    "model.drop_path_rate=0.3",
    "data.augment=crop",
    "training.steps=40",
    "training.mixup=0.8",
    "training.cutmix=1.0",
    "training.ema_decay=0.9",
    "training.num_validations=3",
    "execution.checkpoint_every_s=0",
    "execution.log_every_steps=3",
)
ADVENTURER = (
    "task=segmentation",
    "model.name=adventurer_test",
    "training.steps=25",
    "execution.checkpoint_every_s=0",
    "execution.log_every_steps=4",
)


def step_of(run):
    return (run.read_json("status.json") or {}).get("step", 0)


def kill(process):
    """SIGKILL; False if the run had ended before."""
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


DETECTION = (
    *("task=detection", "head=mask_rcnn_nano", "model.drop_path_rate=0.3", "data.augment=large_scale_jitter"),
    *("model.img_size=32", "training.steps=20", "execution.checkpoint_every_s=0", "execution.log_every_steps=4"),
)


@pytest.mark.parametrize("settings", [VIT, ADVENTURER, DETECTION], ids=["vit", "adventurer", "detection"])
def test_killed_while_writing_a_checkpoint_and_resumed(make_run, settings):
    undisturbed, killed = make_run(*settings, study="undisturbed"), make_run(*settings, study="killed")
    run_training(undisturbed)

    pause(killed.path, after_step=11, opened=LAST_FILE_OF_A_CHECKPOINT)
    process = start(killed)
    wait_until_paused(killed.path)
    assert any(killed.checkpoint_dir.glob(".*.tmp"))
    assert kill(process)
    go_on(killed.path)
    assert killed.status()["state"] == "interrupted"
    assert killed.result() is None

    # As if the kill had come in the middle of a line.
    with killed.metrics_path.open("a") as file:
        file.write('{"kind": "train", "step": 9')
    run_training(killed)
    assert outcome(killed) == outcome(undisturbed)
    assert len((killed.read_json("environment.json") or {})["attempts"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("settings", [VIT, ADVENTURER], ids=["vit", "adventurer"])
def test_killed_again_and_again_at_random_moments(make_run, settings):
    undisturbed = make_run(*settings, study="undisturbed")
    run_training(undisturbed)
    expected = outcome(undisturbed)
    steps = expected["result"]["steps"]

    draw = random.Random(0)
    kills = 0
    for repetition in range(20):
        run = make_run(*settings, study=f"killed-{repetition}")
        for step in sorted(draw.sample(range(steps), k=draw.choice([1, 2]))):
            process = start(run)
            wait_until(lambda: step_of(run) >= step or not process.is_alive())  # noqa: B023
            time.sleep(draw.uniform(0, 0.03))
            kills += kill(process)
        run_training(run)
        assert outcome(run) == expected, f"repetition {repetition}"
    assert kills >= 20


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_it_saves_and_goes_on_later(make_run, number, code):
    settings = [*VIT, "training.steps=60", "execution.checkpoint_every_s=1000"]
    undisturbed, stopped = make_run(*settings, study="undisturbed"), make_run(*settings, study="stopped")
    run_training(undisturbed)

    pause(stopped.path, after_step=9)
    process = start(stopped)
    wait_until_paused(stopped.path)
    os.kill(process.pid, number)
    go_on(stopped.path)
    process.join()
    assert process.exitcode == code
    status = stopped.status()
    assert status["state"] == "interrupted"
    assert f"patchscale train --run-dir {stopped.path}" in status["message"]
    assert [path.name for path in stopped.checkpoint_dir.iterdir()] == [f"step-{status['step']:08d}"]

    run_training(stopped)
    assert outcome(stopped) == outcome(undisturbed)


def test_loader_processes_and_checkpoints_do_not_change_the_outcome(make_run):
    plain = make_run(*VIT[:-2], "execution.log_every_steps=3", study="plain")
    other = make_run(*VIT, "execution.num_workers=2", study="other")
    assert plain.config().identity == other.config().identity
    run_training(plain)
    run_training(other)
    assert outcome(plain) == outcome(other)


def test_loader_processes_die_with_a_killed_run(make_run):
    run = make_run(*VIT, "training.steps=200", "execution.num_workers=2")
    pause(run.path)
    process = start(run)
    wait_until_paused(run.path)
    loaders = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(loaders) == 2
    assert kill(process)
    wait_until(lambda: not any(map(lives, loaders)))


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_run_does_not_go_on_with_other_images(make_run, tmp_path):
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        for label, shade in (("dark", 20), ("light", 220)):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (16, 16), (shade + number, shade, shade)).save(folder / f"{number}.png")
    whole = [f"data.{split}_images=null" for split in ("train", "val", "test")]
    photos = ["data.name=image_folder", f"data.root={tmp_path}/photos", *whole]
    run = make_run(*photos, "training.steps=40", "execution.checkpoint_every_s=0", "execution.log_every_steps=1")
    pause(run.path, after_step=2)
    process = start(run)
    wait_until_paused(run.path)
    assert kill(process)
    go_on(run.path)
    (tmp_path / "photos/train/dark/8.png").write_bytes((tmp_path / "photos/train/dark/1.png").read_bytes())
    with pytest.raises(UserError, match="the data has changed since this run began"):
        run_training(run)
    (tmp_path / "photos/train/dark/8.png").unlink()
    wait_until(lambda: not run.is_locked())
    pause(run.path, after_step=4)
    process = start(run)
    wait_until_paused(run.path)
    assert kill(process)


def test_a_kill_before_the_last_writes_is_mended(make_run):
    run = make_run()
    run_training(run)
    expected = outcome(run)

    # Killed between result.json and the status: nothing is trained again.
    run.write_status("running")
    for name in ("step-00000003", ".step-00000003.old.tmp"):
        (run.checkpoint_dir / name).mkdir()
        (run.checkpoint_dir / name / "rank-00000.safetensors").write_bytes(b"left over")
    assert run_training(run) == run.result()
    assert run.status()["state"] == "done"
    assert outcome(run) == expected

    # A finished run stays untouched.
    before = {path: path.stat().st_mtime_ns for path in run.path.iterdir() if path.name != "claims"}
    run_training(run)
    assert {path: path.stat().st_mtime_ns for path in run.path.iterdir() if path.name != "claims"} == before
