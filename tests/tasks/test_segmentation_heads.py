"""Heads of segmentation in training and evaluation: every stride, rectangles, both architectures, one image."""

import pytest
import torch

from patchscale.config import build_config
from patchscale.costs.counts import count
from patchscale.data.datasets import load_splits
from patchscale.errors import UserError
from patchscale.runs.record import RunDirectory
from patchscale.tasks import build_task
from patchscale.training.evaluate import evaluate
from patchscale.training.evaluate_file import load_file
from patchscale.training.loop import run_training


def config_of(head, model="vit_test", *, patch_size=8, img_size=32, **more):
    return build_config(
        {
            "task": "segmentation",
            "head": head,
            "model": {"name": model, "patch_size": patch_size, "img_size": img_size},
            "data": {"name": "scenes", "train_images": 8, "val_images": 4, "test_images": 4, "augment": "none"},
            **more,
        }
    )


def built(config):
    splits = load_splits(config)
    torch.manual_seed(0)
    return build_task(config, splits), splits


@pytest.mark.parametrize("model", ["vit_test", "adventurer_test"])
@pytest.mark.parametrize("head", ["linear", "upernet_nano"])
@pytest.mark.parametrize(
    ("patch_size", "img_size"),
    [(64, [64, 128]), (32, [64, 32]), (16, [32, 48]), (14, [28, 42]), (8, 32), (4, [16, 24]), (2, [16, 18]), (1, 16)],
)
def test_every_stride_trains_on_one_image(head, model, patch_size, img_size):
    config = config_of(head, model, patch_size=patch_size, img_size=img_size)
    task, splits = built(config)
    image, target = splits.train[0, 0]
    out = task(image[None], target[None])
    assert out["logits"].shape == (1, splits.num_classes, *target.shape)
    out["loss"].backward()
    frozen = [name for name, each in task.named_parameters() if each.grad is None or not each.grad.isfinite().all()]
    assert frozen == [] or all("cls_token" in name or "norm" in name for name in frozen), frozen


@pytest.mark.parametrize("head", ["upernet", "upernet_192", "upernet_nano"])
def test_parameters_are_those_that_are_priced(head):
    config = config_of(head, "vit_nano", patch_size=4)
    task, splits = built(config)
    counts = count(
        "vit_nano", patch_size=4, img_size=32, num_classes=splits.num_classes, task="segmentation", head=head
    )
    assert sum(each.numel() for each in task.parameters()) == counts.params_total


def test_an_image_is_segmented_alike_alone_and_in_a_batch():
    """A norm over the batch would tell: in training mode too each image stands for itself."""
    task, splits = built(config_of("upernet_nano"))
    images, targets = (torch.stack(each) for each in zip(*(splits.train[0, k] for k in range(3)), strict=True))
    for module in (task.train(), task.eval()):
        together = module(images, targets)["logits"]
        alone = torch.cat([module(images[[k]], targets[[k]])["logits"] for k in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_upernet_learns_what_it_is_shown():
    task, splits = built(config_of("upernet_nano", "vit_nano"))
    images, targets = (torch.stack(each) for each in zip(*(splits.train[0, k] for k in range(8)), strict=True))
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(50):
        loss = task(images, targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_protocol_names_the_head_and_the_row_has_every_class():
    task, splits = built(config_of("upernet_nano"))
    assert task.eval_protocol == "whole scene; upernet_nano head, bilinear logits"
    outcome = evaluate(task, splits.test, batch_size=2, device=torch.device("cpu"))
    assert 0 <= outcome["metric"] <= outcome["mean_accuracy"] <= 1
    assert len(outcome["class_accuracy"]) == splits.num_classes


def test_a_head_of_another_task_is_one_line():
    with pytest.raises(UserError) as caught:
        config_of("mask_rcnn")
    assert "head='mask_rcnn' is not one for segmentation; choose one of linear, upernet" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_upernet_does_not_go_with_shared_images():
    with pytest.raises(UserError, match="use head=linear, or set execution"):
        config_of("upernet", execution={"sequence_parallel": 2})


def test_a_pyramid_for_another_patch_size_is_named(tmp_path):
    config = config_of("upernet_nano", training={"steps": 1, "batch_size": 2, "num_validations": 1})
    run = RunDirectory.create(tmp_path, "s", config)
    run_training(run)
    path = run.checkpoint_dir / "model.safetensors"
    assert load_file(path, config, img_size=64).task.num_classes == 11
    with pytest.raises(UserError, match="built otherwise than upernet_nano at 4 px patches, whose pyramid follows"):
        load_file(path, config, patch_size=4)
