import itertools
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from tests.training.conftest import outcome
from torch import nn

from patchscale.config import TrainingConfig
from patchscale.models.registry import create_model
from patchscale.training.interrupt import Interrupted
from patchscale.training.journal import Watcher
from patchscale.training.loop import run_training
from patchscale.training.optim import (
    build_optimizer,
    learning_rate_at,
    parameter_groups,
    released_learning_rates,
    set_learning_rate,
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


def test_the_quirk_follows_the_released_schedule_epoch_by_epoch():
    golden = json.loads(GOLDEN.read_text())["lr_per_epoch"]["stage1_lr1e-3_300"]
    training = TrainingConfig(
        epochs=300, learning_rate=1e-3, warmup_fraction=5 / 300, quirks=("schedule_one_epoch_late",)
    )
    steps_per_epoch = 1251  # of ImageNet in batches of 1024
    total = 300 * steps_per_epoch
    for place in (0, 1, steps_per_epoch // 2, steps_per_epoch - 1):
        rates = [learning_rate_at(epoch * steps_per_epoch + place, total, training) for epoch in range(300)]
        assert rates == pytest.approx(golden, rel=1e-6, abs=1e-12)


def _scales(name, layer_decay):
    task = nn.Module()
    task.backbone = create_model(name, patch_size=4, img_size=16, num_classes=3)
    task.decoder = nn.Linear(2, 2)
    groups = parameter_groups(task, 0.05, layer_decay)
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    assert sum(len(group["params"]) for group in groups) == len(names)
    return {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize(
    ("name", "blocks", "norm"), [("vit_test", "blocks", "norm"), ("adventurer_test", "layers", "norm_f")]
)
def test_layers_are_slowed_by_their_depth(name, blocks, norm):
    depth = len(getattr(create_model(name, patch_size=4, img_size=16), blocks))
    scales = _scales(name, 0.5)
    # Layer 0 is the embedding, i + 1 block i, depth + 1 the rest; a layer's scale is 0.5^(depth + 1 - layer).
    for embedding in ("patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "cls_token"):
        assert scales[f"backbone.{embedding}"] == 0.5 ** (depth + 1)
    for parameter, scale in scales.items():
        if parameter.startswith(f"backbone.{blocks}."):
            assert scale == 0.5 ** (depth - int(parameter.split(".")[2]))
    for after in (f"backbone.{norm}.weight", "backbone.head.weight", "decoder.weight"):
        assert scales[after] == 1


def test_layer_decay_is_applied_once():
    model = nn.Module()
    model.backbone = create_model("vit_test", patch_size=4, img_size=16, num_classes=3)
    optimizer = build_optimizer(model, TrainingConfig(steps=1, layer_decay=0.5))
    for _ in range(2):  # a second step must not decay what the first has decayed
        set_learning_rate(optimizer, 0.8)
    assert {group["lr"] for group in optimizer.param_groups} == {0.8, 0.4, 0.2, 0.1}


def test_without_layer_decay_all_learn_alike():
    optimizer = build_optimizer(nn.Linear(2, 2), TrainingConfig(steps=1))
    set_learning_rate(optimizer, 0.3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.3]


def _lamb_by_hand(weight, bias, gradients, *, lr, betas, decay, eps=1e-6):
    """Algorithm 2 of arXiv 1904.00962 with bias correction; only the decayed tensor is scaled to its norm."""
    weight, bias = weight.double(), bias.double()
    moments = [[torch.zeros_like(tensor), torch.zeros_like(tensor)] for tensor in (weight, bias)]
    for t, of_step in enumerate(gradients, start=1):
        updates = []
        for (m, v), gradient in zip(moments, of_step, strict=True):
            m.mul_(betas[0]).add_((1 - betas[0]) * gradient)
            v.mul_(betas[1]).add_((1 - betas[1]) * gradient**2)
            updates.append((m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps))
        updates[0] = updates[0] + decay * weight
        weight = weight - lr * weight.norm() / updates[0].norm() * updates[0]
        bias = bias - lr * updates[1]
    return weight, bias


def test_lamb_agrees_with_its_paper():
    torch.manual_seed(0)
    layer = nn.Linear(5, 3).double()
    training = TrainingConfig(steps=3, optimizer="lamb", learning_rate=0.01, weight_decay=0.1, betas=(0.8, 0.95))
    optimizer = build_optimizer(layer, training)
    gradients = [(10 * torch.randn(3, 5).double(), 10 * torch.randn(3).double()) for _ in range(3)]
    expected = _lamb_by_hand(
        layer.weight.detach(), layer.bias.detach(), gradients, lr=0.01, betas=(0.8, 0.95), decay=0.1
    )
    for weight, bias in gradients:
        layer.weight.grad, layer.bias.grad = weight, bias
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), expected[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(layer.bias.detach(), expected[1], rtol=1e-9, atol=1e-12)


def test_a_run_with_lamb_resumes_bit_for_bit(make_run):
    settings = ("training.optimizer=lamb", "training.layer_decay=0.7", "execution.checkpoint_every_s=0")
    whole, broken = make_run(*settings), make_run(*settings, study="broken")
    run_training(whole)
    with pytest.raises(Interrupted):
        run_training(broken, progress=_StopAt(5))
    run_training(broken)
    assert outcome(broken) == outcome(whole)


class _StopAt(Watcher):
    def __init__(self, step):
        self.step = step

    def step_done(self, step, steps, loss):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
