"""Several processes train what one trains: the same global batches, losses, gradients and weights, to rounding."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.pausing import go_on, pause, wait_until_paused
from tests.training.conftest import metrics, outcome, start_process, wait_until

from patchscale.errors import UserError
from patchscale.tasks import TASKS, build_task
from patchscale.training.distributed import RowsOrder, rows_of_part
from patchscale.training.loop import run_training
from patchscale.training.order import TrainingOrder

# All that draws random numbers, mixes images or keeps state, on batches that three processes cannot share evenly.
CLASSIFICATION = (
    "model.drop_path_rate=0.3",
    "data.augment=crop",
    "training.batch_size=10",
    "training.steps=6",
    "training.mixup=0.8",
    "training.cutmix=1.0",
    "training.ema_decay=0.9",
    "training.label_smoothing=0.1",
    "execution.log_every_steps=1",
)
OBJECTS = (
    *("task=detection", "head=cascade_mask_rcnn_nano", "model.img_size=[32, 48]", "model.drop_path_rate=0.3"),
    *("data.augment=large_scale_jitter", "training.batch_size=10", "training.steps=3", "execution.log_every_steps=1"),
)
PARALLEL = ("ddp", "fsdp")


@pytest.fixture
def on_ranks(monkeypatch):
    """Start processes that know of each other, as torchrun does; `wait=False` returns them as they run."""
    monkeypatch.syspath_prepend(Path(__file__).parent)  # where new processes find what they are to run
    import training_on_ranks

    started = []

    def begin(size, *jobs, wait=True):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        listed = [(name, str(run.path)) for name, run in jobs]
        processes = [start_process(training_on_ranks.on_ranks, rank, size, port, listed) for rank in range(size)]
        started.extend(processes)
        if wait:
            for process in processes:
                process.join()
            assert [process.exitcode for process in processes] == [0] * size
        return processes

    yield begin
    for process in started:
        if process.is_alive():
            process.kill()
            process.join()


@pytest.fixture
def masks(tmp_path):
    """Photos with label maps in which the share of ignored pixels differs from image to image; in one it is all."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 7), ("test", 7)):
        for kind in ("images", "masks"):
            (tmp_path / "masks_set" / kind / split).mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            labels = draw.integers(0, 3, (16, 16), dtype=np.uint8)
            labels[: 16 if number == 3 else number % 15] = 255
            Image.fromarray(pixels).save(tmp_path / "masks_set/images" / split / f"{number}.png")
            Image.fromarray(labels).save(tmp_path / "masks_set/masks" / split / f"{number}.png")
    whole = [f"data.{split}_images=null" for split in ("train", "val", "test")]
    root = ["data.name=mask_folder", f"data.root={tmp_path}/masks_set", "data.num_classes=3", *whole]
    return ("task=segmentation", *root, "model.drop_path_rate=0.3", "training.batch_size=10", "training.steps=5")


def compare(expected, found, tolerance, *, weights=None):
    """Every step and evaluation, the results and, to `weights`, final weights, relative to the largest of a tensor."""
    for one, several in zip(metrics(expected), metrics(found), strict=True):
        assert one.keys() == several.keys()
        for name, value in one.items():
            assert several[name] == (pytest.approx(value, rel=tolerance) if isinstance(value, float) else value), name
    one, several = expected.result(), found.result()
    for name in ("train_loss", "val_loss", "test_loss", "metric", "images_seen", "epochs", "params_total", "steps"):
        assert several[name] == pytest.approx(one[name], rel=tolerance), name
    for path in expected.checkpoint_dir.iterdir():
        one, several = load_file(path), load_file(found.checkpoint_dir / path.name)
        assert one.keys() == several.keys()
        for name, value in one.items() if weights else ():
            scale = float(value.abs().max())
            torch.testing.assert_close(several[name], value, rtol=0, atol=weights * scale, msg=name)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5])
def test_every_row_belongs_to_one_part_and_mixes_with_its_mirror(parts, paired):
    found = [rows_of_part(10, part, parts, paired=paired) for part in range(parts)]
    assert sorted(row for rows in found for row in rows) == list(range(10))
    assert max(map(len, found)) - min(map(len, found)) <= (2 if paired else 1)
    if paired:
        assert all([9 - row for row in rows] == rows[::-1] for rows in found)


def test_a_part_without_images_is_refused():
    assert rows_of_part(4, 3, 4, paired=False) == [3]
    with pytest.raises(UserError, match=r"batch_size=4 has 2 pairs of images .* for 3 processes: start fewer"):
        rows_of_part(4, 0, 3, paired=True)


def test_a_part_has_its_rows_of_every_batch():
    order = TrainingOrder(0, 23, 10)
    parts = [RowsOrder(order, rows_of_part(10, part, 3, paired=False)) for part in range(3)]
    assert [key for part in parts for key in part(5)] == order(5)


@pytest.mark.parametrize("task", [name for name in TASKS if name != "detection"])  # see tests/tasks/test_detection.py
def test_merged_meters_have_counted_everything(make_run, task):
    from patchscale.data.datasets import load_splits

    config = make_run(f"task={task}").config()
    splits = load_splits(config)
    built = build_task(config, splits)
    torch.manual_seed(0)
    size = () if task == "classification" else (16, 16)
    logits = torch.randn(8, splits.num_classes, *size)
    targets = torch.randint(splits.num_classes, (8, *size))
    whole, first, second = (built.new_meter() for _ in range(3))
    whole.update(logits, targets)
    first.update(logits[:3], targets[:3])
    second.update(logits[3:], targets[3:])
    first.merge(second)
    found, expected = first.compute(), whole.compute()
    assert found.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-12)
    assert found == expected


def test_two_processes_train_as_one(make_run, on_ranks, masks):
    """In float64 to 1e-9: a whole run, weights and all. Also with micro-batches, of which the ranks need as many."""
    sets = {
        "vit": CLASSIFICATION,
        "adventurer": (*CLASSIFICATION, "model.name=adventurer_test"),
        "masks": (*masks, "execution.log_every_steps=1"),
        "objects": OBJECTS,
    }
    runs, expected = {}, {}
    for name, settings in sets.items():
        expected[name] = make_run(*settings, study=f"{name}-one")
        for parallel in PARALLEL:
            more = (f"execution.parallel={parallel}", "execution.micro_batch_size=2")
            runs[name, parallel] = make_run(*settings, *more, study=f"{name}-{parallel}")
    import training_on_ranks

    on_ranks(2, *[("train_in_float64", run) for run in runs.values()])
    for run in expected.values():
        training_on_ranks.train_in_float64(run.path)
    for (name, parallel), run in runs.items():
        # Losses are logged in float32.
        compare(expected[name], run, 2e-7, weights=1e-9)
        assert (run.result()["world_size"], run.result()["parallel"]) == (2, parallel)
        environment = run.read_json("environment.json")
        assert len(environment["attempts"][0]["ranks"]) == 2
        assert environment["memory"]["batch_size"] in (5, 6)
    assert (expected["vit"].result()["world_size"], expected["vit"].result()["parallel"]) == (1, None)


@pytest.mark.slow
def test_two_processes_share_every_image(make_run, on_ranks):
    """Each has a part of its tokens; in float64, with weights whole on each and sharded."""
    settings = (*CLASSIFICATION, "model.patch_size=4", "training.steps=4")
    names, runs = ("vit_test", "adventurer_test"), {}
    for name in names:
        for parallel in PARALLEL:
            more = (f"model.name={name}", f"execution.parallel={parallel}", "execution.sequence_parallel=2")
            runs[name, parallel] = make_run(*settings, *more, study=parallel)
    import training_on_ranks

    on_ranks(2, *[("train_in_float64", run) for run in runs.values()])
    for name in names:
        one = make_run(*settings, f"model.name={name}", study="one")
        training_on_ranks.train_in_float64(one.path)
        for parallel in PARALLEL:
            compare(one, runs[name, parallel], 2e-7, weights=1e-9)
            assert runs[name, parallel].read_json("environment.json")["memory"]["batch_size"] == 10


def test_three_processes_share_unevenly_in_float32(make_run, on_ranks, masks):
    """Batches of 10: 4, 4 and 2 images in pairs, else 3, 3 and 4. Weights of little effect drift; losses do not."""
    sets = {"vit": CLASSIFICATION, "masks": (*masks, "execution.log_every_steps=1", "model.name=adventurer_test")}
    runs = {
        (name, parallel): make_run(
            *settings, f"execution.parallel={parallel}", "execution.micro_batch_size=1", study=f"{name}-{parallel}"
        )
        for name, settings in sets.items()
        for parallel in PARALLEL
    }
    on_ranks(3, *[("train", run) for run in runs.values()])
    for name, settings in sets.items():
        one = make_run(*settings, study=f"{name}-one")
        run_training(one)
        for parallel in PARALLEL:
            compare(one, runs[name, parallel], 1e-6)


def test_stopped_and_resumed_it_is_the_undisturbed_run(make_run, on_ranks):
    """Bit for bit, on as many processes; one of them alone was asked to stop."""
    settings = (*CLASSIFICATION, "execution.checkpoint_every_s=1000")
    pairs = [
        [make_run(*settings, f"execution.parallel={parallel}", study=f"{parallel}-{kind}") for kind in ("whole", "cut")]
        for parallel in PARALLEL
    ]
    jobs = [(name, run) for pair in pairs for name, run in zip(("train", "stop_and_go_on"), pair, strict=True)]
    on_ranks(2, *jobs)
    for whole, cut in pairs:
        assert outcome(cut) == outcome(whole)
        assert [attempt["first_step"] for attempt in cut.read_json("environment.json")["attempts"]] == [0, 3]


def test_a_hung_rank_is_named(make_run, on_ranks):
    run = make_run("training.steps=100000", "execution.hang_timeout_s=3", "execution.checkpoint_every_s=0")
    processes = on_ranks(2, ("train", run), wait=False)
    wait_until(lambda: (run.read_json("status.json") or {}).get("step", 0) >= 2)
    os.kill(processes[1].pid, signal.SIGSTOP)
    processes[0].join(15)
    assert processes[0].exitcode == 1
    status = run.status()
    assert (status["state"], status["kind"]) == ("failed", "hung_rank")
    assert f"no sign of life from rank 1 ({socket.gethostname()}, process {processes[1].pid})" in status["message"]
    assert "waited 3 s (execution.hang_timeout_s" in status["message"]
    os.kill(processes[1].pid, signal.SIGCONT)
    processes[1].join(30)
    assert processes[1].exitcode not in (0, None)
    assert "no sign of life from rank 1" in run.log_path.read_text()


def test_data_may_take_longer_to_prepare_than_a_hang(make_run, on_ranks):
    run = make_run("execution.hang_timeout_s=2")
    on_ranks(2, ("train_after_6_s", run))
    assert run.status()["state"] == "done"


def test_a_rank_that_fails_while_others_wait_for_its_data_is_told(make_run, on_ranks):
    run = make_run("execution.hang_timeout_s=2")
    processes = on_ranks(2, ("fail_before_data", run), wait=False)
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [1, 1]
    status = run.status()
    assert (status["state"], status["kind"], status["message"]) == ("failed", "config", "no such folder here")


def test_a_rank_that_hangs_while_others_wait_for_its_data_is_named(make_run, on_ranks):
    run = make_run("execution.hang_timeout_s=2")
    processes = on_ranks(2, ("stop_before_data", run), wait=False)
    processes[0].join(30)
    assert processes[0].exitcode == 1
    status = run.status()
    assert (status["state"], status["kind"]) == ("failed", "hung_rank")
    assert f"no sign of life from rank 1 ({socket.gethostname()}, process {processes[1].pid})" in status["message"]
    assert "since: preparing the data; waited 2 s" in status["message"]


def test_ranks_with_other_data_are_refused(make_run, on_ranks, tmp_path):
    for rank, classes in ((0, "ab"), (1, "abc")):
        for name in classes:
            (tmp_path / f"photos-{rank}" / name).mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"photos-{rank}" / name / f"{number}.png")
    whole = [f"data.{split}_images=null" for split in ("train", "val", "test")]
    run = make_run("data.name=image_folder", f"data.root={tmp_path}/photos", *whole)
    processes = on_ranks(2, ("train_with_another_folder", run), wait=False)
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [1, 1]
    status = run.status()
    assert (status["state"], status["kind"]) == ("failed", "config")
    assert "rank 1 has other data than rank 0" in status["message"]


def test_a_rank_that_dies_ends_the_others(make_run, on_ranks):
    run = make_run("training.steps=100000", "execution.checkpoint_every_s=0")
    processes = on_ranks(2, ("train", run), wait=False)
    wait_until(lambda: (run.read_json("status.json") or {}).get("step", 0) >= 2)
    processes[1].kill()
    processes[0].join(30)
    assert processes[0].exitcode == 1
    status = run.status()
    assert (status["state"], status["kind"]) == ("failed", "crash")
    assert f"rank 1 ({socket.gethostname()}, process {processes[1].pid}) died" in status["message"]


def torchrun(*arguments, **options):
    """`patchscale train` in two processes of torchrun."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "patchscale", "train", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_an_error_of_one_rank_is_told_once_and_ends_all(make_run):
    """Rank 0 alone asks for the lock, and is refused."""
    run = make_run()
    with run.lock():
        process = torchrun("--run-dir", run.path)
        output, errors = process.communicate(timeout=100)
    assert process.returncode == 1  # torchrun's, whatever its processes end with
    assert not output
    assert errors.count("error: ") == 1
    assert f"error: {run.path}: another process is running this run; wait for it" in errors
    assert "exitcode  : 2 " in errors
    assert run.status()["state"] == "queued"


@pytest.mark.slow
def test_an_error_of_all_ranks_is_told_once(tmp_path):
    process = torchrun("training.steps=0", "--runs-root", tmp_path)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert errors.count("error: ") == 1
    assert "error: settings: training.steps: " in errors


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["torchrun", "one rank"])
def test_asked_to_stop_all_save_and_go_on_later(make_run, whom):
    settings = (*CLASSIFICATION, "training.steps=300", "execution.checkpoint_every_s=1000")
    run = make_run(*settings)
    pause(run.path, after_step=3)
    process = torchrun("--run-dir", run.path)
    wait_until_paused(run.path)
    rank_1 = run.read_json("environment.json")["attempts"][0]["ranks"][1]["pid"]
    os.kill(process.pid if whom == "torchrun" else rank_1, signal.SIGTERM)
    go_on(run.path)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    status = run.status()
    assert status["state"] == "interrupted"
    assert errors.count(f"stopped at step {status['step']} of 300, saved") == 1
    assert [path.name for path in run.checkpoint_dir.iterdir()] == [f"step-{status['step']:08d}"]
    process = torchrun("--run-dir", run.path)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert output.count("top1") == 1
    assert f"resumed at step {status['step']} of 300 on 2 processes (ddp) on cpu" in errors
    undisturbed = make_run(*settings, study="undisturbed")
    process = torchrun("--run-dir", undisturbed.path)
    process.communicate(timeout=200)
    assert outcome(run) == outcome(undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize("parallel", PARALLEL)
def test_compiled_they_learn_the_same(make_run, on_ranks, parallel):
    settings = (*CLASSIFICATION, "training.steps=3", f"execution.parallel={parallel}")
    eager = make_run(*settings, study="eager")
    compiled = make_run(*settings, "execution.compile=true", study="compiled")
    on_ranks(2, ("train", eager), ("train", compiled))
    compare(eager, compiled, 1e-3)


@pytest.mark.slow
def test_sharded_weights_start_from_a_file(make_run, on_ranks):
    first = make_run(*CLASSIFICATION, study="first")
    run_training(first)
    weights = first.checkpoint_dir / "model.safetensors"
    settings = (*CLASSIFICATION, f"training.init_from={weights}", "seed=1")
    one, sharded = make_run(*settings, study="one"), make_run(*settings, "execution.parallel=fsdp", study="sharded")
    run_training(one)
    on_ranks(2, ("train", sharded))
    compare(one, sharded, 1e-6)
