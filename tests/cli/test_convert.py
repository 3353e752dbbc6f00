"""The verb convert: real files in, files out that load, and what it says."""

import json
import os
from pathlib import Path

import pytest
import torch

from patchscale.models.checkpoints import load_model, save_model
from patchscale.models.convert import convert
from patchscale.models.registry import create_model


def adventurer(**options):
    torch.manual_seed(0)
    return create_model("adventurer_test", **({"patch_size": 8, "img_size": 32, "num_classes": 3} | options))


def released_file(path="base.pth", **entries):
    torch.save({"model": adventurer().state_dict(), "epoch": 1, **entries}, path)
    return path


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_released_file_at_a_finer_patch(call):
    released_file()
    code, out, err = call("convert", "base.pth", "--output", "p1.safetensors", "--patch-size", 1, "--img-size", "8x16")
    assert code == 0
    assert out.splitlines()[:3] == [
        "tensor\told shape\tnew shape\tmethod",
        "patch_embed.proj.weight\t32x3x8x8\t32x3x1x1\tarea",
        "pos_embed\t1x17x32\t1x129x32\tbicubic_antialias",
    ]
    assert "100.00% of the answer to one colour is left" in out
    assert "base.pth -> p1.safetensors: model adventurer_test" in err
    assert "flip_schedule released" in err
    model = load_model("p1.safetensors")
    assert (model.patch_size, model.img_size, model.flip_schedule) == (1, (8, 16), "released")
    assert same(model, convert(adventurer(), patch_size=1, img_size=(8, 16))[0])


def test_without_a_new_size_it_writes_safetensors(call):
    released_file(model_ema={f"module.{name}": 2 * tensor for name, tensor in adventurer().state_dict().items()})
    code, out, _ = call("convert", "base.pth", "-o", "same.safetensors", "--flip-schedule", "alternate")
    assert (code, out) == (0, "nothing resampled, all weights as they were\n")
    assert same(load_model("same.safetensors"), adventurer())
    assert load_model("same.safetensors").flip_schedule == "alternate"
    assert call("convert", "base.pth", "-o", "ema.safetensors", "--ema")[0] == 0
    assert torch.equal(load_model("ema.safetensors").norm_f.weight, 2 * adventurer().norm_f.weight)


def test_json_and_the_released_quirk(call):
    released_file()
    arguments = ["convert", "base.pth", "-o", "quirk.safetensors", "--img-size", 64, "--quirk", "--json"]
    code, out, _ = call(*arguments)
    report = json.loads(out)
    assert code == 0
    assert report["response_error"] == 0
    assert report["resampled"] == [
        {"name": "pos_embed", "old_shape": [1, 17, 32], "new_shape": [1, 65, 32], "method": "bicubic, as released"}
    ]
    assert report["model"]["img_size"] == 64
    assert same(load_model("quirk.safetensors"), convert(adventurer(), img_size=64, quirk=True)[0])


def test_a_timm_model_by_its_name(call):
    model = create_model("test_vit", patch_size=16, img_size=32, num_classes=2)
    torch.save(model.state_dict(), "timm.pth")
    code, _, said = call("convert", "timm.pth", "-o", "small.safetensors", "--model", "test_vit", "--patch-size", 8)
    assert code == 0, said
    assert same(load_model("small.safetensors"), convert(model, patch_size=8)[0])


def test_an_output_is_replaced_only_if_asked(call):
    released_file()
    assert call("convert", "base.pth", "-o", "a.safetensors")[0] == 0
    code, _, said = call("convert", "base.pth", "-o", "a.safetensors", "--patch-size", 4)
    assert code == 2
    assert "a.safetensors: exists; give another --output, or --force to replace it" in said
    assert load_model("a.safetensors").patch_size == 8
    assert call("convert", "base.pth", "-o", "a.safetensors", "--patch-size", 4, "--force")[0] == 0
    assert load_model("a.safetensors").patch_size == 4


class Attack:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("arguments", "words", "prepare"),
    [
        ([], ["base.pth", "no such file"], lambda: None),
        (["--patch-size", "5"], ["patch_size=5 does not divide the 32x32 image", "use patch_size"], released_file),
        (["--img-size", "30"], ["does not divide the 30x30 image"], released_file),
        (["--img-size", "big"], ["--img-size 'big'", "give pixels"], released_file),
        (["--patch-size", "4", "--method", "lanczos"], ["'lanczos' is unknown", "area"], released_file),
        (["--flip-schedule", "sometimes"], ["'sometimes' is unknown", "released"], released_file),
        (["--model", "adventurer_tiny"], ["holds adventurer_test, not 'adventurer_tiny'"], released_file),
        (["--ema"], ["no moving average", "'model', 'epoch'"], released_file),
        ([], ["posix.system", "could run code"], lambda: released_file(args=Attack())),
        ([], ["neither a torch file"], lambda: Path("base.pth").write_text("hello")),
        (["--output", "other.pth"], ["other.pth", "safetensors"], released_file),
        (
            ["--quirk", "--img-size", "64"],
            ["quirk", "Adventurer's learned positions"],
            lambda: save_model(create_model("vit_test", patch_size=8, img_size=32), "base.pth"),
        ),
    ],
)
def test_a_mistake_is_one_clear_line(arguments, words, prepare, call, tmp_path):
    prepare()
    code, out, said = call("convert", "base.pth", "--output", "new.safetensors", *arguments)
    assert code == 2
    assert not out
    assert [line.startswith("error: ") for line in said.splitlines()] == [True]
    for word in words:
        assert word in said
    assert {path.name for path in tmp_path.iterdir()} <= {"base.pth"}
