import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from patchscale.config import TrainingConfig
from patchscale.models.registry import create_model
from patchscale.training.optim import (
    build_optimizer,
    learning_rate_at,
    parameter_groups,
    released_learning_rates,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "oracle_golden.json"


@pytest.mark.parametrize(
    ("name", "total_epochs", "learning_rate"), [("stage1_lr1e-3_300", 300, 1e-3), ("stage3_lr1e-5_20", 20, 1e-5)]
)
def test_released_learning_rates_equal_the_oracle(name, total_epochs, learning_rate):
    golden = json.loads(GOLDEN.read_text())["lr_per_epoch"][name]
    assert len(golden) == total_epochs
    # The file holds nine significant decimals.
    assert released_learning_rates(total_epochs, learning_rate) == pytest.approx(golden, rel=1e-6, abs=1e-12)


def test_released_stage_3_is_constant_after_warm_up():
    rates = released_learning_rates(20, 1e-5)
    assert rates[:2] == [1e-6, 1e-6]
    assert rates[6:] == pytest.approx([1e-5] * 14)


def test_learning_rate_rises_linearly_then_falls_to_the_minimum_at_the_last_step():
    training = TrainingConfig(
        steps=100,
        learning_rate=1e-3,
        min_learning_rate=1e-5,
        warmup_learning_rate=1e-6,
        warmup_fraction=0.1,
    )
    rates = [learning_rate_at(step, 100, training) for step in range(100)]
    rise = [rates[i + 1] - rates[i] for i in range(10)]
    assert rates[0] == 1e-6
    assert rise == pytest.approx([(1e-3 - 1e-6) / 10] * 10)
    assert rates[10] == max(rates) == 1e-3
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_learning_rate_of_very_short_runs_stays_in_range(steps):
    training = TrainingConfig(steps=steps)
    for step in range(steps):
        assert 1e-6 <= learning_rate_at(step, steps, training) <= 1e-3
    assert learning_rate_at(0, 1, training) == 1e-3


class _Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.table = nn.Parameter(torch.zeros(2, 8))
        self.proj = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.A_log = nn.Parameter(torch.zeros(2))
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)

    def no_weight_decay(self):
        return {"table"}


def test_only_matrices_are_decayed():
    task = nn.Module()
    task.backbone = _Backbone()
    task.head = nn.Linear(8, 3)
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    decayed, not_decayed = (
        {names[id(parameter)] for parameter in group["params"]} for group in parameter_groups(task, 0.05)
    )
    assert decayed == {"backbone.proj.weight", "head.weight"}
    assert not_decayed == {
        "backbone.pos_embed",
        "backbone.cls_token",
        "backbone.table",
        "backbone.proj.bias",
        "backbone.norm.weight",
        "backbone.norm.bias",
        "backbone.A_log",
        "head.bias",
    }


def test_weight_decay_reaches_the_optimizer():
    optimizer = build_optimizer(nn.Linear(2, 2), TrainingConfig(steps=1, weight_decay=0.3, betas=(0.8, 0.9)))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


@pytest.mark.parametrize("name", ["vit_test", "adventurer_test"])
def test_the_models_are_decayed_as_released(name):
    model = create_model(name, patch_size=4, img_size=16, num_classes=3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, not_decayed = (
        {names[id(parameter)] for parameter in group["params"]} for group in parameter_groups(model, 0.05)
    )
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    assert decayed == matrices - {"pos_embed", "cls_token"}
    assert {"pos_embed", "cls_token"} < not_decayed
    if name == "adventurer_test":
        assert any(name.endswith("conv1d.weight") for name in decayed)
        assert any(name.endswith("A_log") for name in not_decayed)
