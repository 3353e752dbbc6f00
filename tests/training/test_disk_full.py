"""A disk that takes no more is a clear error; the checkpoint before is whole, and with room the run goes on."""

import os
import resource
import subprocess
from contextlib import suppress

import pytest
from tests.training.conftest import TINY, outcome
from tests.training.test_checkpoint import equal, make_state, names, take_steps

from patchscale.config import build_config
from patchscale.errors import RunFailed
from patchscale.runs.record import RunDirectory, append_jsonl
from patchscale.training.checkpoint import Checkpoints
from patchscale.training.journal import Watcher
from patchscale.training.loop import run_training

SETTINGS = ("execution.checkpoint_every_s=0", "execution.log_every_steps=1", "training.ema_decay=0.9")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own in memory; the function that sets its options, such as size=1m."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("only root may mount a small disk")

    def remount(options):
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
        return folder

    yield remount
    subprocess.run(["umount", str(folder)], check=True)


def size_of_a_checkpoint(make_run):
    """Bytes that a run of `SETTINGS` saves at each step."""

    class Stop(Exception):
        pass

    class StopAtTwo(Watcher):
        def step_done(self, step, total_steps, loss):
            if step == 2:
                raise Stop

    run = make_run(*SETTINGS, study="measured")
    with pytest.raises(RunFailed):
        run_training(run, progress=StopAtTwo())
    return sum(file.stat().st_size for file in (run.checkpoint_dir / "step-00000001").iterdir())


def test_a_run_on_a_full_disk_stops_with_words_and_goes_on_when_there_is_room(make_run, small_disk):
    undisturbed = make_run(*SETTINGS)
    run_training(undisturbed)
    size = size_of_a_checkpoint(make_run)

    # One checkpoint fits, the next one beside it does not.
    disk = small_disk(f"size={int(1.5 * size)}")
    run = RunDirectory.create(disk, "s", build_config(TINY, SETTINGS))
    with pytest.raises(RunFailed, match="checkpoint of step 2 cannot be written") as caught:
        run_training(run)
    words = str(caught.value)
    assert caught.value.kind == "storage"
    assert "(No space left on device); it needs " in words
    needed, free = (float(words.split(before)[1].split(" MiB")[0]) for before in ("it needs ", "MiB, "))
    assert needed == pytest.approx(size / 2**20, rel=0.1)
    assert 0.3 * needed < free < 0.6 * needed
    assert "step-00000001 is kept, go on from it when there is room" in words
    assert "\n" not in words
    assert names(run.checkpoint_dir) == ["step-00000001"]
    assert (run.status()["state"], run.status()["kind"], run.status()["message"]) == ("failed", "storage", words)

    small_disk("size=100m")
    run_training(run)
    assert outcome(run) == outcome(undisturbed)


def test_a_disk_that_fills_up_between_checkpoints_is_said(make_run, small_disk):
    settings = ("training.steps=60", "execution.log_every_steps=1", "execution.checkpoint_every_s=1000")
    undisturbed = make_run(*settings)
    run_training(undisturbed)
    disk = small_disk("size=20m")
    run = RunDirectory.create(disk, "s", build_config(TINY, settings))

    class FillAtSix(Watcher):
        def step_done(self, step, total_steps, loss):
            if step == 6:
                with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
                    while True:
                        file.write(b"x" * 4096)

    # The next rows go into the rest of a block.
    with pytest.raises(RunFailed, match=r"metrics\.jsonl cannot be written \(No space left on device\)") as caught:
        run_training(run, progress=FillAtSix())
    assert caught.value.kind == "storage"
    assert run.status()["state"] == "interrupted"  # there was no room to say failed
    (disk / "filler").unlink()
    run_training(run)
    assert outcome(run) == outcome(undisturbed)


def test_a_row_of_metrics_that_does_not_fit_is_said(small_disk):
    disk = small_disk("size=8k")
    with pytest.raises(OSError, match="No space left on device"):
        append_jsonl(disk / "metrics.jsonl", {"kind": "train", "text": "x" * 10_000})


def test_an_unwritable_folder_is_said_and_nothing_is_lost(tmp_path, request):
    state = make_state(steps=1)
    folder = tmp_path / "disk" / "checkpoint"
    if os.geteuid() == 0:  # whom rights do not stop
        remount = request.getfixturevalue("small_disk")
        Checkpoints(folder, identity="abc").save(state)
        remount("ro")
    else:
        Checkpoints(folder, identity="abc").save(state)
        folder.chmod(0o500)
    take_steps(state, 1)
    with pytest.raises(RunFailed, match=r"checkpoint of step 2 cannot be written \((Read-only|Permission)") as caught:
        Checkpoints(folder, identity="abc").save(state)
    assert caught.value.kind == "storage"
    assert names(folder) == ["step-00000001"]
    assert Checkpoints(folder, identity="abc").load(state)
    if os.geteuid() != 0:
        folder.chmod(0o700)


@pytest.mark.parametrize("allowed", [0, 100, 1000])
def test_files_that_may_not_grow_leave_the_one_before_whole(tmp_path, allowed):
    checkpoints = Checkpoints(tmp_path / "checkpoint", identity="abc")
    state = make_state(steps=1)
    checkpoints.save(state)
    take_steps(state, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, limits[1]))
    try:
        with pytest.raises(RunFailed, match=r"checkpoint of step 2 cannot be written \(File too large\)"):
            checkpoints.save(state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(checkpoints.folder) == ["step-00000001"]
    restored = make_state(seed=9)
    assert checkpoints.load(restored)
    assert equal(restored, make_state(steps=1))
    checkpoints.save(state)
    assert names(checkpoints.folder) == ["step-00000002"]


def test_a_first_checkpoint_without_room_says_that_nothing_was_saved(tmp_path):
    (tmp_path / "checkpoint").write_text("a file where the folder should be")
    with pytest.raises(RunFailed, match="nothing was saved before") as caught:
        Checkpoints(tmp_path / "checkpoint", identity="abc").save(make_state(steps=1))
    assert caught.value.kind == "storage"
