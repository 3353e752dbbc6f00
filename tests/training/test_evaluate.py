import json

import pytest
import torch
from safetensors.torch import save_file

from patchscale.config import build_config
from patchscale.data.datasets import load_splits
from patchscale.errors import UserError
from patchscale.models.weights import HEADER, read_weights
from patchscale.tasks import build_task
from patchscale.training.evaluate import evaluate
from patchscale.training.evaluate_file import load_file
from patchscale.training.loop import run_training

CPU = torch.device("cpu")


@pytest.mark.parametrize("task_name", ["classification", "segmentation"])
def test_batches_and_loader_processes_do_not_change_the_numbers(make_run, task_name):
    config = make_run(f"task={task_name}").config()
    splits = load_splits(config)
    task = build_task(config, splits)
    whole = evaluate(task, splits.test, batch_size=12, device=CPU)
    parts = evaluate(task, splits.test, batch_size=5, device=CPU, num_workers=1)
    assert parts["metric"] == whole["metric"]
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-6)


def test_it_evaluates_without_drop_path_and_leaves_the_mode(make_run):
    config = make_run("model.drop_path_rate=0.9").config()
    splits = load_splits(config)
    task = build_task(config, splits).train()
    assert evaluate(task, splits.val, batch_size=4, device=CPU) == evaluate(task, splits.val, batch_size=4, device=CPU)
    assert task.training


def test_a_trained_run_comes_back(make_run):
    run = make_run("training.ema_decay=0.9")
    row = run_training(run)
    loaded = load_file(run.checkpoint_dir / "model.safetensors", run.config())
    again = evaluate(loaded.task, loaded.splits.test, batch_size=8, device=CPU)
    assert (again["loss"], again["metric"]) == (row["test_loss"], row["metric"])


def test_a_file_with_another_head_says_which(make_run):
    """What keeps the head from being loaded is said, and nothing else."""
    run = make_run("task=segmentation", "head=upernet_nano", "training.steps=1")
    run_training(run)
    path, config = run.checkpoint_dir / "model.safetensors", run.config()
    with pytest.raises(UserError, match=r"its head is upernet_nano, not linear; give head=upernet_nano$"):
        load_file(path, build_config(config.to_dict(), ["head=linear"]))
    with pytest.raises(UserError, match=r"than upernet_nano at 4 px patches, whose pyramid follows the patch size"):
        load_file(path, config, patch_size=4)
    weights = read_weights(path)
    tensors = weights.tensors | dict(list(weights.task_head.items())[1:])
    save_file(tensors, path, metadata={HEADER: json.dumps(weights.header)})
    with pytest.raises(UserError, match=r"model.safetensors: has no head for segmentation with 11 classes"):
        load_file(path, config)
