"""The paper's settings for ADE20K; a start from a classifier of another patch size; the documented hours."""

import re

import pytest
import torch
from safetensors.torch import load_file

from patchscale.config import build_config
from patchscale.costs.estimate import estimate_cost
from patchscale.recipes import RECIPES, ade20k, recipe
from patchscale.runs.record import RunDirectory
from patchscale.training.loop import run_training

NAMES = [name for name in RECIPES if name.startswith("ade20k-")]


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_are_the_papers(name):
    config = recipe(name)
    training = config.training
    assert (training.optimizer, training.learning_rate, training.weight_decay) == ("adamw", 5e-5, 0.01)
    assert (training.steps, training.batch_size) == (160_000, 16)
    assert (config.task, config.data.name, config.data.augment) == ("segmentation", "ade20k", "scale_jitter")
    assert (config.model.patch_size, config.model.img_size) == (16, 512)
    assert config.head == ("upernet_192" if name.endswith("upernet") else "linear")


def test_there_is_one_for_each_row_of_the_papers_table():
    assert sorted(NAMES) == [f"ade20k-{size}-{head}" for size in ("base", "tiny") for head in ("linear", "upernet")]
    assert ade20k("base", "linear", patch_size=2).model.patch_size == 2


def test_the_decoder_has_the_papers_parameters():
    """112M and 17M with UPerNet, 99M and 12M without (Table 2)."""
    total = {
        (size, head): estimate_cost(
            f"adventurer_{size}", patch_size=16, img_size=512, num_classes=150, task="segmentation", head=head
        ).counts.params_total
        / 1e6
        for size in ("tiny", "base")
        for head in ("linear", "upernet_192")
    }
    assert total["base", "upernet_192"] - total["base", "linear"] == pytest.approx(13, abs=0.5)
    assert total["tiny", "upernet_192"] - total["tiny", "linear"] == pytest.approx(5, abs=0.5)


@pytest.mark.parametrize("name", NAMES)
def test_the_documented_hours_are_those_of_the_cost_model(name):
    text = " ".join((RECIPES[name].__doc__ or "").split())
    hours = float(re.search(r"Cost: ([\d.]+) hours of one A100", text)[1])
    config = recipe(name)
    cost = estimate_cost(
        config.model.name,
        patch_size=16,
        img_size=512,
        num_classes=150,
        task="segmentation",
        head=config.head,
        batch_size=16,
        device="a100",
    )
    assert cost.device_hours(160_000 * 16) == pytest.approx(hours, rel=5e-3)


@pytest.mark.parametrize("patch_size", [8, 4])
def test_a_run_starts_from_a_classifier_of_the_same_or_another_patch_size(patch_size, tmp_path):
    """Backbone, kernel and positions are carried over; its head is left out."""
    small = {"train_images": 16, "val_images": 4, "test_images": 4}
    classifier = build_config(
        {
            "model": {"name": "adventurer_test", "patch_size": 8, "img_size": 32},
            "data": {"name": "scenes", **small},
            "training": {"steps": 2, "batch_size": 4},
        }
    )
    first = RunDirectory.create(tmp_path, "classifiers", classifier)
    run_training(first)
    weights = first.checkpoint_dir / "model.safetensors"
    values = recipe("ade20k-tiny-upernet").to_dict()
    overrides = [
        *(f"data.{name}={count}" for name, count in small.items()),
        *("data.name=scenes", "data.root=null", "data.augment=flip", "data.val_fraction=0.1"),
        *("model.name=adventurer_test", f"model.patch_size={patch_size}", "model.img_size=48", "head=upernet_nano"),
        *("training.steps=1", "training.batch_size=4", "training.precision=fp32", f"training.init_from={weights}"),
        *("training.learning_rate=1e-30", "training.min_learning_rate=0", "training.num_validations=1"),
    ]
    second = RunDirectory.create(tmp_path, "segmentation", build_config(values, overrides))
    row = run_training(second)
    assert row["head"] == "upernet_nano"
    assert row["eval_protocol"].endswith("upernet_nano head, bilinear logits")
    before, after = load_file(weights), load_file(second.checkpoint_dir / "model.safetensors")
    for key, tensor in before.items():
        if key.startswith("backbone.layers."):
            torch.testing.assert_close(tensor, after[key], msg=key)  # its only step learned nothing
    assert after["backbone.pos_embed"].shape[1] == (48 // patch_size) ** 2 + 1
    assert "backbone.head.weight" in before
    assert "backbone.head.weight" not in after
    assert "resampled pos_embed" in second.log_path.read_text()
