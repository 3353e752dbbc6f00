import pytest
import torch

from patchscale.data.datasets import load_splits
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
