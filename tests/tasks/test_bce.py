"""Binary cross-entropy for classification: DeiT III's loss."""

import math

import pytest
import torch
from timm.data import Mixup
from torch import nn

from patchscale.config import build_config
from patchscale.errors import UserError
from patchscale.tasks.classification import ClassificationTask


class _Fixed(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))

    def forward(self, images):
        return self.logits[: len(images)]


def _softplus(x):
    return math.log1p(math.exp(x))


LOGITS = [[2.0, -1.0, 0.5], [-0.5, 1.5, 3.0]]


def test_classes_are_one_yes_among_noes():
    loss = ClassificationTask(_Fixed(LOGITS), 3, loss="bce")(torch.zeros(2, 3, 4, 4), torch.tensor([0, 2]))["loss"]
    # -log sigmoid(x) = softplus(-x) for a yes, softplus(x) for a no; the mean over images and classes.
    terms = [_softplus(-2.0), _softplus(-1.0), _softplus(0.5), _softplus(-0.5), _softplus(1.5), _softplus(-3.0)]
    assert loss.item() == pytest.approx(sum(terms) / 6, rel=1e-12)


def test_every_class_of_a_mixed_image_is_a_whole_yes():
    mixed = torch.tensor([[0.9, 0.0, 0.1], [0.0, 1.0, 0.0]])
    loss = ClassificationTask(_Fixed(LOGITS), 3, loss="bce")(torch.zeros(2, 3, 4, 4), mixed)["loss"]
    terms = [_softplus(-2.0), _softplus(-1.0), _softplus(-0.5), _softplus(-0.5), _softplus(-1.5), _softplus(3.0)]
    assert loss.item() == pytest.approx(sum(terms) / 6, rel=1e-12)


def test_it_is_the_loss_of_timm_with_its_threshold_at_0():
    from timm.loss import BinaryCrossEntropy

    torch.manual_seed(0)
    logits = torch.randn(8, 5)
    images, targets = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=5)(
        torch.randn(8, 3, 4, 4), torch.arange(8) % 5
    )
    expected = BinaryCrossEntropy(smoothing=0.0, target_threshold=0.0)(logits, targets)
    task = ClassificationTask(_Fixed(logits.tolist()), 5, loss="bce")
    assert task(images, targets)["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_meter_still_measures_cross_entropy():
    meter = ClassificationTask(_Fixed(LOGITS), 3, loss="bce").new_meter()
    meter.update(torch.tensor(LOGITS), torch.tensor([0, 2]))
    expected = nn.functional.cross_entropy(torch.tensor(LOGITS), torch.tensor([0, 2])).item()
    assert meter.compute()["loss"] == pytest.approx(expected)


def test_mixup_folds_the_smoothing_into_its_targets():
    _, targets = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=10)(
        torch.randn(4, 3, 4, 4), torch.arange(4)
    )
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(targets.min(dim=1).values, torch.full((4,), 0.1 / 10))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["training.loss=bce", "training.label_smoothing=0.1"], "smoothing would make all of them true"),
        (["task=segmentation", "training.loss=bce"], "training.loss='bce' applies to classification only"),
    ],
)
def test_what_is_refused(settings, words):
    with pytest.raises(UserError, match=words):
        build_config({}, settings)


def test_a_run_learns_with_it_and_mixup(make_run_of_bce):
    result = make_run_of_bce()
    assert result["train_loss"] < 0.5  # ten classes at the start: log 2


@pytest.fixture
def make_run_of_bce(tmp_path):
    from patchscale.runs.record import RunDirectory
    from patchscale.training.loop import run_training

    def make():
        config = build_config(
            {
                "model": {"name": "vit_test", "patch_size": 8, "img_size": 16},
                "data": {"name": "scenes", "train_images": 32, "val_images": 4, "test_images": 4},
                "training": {"steps": 100, "batch_size": 8, "loss": "bce", "mixup": 0.8, "cutmix": 1.0},
                "execution": {"device": "cpu", "num_threads": 1},
            },
        )
        return run_training(RunDirectory.create(tmp_path, "s", config))

    return make
