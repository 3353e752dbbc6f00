"""Files of weights, read for real: published layouts, our own, and what must not be read."""

import argparse
import errno
import os
import pathlib
import pickle
import re
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from tests.models.conftest import expected, fill_adventurer, golden, wave_images
from torch import nn

import patchscale as ps
from patchscale.errors import UserError
from patchscale.models.adventurer import Adventurer
from patchscale.models.checkpoints import describe, load_checkpoint, load_model, save_model
from patchscale.models.registry import create_model
from patchscale.models.weights import read_weights, write_safetensors

SIZES = {"patch_size": 4, "img_size": 16, "num_classes": 5}


def build(name: str = "adventurer_test", **options: Any) -> nn.Module:
    return create_model(name, **(SIZES | options))


def released_file(path: Path, source: nn.Module, **entries: Any) -> Path:
    """What the published training scripts write: settings with a path, a best score of NumPy, an optimizer."""
    optimizer = torch.optim.AdamW(source.parameters())
    settings = argparse.Namespace(
        lr=5e-4, output_dir=pathlib.Path("runs/base"), input_size=224, device=torch.device("cuda")
    )
    torch.save(
        {
            "model": source.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": 299,
            "args": settings,
            "max_accuracy": np.float64(82.5),
            "best_epoch": np.int64(297),
            **entries,
        },
        path,
    )
    return path


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def untouched(model: nn.Module) -> Any:
    """Call to see that the model is as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return lambda: all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# The released layout


@pytest.mark.parametrize("ref", golden()["adventurer"], ids=lambda ref: f"d{ref['embed_dim']}-p{ref['patch_size']}")
def test_a_released_file_gives_the_released_logits(ref: dict[str, Any], tmp_path: Path) -> None:
    sizes = {name: ref[name] for name in ("embed_dim", "depth", "img_size", "patch_size", "num_classes")}
    source = Adventurer(**sizes).double()
    fill_adventurer(source)
    model = load_model(released_file(tmp_path / "base.pth", source))
    assert not model.training
    with torch.no_grad():
        logits = model(wave_images(ref["batch"], ref["img_size"]))
    torch.testing.assert_close(logits, expected(ref["logits"]["released"]), rtol=0, atol=1e-8)
    other = load_model(tmp_path / "base.pth", flip_schedule="alternate")
    with torch.no_grad():
        logits = other(wave_images(ref["batch"], ref["img_size"]))
    torch.testing.assert_close(logits, expected(ref["logits"]["alternate"]), rtol=0, atol=1e-8)


def test_prefixes_and_the_moving_average(tmp_path: Path) -> None:
    model, average = build(), build()
    path = released_file(
        tmp_path / "base.pth",
        model,
        model={f"module._orig_mod.{name}": tensor for name, tensor in model.state_dict().items()},
        model_ema={f"module.{name}": tensor for name, tensor in average.state_dict().items()},
    )
    assert same_weights(load_model(path), model)
    assert same_weights(load_model(path, ema=True), average)
    report = load_checkpoint(build(), path, ema=True)
    assert report.entry == "model_ema"
    with pytest.raises(UserError, match=r"no moving average in it .*'model', 'optimizer'.*looked for model_ema"):
        load_model(released_file(tmp_path / "raw.pth", model), ema=True)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrapped_models(wrap: Any, tmp_path: Path) -> None:
    model, other = build("vit_test"), build("vit_test")
    save_model(wrap(model), tmp_path / "a.safetensors")
    load_checkpoint(wrap(other), tmp_path / "a.safetensors")
    assert same_weights(other, model)
    assert same_weights(ps.convert(wrap(model), patch_size=2)[0], ps.convert(model, patch_size=2)[0])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bare_state_dict(zipped: bool, tmp_path: Path) -> None:
    model = build("vit_test")
    torch.save(model.state_dict(), tmp_path / "vit.pt", _use_new_zipfile_serialization=zipped)
    loaded = load_model(tmp_path / "vit.pt")
    assert same_weights(loaded, model)
    assert loaded.model_name == "vit_test"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["adventurer_test", "test_vit"])
def test_the_type_of_the_numbers(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """A loaded model has that of the file, at least float32; a model that is loaded into keeps its own."""
    model = build(name).to(dtype)
    save_model(model, tmp_path / "half.safetensors")
    loaded = load_model(tmp_path / "half.safetensors")
    assert loaded.cls_token.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(loaded.cls_token.to(dtype), model.cls_token)
    other = build(name)
    load_checkpoint(other, tmp_path / "half.safetensors")
    assert other.cls_token.dtype == torch.float32
    assert torch.equal(other.cls_token, model.cls_token.float())


# Our own files


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adventurer_test", {"flip_schedule": "pairs", "img_size": (8, 16)}),
        ("adventurer_test", {"pos_embed": "sincos2d", "num_classes": 0}),
        ("vit_test", {"img_size": (8, 16)}),
        ("vit_test", {"pos_embed": "sincos2d"}),
        ("deit_tiny", {}),
        ("test_vit", {}),
        ("eva02_tiny_patch14_224", {"img_size": (8, 16)}),
        ("xcit_nano_12_p16_224", {"patch_size": 8}),
    ],
)
def test_a_saved_model_comes_back(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = build(name, **options).eval()
    ps.save_model(model, tmp_path / "model.safetensors")
    loaded = ps.load_model(tmp_path / "model.safetensors")
    assert same_weights(loaded, model)
    assert describe(loaded) == describe(model)
    assert loaded.model_name == name
    images = torch.randn(2, 3, *model.img_size)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_an_adventurer_of_no_named_size_comes_back(tmp_path: Path) -> None:
    model = Adventurer(img_size=8, patch_size=4, embed_dim=64, depth=2, d_state=16, mlp_dim=100, num_classes=3)
    save_model(model, tmp_path / "own.safetensors")
    assert describe(model)["model"] is None
    loaded = load_model(tmp_path / "own.safetensors")
    assert same_weights(loaded, model)
    assert loaded.flip_schedule == "alternate"


def test_a_model_made_by_timm_is_saved_with_its_name(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=3)
    save_model(model, tmp_path / "timm.safetensors")
    assert read_weights(tmp_path / "timm.safetensors").header["model"] == "test_vit"
    assert same_weights(load_model(tmp_path / "timm.safetensors"), model)


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_the_weights_of_a_run(task: str, tmp_path: Path) -> None:
    from patchscale.config import build_config
    from patchscale.training.checkpoint import save_weights
    from patchscale.training.summary import weights_metadata

    values = {"task": task, "model": {"name": "adventurer_test", "patch_size": 4, "img_size": [8, 16]}}
    config = build_config(values)
    backbone = build(img_size=(8, 16), num_classes=5 if task == "classification" else 0)
    run = nn.Module()
    run.backbone = backbone
    if task == "segmentation":
        run.head = nn.Linear(32, 5)
    save_weights(tmp_path / "model.safetensors", run, weights_metadata(config))

    loaded = load_model(tmp_path / "model.safetensors")
    assert same_weights(loaded, backbone)
    assert loaded.flip_schedule == "alternate"
    assert loaded.img_size == (8, 16)
    report = load_checkpoint(build(img_size=(8, 16), num_classes=0), tmp_path / "model.safetensors")
    heads = {"classification": ("backbone.head.weight",), "segmentation": ("head.bias", "head.weight")}
    assert {name.removeprefix("backbone.") for name in heads[task]} <= set(report.left_out)
    with pytest.raises(UserError, match="trained with flip_schedule='alternate', the model has 'none'"):
        load_checkpoint(build(img_size=(8, 16), num_classes=0, flip_schedule="none"), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="was trained with flip_schedule='alternate', which its header says"):
        load_model(tmp_path / "model.safetensors", flip_schedule="released")


# timm's weights


def test_timm_weights_load_into_our_names(tmp_path: Path) -> None:
    source = timm.create_model("deit_tiny_patch16_224", num_classes=5).eval()
    safetensors.torch.save_file(source.state_dict(), tmp_path / "timm.safetensors")
    model = load_model(tmp_path / "timm.safetensors")
    assert model.model_name == "vit_tiny"
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model(images), source(images))
    report = load_checkpoint(build("deit_tiny", img_size=32), tmp_path / "timm.safetensors", resize=True)
    assert [tensor.name for tensor in report.resampled] == ["patch_embed.proj.weight", "pos_embed"]
    assert "resampled patch_embed.proj.weight: 192x3x16x16 -> 192x3x4x4, area" in str(report)


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch16_dinov3"])
def test_other_timm_models_need_their_name(name: str, tmp_path: Path) -> None:
    source = timm.create_model(name, num_classes=2)
    torch.save(source.state_dict(), tmp_path / "timm.pth")
    with pytest.raises(UserError, match=r"name|instead"):
        load_model(tmp_path / "timm.pth")
    assert same_weights(load_model(tmp_path / "timm.pth", name=name), source)


def test_distilled_weights(tmp_path: Path) -> None:
    source = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5)
    torch.save({"model": source.state_dict()}, tmp_path / "distilled.pth")
    model = build("deit_tiny", patch_size=16, img_size=224)
    same = untouched(model)
    with pytest.raises(UserError, match=r"distilled DeiT .dist_token, head_dist.bias.*deit_tiny_distilled_patch16_224"):
        load_checkpoint(model, tmp_path / "distilled.pth")
    assert same()
    assert same_weights(load_model(tmp_path / "distilled.pth"), source)


# Heads


def test_heads(tmp_path: Path) -> None:
    path = released_file(tmp_path / "five.pth", build())
    model = build(num_classes=3)
    same = untouched(model)
    with pytest.raises(UserError, match=r"file has 5 classes, the model 3 classes; head='new' .*num_classes=5"):
        load_checkpoint(model, path)
    assert same()
    for head in ("new", "auto"):
        model = build(num_classes=3)
        own = model.head.weight.clone()
        report = load_checkpoint(model, path, head=head)  # type: ignore[arg-type]
        assert torch.equal(model.head.weight, own)
        assert report.left_out == report.kept == ("head.bias", "head.weight")
        assert "as they were in the model: head.bias, head.weight" in str(report)
    model = build()
    own = model.head.weight.clone()
    assert load_checkpoint(model, path, head="auto").left_out == ()
    assert not torch.equal(model.head.weight, own)
    model = build()
    own = model.head.weight.clone()
    load_checkpoint(model, path, head="new")
    assert torch.equal(model.head.weight, own)
    assert load_checkpoint(build(num_classes=0), path).left_out == ("head.bias", "head.weight")
    headless = released_file(tmp_path / "none.pth", build(num_classes=0))
    with pytest.raises(UserError, match="file has no head, the model 5 classes; head='new'"):
        load_checkpoint(build(), headless)
    load_checkpoint(build(), headless, head="auto")
    with pytest.raises(UserError, match="head='drop' is unknown; choose one of keep, new, auto"):
        load_checkpoint(build(), path, head="drop")  # type: ignore[arg-type]


# Sizes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch_size": 8}, "patch 4 at 16x16 px, the model for patch 8 at 16x16 px"),
        ({"img_size": 32}, "patch 4 at 16x16 px, the model for patch 4 at 32x32 px"),
        ({"patch_size": 2, "img_size": (8, 16)}, "patch 4 at 16x16 px, the model for patch 2 at 8x16 px"),
    ],
)
@pytest.mark.parametrize("name", ["adventurer_test", "vit_test"])
def test_other_sizes_are_refused_unless_resized(name: str, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    source = build(name)
    path = released_file(tmp_path / "a.pth", source)
    model = build(name, **options)
    same = untouched(model)
    with pytest.raises(UserError, match=f"{words}; resize=True"):
        load_checkpoint(model, path)
    assert same()
    report = load_checkpoint(model, path, resize=True)
    converted, conversion = ps.convert(source, patch_size=options.get("patch_size"), img_size=model.img_size)
    assert same_weights(model, converted)
    assert report.resampled == conversion.resampled


def test_a_file_that_says_its_form_is_not_taken_for_another_of_as_many_patches(tmp_path: Path) -> None:
    source = build(img_size=(8, 32))
    save_model(source, tmp_path / "wide.safetensors")
    model = build(img_size=16)
    with pytest.raises(UserError, match="patch 4 at 8x32 px, the model for patch 4 at 16x16 px"):
        load_checkpoint(model, tmp_path / "wide.safetensors")
    load_checkpoint(model, tmp_path / "wide.safetensors", resize=True)
    assert same_weights(model, ps.convert(source, img_size=16)[0])


def test_a_table_that_is_no_square_does_not_tell_the_image_size(tmp_path: Path) -> None:
    torch.save(build(img_size=(8, 16)).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(UserError, match="9 position rows, no square and 1 more, so its image size is not told"):
        load_model(tmp_path / "wide.pth")
    with pytest.raises(UserError, match=r"its 9 position rows do not tell .*load it at its own size, then convert"):
        load_checkpoint(build(), tmp_path / "wide.pth", resize=True)
    load_checkpoint(build(img_size=(8, 16)), tmp_path / "wide.pth")


def test_fixed_and_learned_positions(tmp_path: Path) -> None:
    fixed = build(pos_embed="sincos2d")
    save_model(fixed, tmp_path / "fixed.safetensors")
    assert "pos_embed" not in read_weights(tmp_path / "fixed.safetensors").tensors
    with pytest.raises(UserError, match="no learned positions; create the model with pos_embed='sincos2d'"):
        load_checkpoint(build(), tmp_path / "fixed.safetensors")
    with pytest.raises(UserError, match="has learned positions, the model fixed ones"):
        load_checkpoint(fixed, released_file(tmp_path / "learned.pth", build()))
    other = build(pos_embed="sincos2d", img_size=32)
    with pytest.raises(UserError, match="at 16x16 px, the model for patch 4 at 32x32 px"):
        load_checkpoint(other, tmp_path / "fixed.safetensors")
    assert load_checkpoint(other, tmp_path / "fixed.safetensors", resize=True).resampled == ()
    torch.save(fixed.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(UserError, match="no position table, so its image size is not told"):
        load_model(tmp_path / "bare.pth")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = released_file(tmp_path / "a.pth", build())
    model = build("adventurer_nano")
    same = untouched(model)
    with pytest.raises(UserError, match="cls_token is 1x1x32, here 1x1x96, and 69 more differ"):
        load_checkpoint(model, path)
    assert same()
    with pytest.raises(
        UserError, match=r"not the weights of this vit_test: missing blocks.*and 22 more; unexpected lay"
    ):
        load_checkpoint(build("vit_test"), path)
    with pytest.raises(UserError, match="holds adventurer_test, not 'adventurer_tiny'"):
        load_model(path, name="adventurer_tiny")
    with pytest.raises(UserError, match="flip_schedule='none' is for Adventurer only"):
        torch.save(build("vit_test").state_dict(), tmp_path / "vit.pth")
        load_model(tmp_path / "vit.pth", flip_schedule="none")
    part = {name: tensor for name, tensor in build().state_dict().items() if "w1" not in name}
    torch.save(part, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"not the weights of a whole model: layers\.0\.mlp\.w1\.weight is missing"):
        load_model(tmp_path / "part.pth")


# Malformed files


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        (
            "adventurer_test",
            (
                *("layers.0.mixer.A_log", "layers.0.mixer.out_proj.weight", "layers.0.mixer.conv1d.weight"),
                *("layers.0.mlp.w1.weight", "patch_embed.proj.weight", "pos_embed", "cls_token", "head.weight"),
            ),
        ),
        ("vit_test", ("blocks.0.mlp.fc1.weight", "patch_embed.proj.weight", "pos_embed", "cls_token", "head.weight")),
    ],
)
@pytest.mark.parametrize("form", [(), (3,), (3, 5), (3, 5, 7), (2, 3, 4, 5, 6), (0,), (0, 0), (1, 0, 0), (9, 3, 0, 0)])
def test_tensors_of_another_form(name: str, changed: tuple[str, ...], form: tuple[int, ...], tmp_path: Path) -> None:
    """Whatever form a tensor has, the file is refused in words that name it."""
    source, path = build(name), tmp_path / "odd.safetensors"
    model = build(name)
    same = untouched(model)
    for odd in changed:
        state = source.state_dict() | {odd: torch.ones(form)}
        for header in ({}, describe(source)):
            write_safetensors(path, state, header)
            for load in (load_model, partial(load_checkpoint, model), partial(load_checkpoint, model, resize=True)):
                with pytest.raises(UserError, match=re.escape(str(path))):
                    load(path)
    assert same()


@pytest.mark.parametrize(
    ("name", "stray", "words"),
    [
        ("adventurer_test", "layers.500.mixer.A_log", "layers.500 is there, but not every one from layers.0 up to it"),
        ("adventurer_test", "layers.999999999.x", "layers.999999999 is there"),
        ("adventurer_test", "layers.-1.x", "layers.-1 is there"),
        ("adventurer_test", "layers.01.x", "layers.01 is there"),
        ("vit_test", "blocks.x.z", "blocks.x is there"),
        ("vit_test", "blocks.", "blocks. is there"),
    ],
)
def test_blocks_are_numbered_without_gaps(name: str, stray: str, words: str, tmp_path: Path) -> None:
    """A stray number must not make a model of so many blocks."""
    torch.save(build(name).state_dict() | {stray: torch.zeros(1)}, tmp_path / "stray.pth")
    with pytest.raises(UserError, match=f"stray.pth: not the weights of a whole model: {words}"):
        load_model(tmp_path / "stray.pth")


def test_widths_that_do_not_fit_together(tmp_path: Path) -> None:
    torch.save(build().state_dict() | {"layers.0.mixer.A_log": torch.zeros(65)}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"do not fit together \(64 x 32, 192 channels, 65 heads\)"):
        load_model(tmp_path / "odd.pth")


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        ("adventurer_test", {"img_size": "abc"}, "img_size 'abc': img_size 'abc': give pixels, one side"),
        ("adventurer_test", {"img_size": 17}, "img_size 17: patch_size=4 does not divide the 17x17 image"),
        ("vit_test", {"img_size": 400_000}, "img_size 400000: its 17 position rows are not 100000x100000 patches"),
        (
            "adventurer_test",
            {"flip_schedule": "x"},
            "flip_schedule 'x': flip_schedule 'x' is unknown; choose one of alt",
        ),
        (
            "vit_test",
            {"pos_embed": "x"},
            "model 'vit_test', pos_embed 'x': pos_embed='x' is unknown; choose one of lea",
        ),
        ("vit_test", {"model": "zzz"}, "model 'zzz': model 'zzz' is unknown; ours are"),
        ("vit_test", {"model": 5}, "model 5: model '5' is unknown; ours are"),
    ],
)
def test_a_header_that_is_wrong(name: str, entry: dict[str, Any], words: str, tmp_path: Path) -> None:
    model, path = build(name), tmp_path / "own.safetensors"
    write_safetensors(path, model.state_dict(), describe(model) | entry)
    with pytest.raises(UserError, match=re.escape(f"{path}: its header says {words}")):
        load_model(path)


# What must not be read


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_nothing_is_executed(tmp_path: Path) -> None:
    attack = Attack(tmp_path / "executed")
    released_file(tmp_path / "zip.pth", build(), args=attack)
    torch.save({"model": attack}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": attack}, protocol=2))
    for name in ("zip.pth", "old.pth", "plain.pth"):
        model = build()
        same = untouched(model)
        with pytest.raises(UserError, match=f"{name}: holds posix.system, which could run code, so it is not read"):
            load_checkpoint(model, tmp_path / name)
        assert same()
        assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "zip.pth", weights_only=False)
    assert (tmp_path / "executed").exists()  # the attack is a real one


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(build(), tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"holds patchscale\.models\.adventurer\.Adventurer, which could run code"):
        load_model(tmp_path / "model.pth")


def cut(path: Path, share: float) -> bytes:
    content = path.read_bytes()
    return content[: int(share * len(content))]


def test_damaged_files_and_files_of_another_type(tmp_path: Path) -> None:
    released = released_file(tmp_path / "a.pth", build())
    save_model(build(), tmp_path / "a.safetensors")
    torch.save(build().state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    contents = {
        "half a zip": (cut(released, 0.5), "damaged or cut off"),
        "half an old file": (cut(tmp_path / "old.pth", 0.5), "damaged"),
        "half of safetensors": (cut(tmp_path / "a.safetensors", 0.5), "damaged or cut off"),
        "safetensors with a bad header": (b"\x10" + bytes(7) + b"{" + b"x" * 99, "damaged or cut off"),
        "a zip without its end": (released.read_bytes()[:-100], "damaged or cut off"),
        "only the start of a zip": (b"PK\x03\x04" + bytes(100), "damaged or cut off"),
        "text": (b"hello world, this is text", "neither a torch file"),
        "nothing": (b"", "neither a torch file"),
    }
    for name, (content, words) in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=words) as caught:
            load_model(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        load_model(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="cannot be read"):
        load_model(tmp_path)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_zip_files_that_hold_no_state_dict(tmp_path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "program.pt")
    with pytest.raises(UserError, match=r"program.pt: a TorchScript program; save its state_dict\(\)"):
        load_model(tmp_path / "program.pt")
    with zipfile.ZipFile(tmp_path / "any.zip", "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(UserError, match=r"any\.zip: a zip file, but not one of torch\.save"):
        load_model(tmp_path / "any.zip")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), MemoryError),
        (OSError(errno.EIO, "Input/output error"), OSError),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"), MemoryError),
    ],
)
def test_a_machine_that_fails_is_not_a_damaged_file(
    error: Exception, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full memory and broken disks cannot be had for real here; the errors are those torch.load raises."""
    path = released_file(tmp_path / "a.pth", build())

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(kind):
        load_model(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({"epoch": 3, "lr": 0.1}, r"no state dict in it \(entries: 'epoch', 'lr'; looked for model, state_dict, task"),
        ({"model": {"a": 1}}, "entry 'model' holds more than named tensors"),
        ({"model": {}}, "entry 'model' is empty; give a file with a state dict"),
        ({}, "no state dict in it"),
        ({"a": torch.zeros(2)}, r"neither Adventurer's nor a plain ViT's weights \(a\)"),
    ],
)
def test_torch_files_without_a_model(content: Any, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=words):
        load_model(tmp_path / "a.pth")


def test_safetensors_are_known_by_their_length_not_by_their_first_byte(tmp_path: Path) -> None:
    """A header of 128 + 256 k bytes begins with the byte that also begins a pickle."""
    for spaces in range(256):
        text = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + b" " * spaces
        content = len(text).to_bytes(8, "little") + text + bytes(4)
        if content[0] == 0x80:
            (tmp_path / "a").write_bytes(content)
            assert read_weights(tmp_path / "a").tensors["a"].tolist() == [0]
            return
    raise AssertionError("no such header was made")


def test_what_cannot_be_saved_with_a_description(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Linear is not a backbone of ours or timm's"):
        save_model(nn.Linear(2, 2), tmp_path / "a.safetensors")
