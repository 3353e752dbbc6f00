"""Tasks learn, their losses are cross-entropy, their meters count exactly."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score
from torch.nn import functional as F

from patchscale.config import RunConfig, build_config
from patchscale.data.datasets import Splits, load_splits
from patchscale.tasks import TASKS, build_task
from patchscale.tasks.classification import ClassificationMeter, ClassificationTask
from patchscale.tasks.segmentation import SegmentationMeter, SegmentationTask

DENSE_LOGITS = [name for name in TASKS if name != "detection"]
"""Tasks with a logit for each class; the other one has tests of its own, in test_detection.py."""


def config_of(
    task: str, model: str = "vit_test", *, patch_size: int = 8, img_size: Any = 32, **training: Any
) -> RunConfig:
    return build_config(
        {
            "task": task,
            "model": {"name": model, "patch_size": patch_size, "img_size": img_size},
            "data": {"name": "scenes", "train_images": 16, "val_images": 4, "test_images": 4, "augment": "none"},
            "training": {"steps": 30, **training},
        }
    )


def batch_of(splits: Splits, count: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    images, targets = zip(*(splits.train[0, k] for k in range(count)), strict=True)
    return torch.stack(images), torch.stack(targets)


@pytest.mark.parametrize("model", ["vit_test", "adventurer_test"])
@pytest.mark.parametrize("task_name", DENSE_LOGITS)
@pytest.mark.parametrize(("patch_size", "img_size"), [(8, 32), (16, [32, 48]), (1, 16)])
def test_every_task_trains_every_model(task_name: str, model: str, patch_size: int, img_size: Any) -> None:
    config = config_of(task_name, model, patch_size=patch_size, img_size=img_size)
    splits = load_splits(config)
    task = build_task(config, splits)
    images, targets = batch_of(splits, 2)
    out = task(images, targets)
    shape = targets.shape[1:] if task_name == "segmentation" else ()
    assert out["logits"].shape == (2, splits.num_classes, *shape)
    assert out["loss"].shape == ()
    # Fresh models know nothing.
    assert out["loss"].item() == pytest.approx(np.log(splits.num_classes), rel=0.3)
    out["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters() if p.requires_grad)


@pytest.mark.parametrize("task_name", DENSE_LOGITS)
def test_the_loss_falls_in_thirty_steps(task_name: str) -> None:
    config = config_of(task_name)
    splits = load_splits(config)
    torch.manual_seed(0)
    task = build_task(config, splits)
    images, targets = batch_of(splits)
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = task(images, targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("task_name", list(TASKS))
def test_tasks_describe_themselves(task_name: str) -> None:
    config = config_of(task_name)
    task = build_task(config, load_splits(config))
    assert task.metric_name == {"classification": "top1", "segmentation": "mIoU", "detection": "box_ap"}[task_name]
    assert task.eval_protocol.startswith("whole scene")
    coarse = config_of(task_name, patch_size=16)
    assert build_task(coarse, load_splits(coarse)).eval_protocol == task.eval_protocol


@pytest.mark.parametrize("task_name", list(TASKS))
def test_weights_follow_from_torchs_generator(task_name: str) -> None:
    config = config_of(task_name)
    splits = load_splits(config)
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(torch.cat([p.flatten() for p in build_task(config, splits).state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


# --- classification


class Table(torch.nn.Module):
    """A backbone whose outputs are given beforehand."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = torch.nn.Parameter(output)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.output

    forward_feature_map = forward


def test_smoothing_and_soft_targets() -> None:
    logits = torch.randn(6, 4)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    images = torch.zeros(6, 3, 2, 2)
    task = ClassificationTask(Table(logits), 4, label_smoothing=0.1)
    hard = task(images, labels)["loss"]
    smooth = 0.9 * F.one_hot(labels, 4) + 0.1 / 4
    expected = -(smooth * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(hard.detach(), expected)
    # Mixing hands over probabilities that are smoothed already: they are taken as they are.
    torch.testing.assert_close(task(images, smooth)["loss"], hard)
    one_hot = task(images, F.one_hot(labels, 4).float())["loss"]
    torch.testing.assert_close(one_hot.detach(), F.cross_entropy(logits, labels))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(2, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_classification_meter_equals_sklearn(images: int, classes: int, batch_size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(images, classes, generator=generator)
    labels = torch.randint(classes, (images,), generator=generator)
    meter = ClassificationMeter(classes)
    for start in range(0, images, batch_size):
        meter.update(logits[start : start + batch_size], labels[start : start + batch_size])
    measured = meter.compute()
    assert measured["metric"] == accuracy_score(labels, logits.argmax(1))
    expected = log_loss(labels, logits.double().softmax(1).numpy(), labels=range(classes))
    assert measured["loss"] == pytest.approx(expected, rel=1e-5, abs=1e-6)  # float32 rounds at the logits
    assert ("top5" in measured) == (classes > 5)
    if classes > 5:
        assert measured["top5"] == top_k_accuracy_score(labels, logits.numpy(), k=5, labels=range(classes))
    found = logits.argmax(1) == labels
    by_class = [found[labels == label] for label in range(classes)]
    assert measured["class_top1"] == [of.double().mean().item() if len(of) else None for of in by_class]


def test_the_metered_loss_is_not_smoothed_and_counts_in_float32() -> None:
    logits = torch.randn(8, 3)
    labels = torch.randint(3, (8,))
    task = ClassificationTask(Table(logits), 3, label_smoothing=0.3)
    meter = task.new_meter()
    meter.update(logits.bfloat16(), labels)
    assert meter.compute()["loss"] == pytest.approx(F.cross_entropy(logits.bfloat16().float(), labels).item())


def test_classes_out_of_range() -> None:
    task = ClassificationTask(Table(torch.zeros(2, 4)), 4)
    for wrong in (4, -1, -100):
        targets = torch.tensor([0, wrong])
        with pytest.raises(ValueError, match=f"target {wrong} with 4 classes; expected 0 to 3"):
            task(torch.zeros(2, 3, 2, 2), targets)
        with pytest.raises(ValueError, match=f"target {wrong} with 4 classes"):
            task.new_meter().update(torch.zeros(2, 4), targets)


def test_meters_without_data() -> None:
    with pytest.raises(ValueError, match="no images were evaluated"):
        ClassificationMeter(3).compute()
    with pytest.raises(ValueError, match="no labelled pixels were evaluated"):
        SegmentationMeter(3).compute()


# --- segmentation


def counted(
    logits: np.ndarray, labels: np.ndarray, ignore: int | None
) -> tuple[float, float, list[float | None], float]:
    """mIoU, accuracy, IoU by class and loss, pixel by pixel in plain Python."""
    classes = logits.shape[1]
    hits, wrongly, missed = [0] * classes, [0] * classes, [0] * classes
    loss = 0.0
    for b, y, x in itertools.product(*map(range, labels.shape)):
        true = int(labels[b, y, x])
        if true == ignore:
            continue
        scores = logits[b, :, y, x].astype(np.float64)
        predicted = int(scores.argmax())
        loss += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[true]
        if predicted == true:
            hits[true] += 1
        else:
            wrongly[predicted] += 1
            missed[true] += 1
    unions = [h + w + m for h, w, m in zip(hits, wrongly, missed, strict=True)]
    ious = [h / u if u else None for h, u in zip(hits, unions, strict=True)]
    present = [iou for iou in ious if iou is not None]
    pixels = sum(hits) + sum(missed)
    return sum(present) / len(present), sum(hits) / pixels, ious, loss / pixels


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(2, 6),
    st.integers(1, 3),
    st.sampled_from([None, 255]),
    st.integers(1, 6),
    st.integers(0, 10**6),
)
def test_miou_equals_an_independent_count(
    images: int, classes: int, batch_size: int, ignore: int | None, used: int, seed: int
) -> None:
    """`used` classes occur, so that some are often absent from labels, predictions or both."""
    rng = np.random.default_rng(seed)
    used = min(used, classes)
    logits = rng.normal(size=(images, classes, 3, 4)).astype(np.float32)
    logits[:, used:] -= 100 * (rng.random() < 0.5)
    labels = rng.integers(0, used, (images, 3, 4))
    if ignore is not None:
        labels[rng.random(labels.shape) < 0.3] = ignore
        labels[0, 0, 0] = 0
    meter = SegmentationMeter(classes, ignore)
    for start in range(0, images, batch_size):
        meter.update(
            torch.from_numpy(logits[start : start + batch_size]), torch.from_numpy(labels[start : start + batch_size])
        )
    measured = meter.compute()
    miou, accuracy, ious, loss = counted(logits, labels, ignore)
    assert measured["metric"] == pytest.approx(miou, abs=1e-12)
    assert measured["pixel_accuracy"] == accuracy
    assert measured["class_iou"] == ious
    assert measured["loss"] == pytest.approx(loss, rel=1e-5)

    labelled = labels != (-1 if ignore is None else ignore)
    matrix = confusion_matrix(labels[labelled], logits.argmax(1)[labelled], labels=range(classes))
    np.testing.assert_array_equal(meter.confusion.numpy(), matrix)


def test_miou_is_of_the_data_set_not_the_mean_of_images() -> None:
    """Image 1 has one pixel of class 1 and misses it, image 2 has three and finds them: IoU 3/4, not (0 + 1) / 2."""
    labels = torch.tensor([[[0, 0, 0, 1]], [[1, 1, 1, 0]]])
    logits = F.one_hot(torch.tensor([[[0, 0, 0, 0]], [[1, 1, 1, 0]]]), 2).movedim(-1, 1).float()
    meter = SegmentationMeter(2)
    meter.update(logits, labels)
    assert meter.compute()["class_iou"] == [4 / 5, 3 / 4]
    assert meter.compute()["metric"] == pytest.approx((4 / 5 + 3 / 4) / 2)


def segmentation_task(features: torch.Tensor, classes: int, **options: Any) -> SegmentationTask:
    return SegmentationTask(Table(features), classes, num_features=features.shape[1], **options)


def test_logits_are_one_linear_layer_enlarged_bilinearly() -> None:
    features = torch.randn(2, 5, 3, 4)
    task = segmentation_task(features, 7)
    out = task(torch.zeros(2, 3, 24, 32), torch.zeros(2, 24, 32, dtype=torch.int64))
    small = torch.einsum("bdhw,kd->bkhw", features, task.head.weight) + task.head.bias[:, None, None]
    expected = F.interpolate(small, size=(24, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(out["logits"], expected)
    assert sum(p.numel() for p in task.head.parameters()) == 5 * 7 + 7


def test_ignored_pixels_count_for_nothing() -> None:
    features = torch.randn(1, 5, 2, 2)
    task = segmentation_task(features, 3, ignore_index=255, label_smoothing=0.1)
    images = torch.zeros(1, 3, 4, 4)
    labels = torch.randint(3, (1, 4, 4))
    labels[0, :2] = 255
    out = task(images, labels)
    expected = F.cross_entropy(out["logits"], labels, ignore_index=255, label_smoothing=0.1)
    torch.testing.assert_close(out["loss"], expected)
    assert float(task(images, torch.full_like(labels, 255))["loss"].detach()) == 0.0


def test_a_label_that_does_not_exist_raises_unless_it_is_the_ignored_one() -> None:
    images, labels = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[0, 1, 2] = 255
    with pytest.raises(ValueError, match="target 255 with 3 classes; expected 0 to 2"):
        segmentation_task(torch.zeros(1, 5, 2, 2), 3)(images, labels)
    with pytest.raises(ValueError, match="target 255 with 3 classes"):
        SegmentationMeter(3).update(torch.zeros(1, 3, 4, 4), labels)
    task = segmentation_task(torch.zeros(1, 5, 2, 2), 3, ignore_index=255)
    task(images, labels)
    labels[0, 0, 0] = 3
    with pytest.raises(ValueError, match="target 3 with 3 classes"):
        task(images, labels)
