"""The recipes for COCO against the published settings and numbers, and what they are said to cost."""

import re

import pytest

from patchscale.config import build_config
from patchscale.costs.estimate import estimate_cost
from patchscale.costs.workload import PUBLISHED_IMAGES
from patchscale.published_tables.tables import published
from patchscale.recipes import RECIPES, coco

SIZES = ("tiny", "base")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch_size", [64, 32, 16, 8, 4, 2])
def test_settings_are_the_papers(size, patch_size):
    config = coco(size, patch_size=patch_size)
    training = config.training
    assert (config.task, config.head, config.data.name) == ("detection", "cascade_mask_rcnn", "coco")
    assert (training.optimizer, training.learning_rate, training.weight_decay) == ("adamw", 1e-4, 0.05)
    assert training.epochs == 12
    assert training.min_learning_rate == 0
    steps = 12 * 0.99 * PUBLISHED_IMAGES["coco"] / training.batch_size
    assert training.warmup_fraction * steps == pytest.approx(900, rel=0.05)
    assert config.model.img_size[0] == (832 if patch_size == 64 else 800)
    assert build_config(config.to_dict()).training == training


@pytest.mark.parametrize("size", SIZES)
def test_expected_numbers_are_those_of_the_table(size):
    text = " ".join((RECIPES[f"coco-adventurer-{size}"].__doc__ or "").split())
    table = published("patchification/coco").query(f"model == 'Adventurer-{size.capitalize()}'")
    patches = [int(number) for number in re.search(r"with patch ([\d, ]+)", text)[1].split(",")]
    for kind in ("box", "mask"):
        numbers = [float(number) for number in re.search(rf"([\d., ]+) {kind} AP", text)[1].split(",")]
        of_kind = table[table["metric_name"] == f"{kind} AP"].set_index("patch_size")["metric"]
        assert of_kind.loc[patches].tolist() == pytest.approx([number / 100 for number in numbers])


@pytest.mark.parametrize("size", SIZES)
def test_hours_are_those_of_the_cost_model(size):
    hours = float(re.search(r"Cost: ([\d.]+) hours of one A100", RECIPES[f"coco-adventurer-{size}"].__doc__ or "")[1])
    cost = estimate_cost(
        f"adventurer_{size}",
        patch_size=16,
        img_size=(800, 1344),
        task="detection",
        head="cascade_mask_rcnn",
        num_classes=81,
        batch_size=16,
        device="a100",
    )
    assert cost.device_hours(12 * PUBLISHED_IMAGES["coco"]) == pytest.approx(hours, rel=5e-3)
