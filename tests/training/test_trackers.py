"""TensorBoard and Weights & Biases get the numbers of metrics.jsonl, once each, also over a resume."""

import json
import os
import struct
import subprocess
import sys

import pytest

from patchscale.config import build_config
from patchscale.errors import UserError
from patchscale.runs.record import RunDirectory
from patchscale.training.journal import Journal, Watcher
from patchscale.training.loop import run_training


def new_run(folder, *trackers):
    config = build_config(
        {
            "model": {"name": "vit_test", "patch_size": 8, "img_size": 16},
            "data": {"name": "scenes", "train_images": 16, "val_images": 4, "test_images": 4},
            "training": {"steps": 6, "batch_size": 4, "num_validations": 2},
            "execution": {"trackers": list(trackers), "log_every_steps": 2, "device": "cpu"},
        }
    )
    return RunDirectory.create(folder, "study", config)


def scalars(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_holds_the_rows_of_metrics_jsonl(tmp_path):
    run = new_run(tmp_path, "tensorboard")
    result = run_training(run)
    found = scalars(run)
    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    for kind in ("train", "val"):
        of_kind = [row for row in rows if row["kind"] == kind]
        assert [step for step, _ in found[f"{kind}/loss"]] == [row["step"] for row in of_kind]
        assert [value for _, value in found[f"{kind}/loss"]] == pytest.approx([row["loss"] for row in of_kind])
    assert found["test/loss"] == [(6, pytest.approx(result["test_loss"]))]
    assert found["test/top1"] == [(6, pytest.approx(result["metric"]))]


def test_a_resumed_run_does_not_tell_tensorboard_a_step_twice(tmp_path):
    run = new_run(tmp_path, "tensorboard")
    for first_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):  # killed after step 3, saved after step 2
        journal = Journal(run, Watcher())
        journal.track(first_step)
        for step in steps:
            journal.row("train", step, loss=10.0 * first_step + step)
        journal.close()
    assert scalars(run)["train/loss"] == [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0)]


def log_records(content):
    """The records of a LevelDB log (blocks of 32 KiB, pieces with checksum, length and type), after 7 bytes of its
    own.
    """
    place, pieces = 7, b""
    while place + 7 <= len(content):
        left = 2**15 - place % 2**15
        if left < 7:  # no piece begins in the last bytes of a block
            place += left
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        pieces += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield pieces
            pieces = b""


def test_wandb_runs_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    run = new_run(tmp_path, "wandb", "tensorboard")
    result = run_training(run)
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    from wandb.proto import wandb_internal_pb2 as messages

    history, run_ids = [], set()
    for content in log_records(file.read_bytes()):
        record = messages.Record()
        record.ParseFromString(content)
        if record.HasField("run"):
            run_ids.add(record.run.run_id)
        if record.HasField("history"):
            items = record.history.item
            history.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    assert run_ids == {run.path.name}
    assert [row["_step"] for row in history if "train/loss" in row] == [2, 4, 6]
    assert {row["_step"]: row["test/loss"] for row in history if "test/loss" in row} == {6: result["test_loss"]}


def test_wandb_without_an_account_is_one_line(tmp_path):
    run = new_run(tmp_path, "wandb")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    command = [sys.executable, "-m", "patchscale", "train", "--run-dir", str(run.path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 2, done.stderr
    assert "set WANDB_MODE=offline" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=f"names {name}, which is not installed; pip install"):
        run_training(new_run(tmp_path, name))
