"""What a run does to fit: the whole batch if it can, then computing blocks twice, then parts of the batch."""

import re

import pytest
import torch
from tests.training.conftest import TINY

from patchscale.config import build_config
from patchscale.models import create_model
from patchscale.training.loop import run_training
from patchscale.training.memory import (
    MEMORY_SHARE,
    estimate_memory,
    needs_whole_batch,
    plan_memory,
)

CPU = torch.device("cpu")
GIB = 2**30


def plan(*overrides, before=None):
    backbone = torch.nn.Identity()  # only looked at for layers that mix images
    return plan_memory(build_config(TINY, overrides), backbone, 10, CPU, before)


def needed(overrides, micro_batch_size, *, checkpointing):
    """Free memory in GiB that a plan needs, with a little to spare."""
    config = build_config(TINY, overrides)
    estimate = estimate_memory(config, 10, micro_batch_size, CPU, activation_checkpointing=checkpointing)
    return 1.001 * estimate.peak_bytes / MEMORY_SHARE / GIB


def test_small_runs_are_left_alone(make_run):
    run = make_run()
    run_training(run)
    attempt = run.read_json("environment.json")["attempts"][0]
    assert (attempt["memory"]["micro_batch_size"], attempt["memory"]["activation_checkpointing"]) == (8, False)
    sizes = r"about \d+\.\d\d MiB of \d+\.\d\d GiB\n"
    assert re.search(r"memory: whole batch of 8, no checkpointing; " + sizes, run.log_path.read_text())


def test_less_memory_first_costs_time_and_then_parts():
    settings = ["model.name=vit_nano", "model.img_size=64", "model.patch_size=2", "training.batch_size=12"]
    for size, checkpointing in [(12, False), (12, True), (6, True), (3, True), (1, True)]:
        limit = needed(settings, size, checkpointing=checkpointing)
        found = plan(*settings, f"execution.memory_limit_gib={limit}")
        assert (found.micro_batch_size, found.activation_checkpointing) == (size, checkpointing)
        assert found.estimated_bytes <= MEMORY_SHARE * found.available_bytes
    hopeless = plan(*settings, "execution.memory_limit_gib=1e-6")
    assert (hopeless.micro_batch_size, hopeless.activation_checkpointing) == (1, True)
    assert str(hopeless).endswith(" of 1.05 KiB; this may not fit")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["execution.micro_batch_size=5"], (5, True)),
        (["execution.micro_batch_size=50"], (8, True)),
        (["execution.activation_checkpointing=off"], (1, False)),
        (["execution.activation_checkpointing=on"], (1, True)),
        (["execution.micro_batch_size=5", "execution.activation_checkpointing=off"], (5, False)),
    ],
)
def test_what_the_config_says_holds(settings, expected):
    found = plan(*settings, "execution.memory_limit_gib=1e-6")
    assert (found.micro_batch_size, found.activation_checkpointing) == expected


def test_a_resume_chooses_what_was_chosen_and_the_config_still_holds():
    before = {"micro_batch_size": 2, "activation_checkpointing": True}
    assert plan(before=before).micro_batch_size == 2
    assert plan(before=before).activation_checkpointing
    asked = plan("execution.micro_batch_size=4", "execution.activation_checkpointing=off", before=before)
    assert (asked.micro_batch_size, asked.activation_checkpointing) == (4, False)


ONE_STEP = """
import torch
from patchscale.config import build_config
from patchscale.training.memory import plan_memory
from patchscale.training.setup import set_up

def step(values):
    config, device = build_config(values), torch.device("cpu")
    setup = set_up(config, device)
    plan = plan_memory(config, setup.task.backbone, setup.splits.num_classes, device)
    assert plan.activation_checkpointing and plan.estimated_bytes < 12 * 2**30, plan
    setup.task.backbone.set_grad_checkpointing(plan.activation_checkpointing)
    ((images, targets),) = setup.batches(range(1))
    loss = setup.backward(0, images, targets, plan.micro_batch_size)
    setup.state.optimizer.step()
    assert loss.isfinite() and all(parameter.isfinite().all() for parameter in setup.task.parameters())
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_pixel_a_token_trains_in_12_gib(peak_memory):
    """Adventurer-Tiny on 50,176 tokens: forward, backward, AdamW, with what is chosen for 12 GiB of memory."""
    values = {
        "model": {"name": "adventurer_tiny", "patch_size": 1, "img_size": 224},
        "data": {"name": "scenes", "train_images": 1, "val_images": 1, "test_images": 1},
        "training": {"batch_size": 1, "steps": 1},
        "execution": {"memory_limit_gib": 12},
    }
    (peak,) = peak_memory(ONE_STEP, f"step({values!r})")
    print(f"peak {peak / GIB:.2f} GiB")
    assert peak < 12 * GIB
    estimate = estimate_memory(build_config(values), 10, 1, CPU, activation_checkpointing=True).peak_bytes
    assert estimate / 1.5 < peak < 1.5 * estimate


TWO_STEPS = """
import torch
from patchscale.config import build_config
from patchscale.training.setup import set_up

def train(values, micro_batch_size, checkpointing):
    setup = set_up(build_config(values), torch.device("cpu"))
    setup.task.backbone.set_grad_checkpointing(checkpointing)
    for step, batch in enumerate(setup.batches(range(2))):
        setup.backward(step, *batch, micro_batch_size)
        setup.state.optimizer.step()
        setup.state.optimizer.zero_grad()
        if setup.state.ema is not None:
            setup.state.ema.update(setup.task, step=step + 1)

# What only the first training of a process takes: libraries, the scenes' pictures.
for model in ("vit_test", "adventurer_test"):
    data = {"name": "scenes", "train_images": 2, "val_images": 1, "test_images": 1}
    values = {"model": {"name": model, "patch_size": 4, "img_size": 32}, "data": data}
    train(values | {"training": {"batch_size": 2, "steps": 2, "ema_decay": 0.9}}, 1, True)
    train(values | {"task": "segmentation", "training": {"batch_size": 2, "steps": 2}}, 2, False)
"""


def test_what_a_run_sets_up_takes_the_memory_that_is_estimated(peak_memory):
    """Data, task, optimizer, micro-batches and moving average, as a run has them."""

    def values(model, img_size, batch_size, *, task="classification", **training):
        return {
            "task": task,
            "model": {"name": model, "patch_size": 4, "img_size": img_size},
            "data": {"name": "scenes", "augment": "none", "train_images": 64, "val_images": 1, "test_images": 1},
            "training": {"batch_size": batch_size, "steps": 2, **training},
        }

    cases = [
        (values("vit_nano", 64, 32), 32, False),
        (values("vit_nano", 64, 32, ema_decay=0.99), 16, False),
        (values("adventurer_nano", 64, 32), 32, True),
        (values("adventurer_nano", 64, 32, ema_decay=0.99), 8, False),
        (values("vit_nano", 96, 16, task="segmentation"), 16, False),
    ]
    peaks = peak_memory(TWO_STEPS, *(f"train({config!r}, {size}, {lean})" for config, size, lean in cases))
    ratios = []
    for (config, size, lean), peak in zip(cases, peaks, strict=True):
        classes = 11 if config["task"] == "segmentation" else 10
        estimate = estimate_memory(build_config(config), classes, size, CPU, activation_checkpointing=lean).peak_bytes
        print(f"{config}, {size}, {lean}: measured {peak / 2**20:.1f} MiB, estimated {estimate / 2**20:.1f} MiB")
        ratios.append(estimate / peak)
    assert all(0.9 < ratio < 1.1 for ratio in ratios), ratios


def test_which_models_need_their_whole_batch():
    sizes = {"patch_size": 16, "img_size": 32, "num_classes": 3}
    for name in ("vit_test", "adventurer_test", "eva02_tiny_patch14_224", "vit_small_patch16_18x2_224"):
        with torch.device("meta"):
            assert needs_whole_batch(create_model(name, drop_path_rate=0.1, **sizes)) == ""
    with torch.device("meta"):
        assert "batch norm in patch_embed" in needs_whole_batch(create_model("xcit_nano_12_p16_224", **sizes))
    assert needs_whole_batch(torch.nn.Sequential(torch.nn.Dropout(0.1))) == "dropout in 0"
    assert needs_whole_batch(torch.nn.Sequential(torch.nn.Dropout(0.0))) == ""
