import json

import pytest
import torch
from safetensors import safe_open
from tests.training.conftest import metrics, outcome

from patchscale.costs.estimate import estimate_cost
from patchscale.errors import UserError
from patchscale.training.journal import Watcher
from patchscale.training.loop import run_training

# fmt: off
COLUMNS = {
    "run_id", "status", "task", "dataset", "model", "architecture", "img_size", "patch_size", "tokens", "seed",
    "params_total", "params_backbone", "params_pos_embed", "flops_forward_per_image", "flops_train_total", "epochs",
    "steps", "images_seen", "train_images", "test_images", "train_loss", "val_loss", "val_metric", "test_loss",
    "metric_name", "metric", "wall_time_s", "peak_memory_bytes", "device", "ssd_backend", "pos_embed", "recipe",
    "eval_protocol", "versions",
}
# fmt: on


@pytest.mark.parametrize("model", ["vit_test", "adventurer_test"])
@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_a_run_ends_with_one_row_and_its_files(make_run, model, task):
    run = make_run(f"model.name={model}", f"task={task}", "execution.log_every_steps=5")
    row = run_training(run)

    assert set(row) >= COLUMNS
    assert row == run.result()
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert run.status()["state"] == "done"
    assert sorted(path.name for path in run.checkpoint_dir.iterdir()) == ["model.safetensors"]
    assert run.read_json("data.json")
    assert run.read_json("environment.json")["versions"]["torch"] == torch.__version__

    cost = estimate_cost(model, patch_size=8, img_size=16, num_classes=11 if task == "segmentation" else 10, task=task)
    assert (row["steps"], row["images_seen"], row["epochs"]) == (12, 96, 96 / 50)
    assert (row["tokens"], row["img_size"]) == (4, 16)
    assert (row["params_total"], row["params_backbone"]) == (cost.params_total, cost.params_backbone)
    assert row["flops_train_total"] == 96 * cost.flops_train
    assert cost.flops_train == 3 * row["flops_forward_per_image"] - 2 * cost.macs["patch_embed"]
    assert row["metric_name"] == ("top1" if task == "classification" else "mIoU")
    assert 0 <= row["metric"] <= 1
    assert row["peak_memory_kind"] == "process_resident"
    assert (row["ssd_backend"] is None) == (model == "vit_test")
    assert row["wall_time_s"] > row["train_time_s"] > 0

    rows = metrics(run)
    assert [(r["kind"], r["step"]) for r in rows] == [
        ("train", 5),
        ("val", 6),
        ("train", 10),
        ("train", 12),
        ("val", 12),
    ]
    assert rows[-1]["loss"] == row["val_loss"]
    assert rows[-1]["metric"] == row["val_metric"]


def test_training_learns(make_run):
    run = make_run(
        "data.train_images=64",
        "data.augment=none",
        "training.steps=120",
        "training.batch_size=32",
        "training.learning_rate=3e-3",
    )
    row = run_training(run)
    assert row["train_loss"] < 1.0 < metrics(run)[0]["loss"]


def test_the_same_seed_repeats_and_another_does_not(make_run):
    rows = [run_training(make_run(f"seed={seed}", study=study)) for seed, study in ((0, "a"), (0, "b"), (1, "a"))]
    assert rows[0]["test_loss"] == rows[1]["test_loss"] != rows[2]["test_loss"]


def test_the_global_generators_do_not_matter(make_run):
    first, second = make_run(study="a"), make_run(study="b")
    torch.manual_seed(1)
    run_training(first)
    torch.manual_seed(2)
    run_training(second)
    assert outcome(first) == outcome(second)


def test_the_train_loss_does_not_depend_on_logging(make_run):
    often, seldom = make_run("execution.log_every_steps=1", study="a"), make_run(study="b")
    assert run_training(often)["train_loss"] == run_training(seldom)["train_loss"]


def test_the_moving_average_is_evaluated_and_saved(make_run):
    raw, averaged = make_run(), make_run("training.ema_decay=0.99")
    raw_row, averaged_row = run_training(raw), run_training(averaged)
    assert raw_row["train_loss"] == averaged_row["train_loss"]
    assert raw_row["test_loss"] != averaged_row["test_loss"]
    for run, kind in ((raw, "raw"), (averaged, "ema")):
        assert (run.result() or {})["weights"] == kind
        with safe_open(run.checkpoint_dir / "model.safetensors", framework="pt") as file:
            about = json.loads(file.metadata()["patchscale"])
        assert (about["weights"], about["patch_size"]) == (kind, 8)


def test_bf16_keeps_float32_weights_and_learns_the_same(make_run):
    full, half = run_training(make_run()), run_training(run := make_run("training.precision=bf16"))
    assert half["train_loss"] != full["train_loss"]
    assert half["train_loss"] == pytest.approx(full["train_loss"], rel=0.05)
    with safe_open(run.checkpoint_dir / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118


def test_rectangles_and_fixed_positions(make_run):
    row = run_training(make_run("model.img_size=[16, 32]", "model.pos_embed=sincos2d", "training.steps=2"))
    assert (row["img_size"], row["tokens"], row["params_pos_embed"]) == ("16x32", 8, 0)


def test_a_run_can_be_watched(make_run):
    seen: list[tuple[int, int]] = []
    said: list[str] = []

    class Listener(Watcher):
        def step_done(self, step, total_steps, loss):
            seen.append((step, total_steps))

        def message(self, text):
            said.append(text)

    run = make_run("training.steps=3")
    run_training(run, progress=Listener())
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert said[0] == "starting at step 0 of 3 on cpu"
    assert said[-1].startswith("done: test top1")
    assert all(text in run.log_path.read_text() for text in said)


def test_a_run_held_by_another_process_is_left_alone(make_run):
    run = make_run()
    with run.lock(), pytest.raises(UserError, match="another process is running this run"):
        run_training(run)
    assert run.status()["state"] == "queued"


def test_settings_of_torch_are_put_back(make_run):
    threads = torch.get_num_threads()
    run_training(make_run("training.steps=1", "execution.num_threads=2"))
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_agrees_with_the_cpu_and_measures_its_memory(make_run, precision):
    settings = ["model.name=adventurer_test", f"training.precision={precision}"]
    cpu = run_training(make_run(*settings, study="cpu"))
    gpu = run_training(make_run(*settings, "execution.device=cuda", "execution.num_workers=2", study="gpu"))
    assert (gpu["device"], gpu["peak_memory_kind"]) == ("cuda", "cuda_allocated")
    assert gpu["peak_memory_bytes"] > 0
    assert gpu["train_loss"] == pytest.approx(cpu["train_loss"], rel=1e-3 if precision == "fp32" else 3e-2)
