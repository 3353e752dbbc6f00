"""`patchscale eval`: runs and files of weights, at their own sizes and at others."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchscale.config import build_config
from patchscale.data.datasets import load_splits
from patchscale.models.checkpoints import load_model, save_model
from patchscale.models.convert import convert
from patchscale.models.registry import create_model
from patchscale.runs.record import RunDirectory
from patchscale.tasks import build_task
from patchscale.training.evaluate import evaluate
from patchscale.training.evaluate_file import LARGEST_BATCH

TINY = shlex.split(
    "train --model vit_test --patch-size 8 --img-size 16 --steps 4 data.train_images=40 data.val_images=8 "
    "data.test_images=8 training.batch_size=8 execution.device=cpu"
)
SCENES = ["data.name=scenes", "data.train_images=4", "data.val_images=4", "data.test_images=12"]


def the_run():
    (path,) = Path("runs/default").iterdir()
    return RunDirectory(path)


def measured_directly(model, *settings, task="classification"):
    """Loss and metric of a backbone with its own head on the test split."""
    sizes = {"name": "vit_test", "patch_size": model.patch_size, "img_size": list(model.img_size)}
    config = build_config({"task": task, "model": sizes}, settings)
    splits = load_splits(config)
    whole = build_task(config, splits)
    whole.backbone = model
    found = evaluate(whole, splits.test, batch_size=4, device=torch.device("cpu"))
    return {"metric": found["metric"], "loss": pytest.approx(found["loss"], rel=1e-6)}


def test_eval_repeats_the_numbers_of_the_run(call):
    call(*TINY)
    run = the_run()
    result = run.result()
    code, out, _ = call("eval", str(run.path), "--json")
    assert code == 0
    test = json.loads(out)
    assert (test["split"], test["images"]) == ("test", 8)
    assert (test["metric"], test["loss"]) == (result["metric"], result["test_loss"])
    val = json.loads(call("eval", str(run.path), "--split", "val", "--json")[1])
    assert (val["metric"], val["loss"]) == (result["val_metric"], result["val_loss"])
    assert "metric_name\ttop1" in call("eval", str(run.path))[1]


def test_eval_takes_as_many_images_as_the_run_on_the_same_kind_of_device(call, monkeypatch):
    from patchscale.training import evaluate

    sizes, original = [], evaluate.evaluate

    def noted(*arguments, batch_size, **options):
        sizes.append(batch_size)
        return original(*arguments, batch_size=batch_size, **options)

    call(*TINY, "execution.micro_batch_size=3")
    run = the_run()
    monkeypatch.setattr(evaluate, "evaluate", noted)
    call("eval", str(run.path), "--device", "cpu")
    environment = run.read_json("environment.json")
    environment["attempts"][-1]["device"] = "cuda"
    run.write_json("environment.json", environment)
    call("eval", str(run.path), "--device", "cpu")
    assert sizes == [3, LARGEST_BATCH]


def test_eval_of_an_unfinished_run_says_how_to_finish_it(call):
    call(*TINY, "training.learning_rate=1e30", "training.steps=40")
    path = the_run().path
    code, _, err = call("eval", str(path))
    assert code == 2
    assert f"no final weights (the run is failed); finish it with: patchscale train --run-dir {path}" in err


def test_eval_of_a_run_does_not_need_what_it_started_from(call):
    """Neither the file, nor a reason for a quirk of starting from one."""
    torch.manual_seed(0)
    save_model(create_model("adventurer_test", patch_size=8, img_size=32, num_classes=10), "start.safetensors")
    more = ["training.init_from=start.safetensors", "training.quirks=[positions_one_row_off]"]
    assert call(*TINY, "--model", "adventurer_test", *more)[0] == 0
    Path("start.safetensors").unlink()
    result = the_run().result()
    code, out, err = call("eval", str(the_run().path), "--json")
    assert code == 0, err
    assert json.loads(out)["loss"] == result["test_loss"]


def test_a_file_of_weights_is_evaluated_at_any_size(call):
    torch.manual_seed(0)
    save_model(create_model("vit_test", patch_size=8, img_size=16, num_classes=10), "w.safetensors")
    code, out, err = call("eval", "--checkpoint", "w.safetensors", *SCENES, "--json", "--device", "cpu")
    assert code == 0, err
    row = json.loads(out)
    model = load_model("w.safetensors")
    assert {name: row[name] for name in ("metric", "loss")} == measured_directly(model, *SCENES)
    assert (row["model"], row["patch_size"], row["img_size"], row["images"]) == ("vit_test", 8, "16x16", 12)
    assert row["resampled"] == []
    assert row["eval_protocol"] == "whole scene"

    sizes = ["--patch-size", "4", "--img-size", "16x32"]
    code, out, err = call("eval", "--checkpoint", "w.safetensors", *sizes, *SCENES, "--json", "--device", "cpu")
    assert code == 0, err
    row = json.loads(out)
    new, report = convert(model, patch_size=4, img_size=(16, 32))
    assert {name: row[name] for name in ("metric", "loss")} == measured_directly(new.eval(), *SCENES)
    assert row["resampled"] == [str(tensor) for tensor in report.resampled] != []
    assert (row["patch_size"], row["img_size"]) == (4, "16x32")


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_a_run_is_evaluated_at_another_patch_size_with_its_own_head(call, task):
    call(*TINY, f"task={task}")
    run = the_run()
    own = json.loads(call("eval", str(run.path), "--json")[1])
    assert own["loss"] == run.result()["test_loss"]
    code, out, err = call("eval", str(run.path), "--patch-size", "4", "--json", "--split", "all")
    assert code == 0, err
    row = json.loads(out)
    assert (row["run_id"], row["patch_size"], row["images"]) == (run.path.name, 4, 40 + 8 + 8)
    assert any(tensor.startswith("patch_embed.proj.weight: ") for tensor in row["resampled"])
    assert row["loss"] != own["loss"]


def test_classes_are_measured_one_by_one(call):
    call(*TINY)
    run = the_run()
    row = json.loads(call("eval", str(run.path), "--json", "--per-class")[1])
    names = load_splits(run.config()).class_names
    assert [of["class"] for of in row["classes"]] == names
    assert [of["class_top1"] for of in row["classes"]] == run.result()["test_class_top1"]
    assert row["top5"] == run.result()["test_top5"]
    lines = call("eval", str(run.path), "--per-class")[1].splitlines()
    assert lines[-len(names) - 1] == "class\tclass_top1"
    assert "classes" not in json.loads(call("eval", str(run.path), "--json")[1])


def photos(folder):
    """Two classes of 24 x 20 pixels whose borders differ, in folders of the published form."""
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            for number in range(4):
                pixels = random.integers(0, 255, (24, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")


def test_the_crop_is_chosen_and_recorded(call, tmp_path):
    photos(tmp_path / "photos")
    torch.manual_seed(0)
    save_model(create_model("vit_test", patch_size=8, img_size=16, num_classes=2), "w.safetensors")
    given = ["--checkpoint", "w.safetensors", "data.name=image_folder", "data.root=photos", "--json"]
    rows = [json.loads(call("eval", *given, *more)[1]) for more in ([], ["--crop-ratio", "1"], ["--crop-ratio", "0.7"])]
    ratios = ("0.875", "1", "0.7")
    assert [row["eval_protocol"] for row in rows] == [f"centre crop, ratio {ratio}" for ratio in ratios]
    assert len({row["loss"] for row in rows}) == 3
    assert all(row["images"] == 8 for row in rows)


def test_weights_see_images_normalised_as_in_their_training(call):
    torch.manual_seed(0)
    model = create_model("vit_test", patch_size=8, img_size=16, num_classes=10)
    save_model(model, "w.safetensors")
    # The same answers from ImageNet's normalisation: its inverse in the patch embedding.
    with torch.no_grad():
        embed = model.patch_embed.proj
        scale = torch.tensor([0.229, 0.224, 0.225]) / 0.5
        shift = (torch.tensor([0.485, 0.456, 0.406]) - 0.5) / 0.5
        embed.bias += (embed.weight * shift[:, None, None]).sum((1, 2, 3))
        embed.weight *= scale[:, None, None]
    code, out, err = call("eval", "--checkpoint", "w.safetensors", *SCENES, "--normalisation", "inception", "--json")
    assert code == 0, err
    expected = measured_directly(model.eval(), *SCENES)
    assert json.loads(out)["loss"] == pytest.approx(expected["loss"].expected, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give one of a run's directory and --checkpoint FILE"),
        (["runs", "--checkpoint", "w.safetensors"], "give one of a run's directory and --checkpoint FILE"),
        (["runs", "--split", "train"], "--split 'train': choose val, test or all"),
        (["--checkpoint", "w.safetensors"], "name the data: data.name=image_folder data.root=DIR"),
        (["--checkpoint", "w.safetensors", "model.patch_size=4", *SCENES], "sizes are --patch-size and --img-size"),
        (["--checkpoint", "absent.pth", *SCENES], "absent.pth: no such file"),
        (["--checkpoint", "w.safetensors", *SCENES], "has a head for 3 classes, scenes has 10 classes"),
        (["--checkpoint", "w.safetensors", "task=segmentation", *SCENES], "has no head for segmentation"),
        (["--checkpoint", "w.safetensors", *SCENES, "--patch-size", "5"], "5"),
        (["--checkpoint", "w.safetensors", *SCENES, "--batch-size", "0"], "--batch-size 0: at least 1"),
        (["--checkpoint", "w.safetensors", *SCENES, "--normalisation", "clip"], "choose imagenet, inception"),
    ],
)
def test_mistakes_are_one_line(call, arguments, words):
    save_model(create_model("vit_test", patch_size=8, img_size=16, num_classes=3), "w.safetensors")
    code, out, err = call("eval", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1
