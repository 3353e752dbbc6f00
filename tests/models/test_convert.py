"""Whole models at other sizes: what must not change does not, what is resampled answers as before."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.conftest import expected, golden, waves
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from patchscale.errors import UserError
from patchscale.models.adventurer import Adventurer
from patchscale.models.convert import convert
from patchscale.models.positions import sincos2d
from patchscale.models.registry import create_model
from patchscale.models.resize import constant_response, resize_patch_embed, response_error

SIZED = ("patch_embed.proj.weight", "pos_embed")
# A model of every way to know positions; patch size 4 at 16 px.
NAMES = (
    *("adventurer_test", "vit_test", "test_vit"),
    *("vit_small_patch14_reg4_dinov2", "deit_tiny_distilled_patch16_224", "cait_xxs24_224"),  # tables of other forms
    *("vit_small_patch16_dinov3", "eva02_tiny_patch14_224"),  # rotary, and both
    *(name for name in ("test_vit_relpos",) if timm.is_model(name)),  # relative; older timm cannot resize it
)


def build(name: str = "adventurer_test", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"patch_size": 4, "img_size": 16, "num_classes": 3}
    model = create_model(name, **(sizes | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that no two are equal by their initialisation
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def logits(model: nn.Module, seed: int = 1) -> Tensor:
    images = torch.randn(2, 3, *model.img_size, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(images.to(model.cls_token))


@pytest.mark.parametrize("name", NAMES)
def test_a_converted_model_is_the_one_built_at_that_size(name: str) -> None:
    """All weights but the resampled ones are bit-equal, and so are the buffers that follow from the size."""
    model = build(name)
    before = copy.deepcopy(model.state_dict())
    new, report = convert(model, patch_size=2, img_size=(8, 12))
    after = new.state_dict()
    assert {name for name in before if not torch.equal(before[name], model.state_dict()[name])} == set()
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed == {tensor.name for tensor in report.resampled} <= set(SIZED)
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - changed)
    reference = create_model(name, patch_size=2, img_size=(8, 12), num_classes=3).eval()
    reference.load_state_dict(after)
    assert torch.equal(logits(new), logits(reference))
    assert torch.equal(logits(pickle.loads(pickle.dumps(new))), logits(reference))
    assert (new.patch_size, new.img_size) == (2, (8, 12))
    assert new.forward_feature_map(torch.zeros(1, 3, 8, 12)).shape[2:] == (4, 6)
    for (key, buffer), (_, built) in zip(new.named_buffers(), reference.named_buffers(), strict=True):
        assert torch.equal(buffer, built), key


@pytest.mark.parametrize("name", ["adventurer_test", "vit_test", "test_vit", "eva02_tiny_patch14_224"])
def test_identity_changes_no_bit(name: str) -> None:
    model = build(name)
    for options in ({}, {"patch_size": 4}, {"img_size": 16}, {"patch_size": 4, "img_size": (16, 16)}):
        new, report = convert(model, **options)
        assert all(torch.equal(tensor, new.state_dict()[key]) for key, tensor in model.state_dict().items())
        assert torch.equal(logits(new), logits(model))
        assert report.resampled == ()
        assert (report.response_error, report.constant_response) == (0, 1)
        assert str(report) == "patch 4 at 16x16 px -> patch 4 at 16x16 px: nothing resampled, all weights as they were"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", ["adventurer_test", "vit_test", "deit3_small_patch16_224"])
def test_growing_keeps_the_patch_embedding(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """Patches enlarged with the image are embedded as before: here every patch is enlarged by itself."""
    model = build(name).to(dtype)
    new, report = convert(model, patch_size=8, img_size=32)
    patches = torch.randn(16, 3, 4, 4, dtype=dtype)
    enlarged = F.interpolate(patches, size=(8, 8), mode="bilinear")
    torch.testing.assert_close(
        new.patch_embed.proj(enlarged), model.patch_embed.proj(patches), rtol=tolerance, atol=tolerance
    )
    assert torch.equal(new.state_dict()["patch_embed.proj.bias"], model.state_dict()["patch_embed.proj.bias"])
    assert report.response_error < 1e-6
    assert report.constant_response == pytest.approx(1, abs=1e-6)
    assert [tensor.name for tensor in report.resampled] == ["patch_embed.proj.weight"]  # the grid is the same


@pytest.mark.parametrize("name", ["adventurer_test", "vit_test"])
def test_images_of_one_colour_look_the_same_at_every_patch_size(name: str) -> None:
    """Area resizing keeps the whole answer to one colour, so with equal positions the tokens are those of before."""
    model = build(name)
    with torch.no_grad():
        model.pos_embed.fill_(0.1)
        colour = torch.rand(1, 3, 1, 1).expand(1, 3, 16, 16)
        before = model.patch_embed(colour)
        for patch_size in (16, 8, 2, 1):
            new, report = convert(model, patch_size=patch_size)
            after = new.patch_embed(colour)
            torch.testing.assert_close(after, before[:, :1].expand_as(after), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(new.pos_embed, torch.full_like(new.pos_embed, 0.1))
            assert report.constant_response == pytest.approx(1, abs=1e-5)


sizes = st.sampled_from([1, 2, 3, 4, 5, 7, 8])


@settings(max_examples=40, deadline=None)
@given(old=sizes, new=sizes, method=st.sampled_from(["auto", "bilinear", "bicubic", "bilinear_antialias"]))
def test_response_error_is_zero_exactly_when_nothing_is_lost(old: int, new: int, method: Any) -> None:
    kernel = torch.randn(4, 3, old, old, generator=torch.Generator().manual_seed(0)).double()
    error = response_error(kernel, resize_patch_embed(kernel, new, method=method), method=method)
    if new >= old:
        assert error < 1e-9
    else:
        assert 1e-3 < error < 1.5


def test_the_report_does_not_depend_on_the_default_device() -> None:
    model = build()
    _, expected_report = convert(model, patch_size=2, img_size=8)
    with torch.device("meta"):
        _, report = convert(model, patch_size=2, img_size=8)
    assert report == expected_report


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["adventurer_test", "vit_test"])
def test_a_model_on_a_gpu_stays_there(name: str) -> None:
    model = build(name)
    new, report = convert(model.cuda(), patch_size=2, img_size=8)
    assert {tensor.device.type for tensor in (*new.parameters(), *new.buffers())} == {"cuda"}
    on_cpu, same_report = convert(model.cpu(), patch_size=2, img_size=8)
    assert report == same_report
    assert all(torch.equal(tensor.cpu(), on_cpu.state_dict()[key]) for key, tensor in new.state_dict().items())


def smooth_kernels() -> Tensor:
    """Like trained ones: they change little from pixel to pixel."""
    coarse = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(16, 16), mode="bicubic")


@pytest.mark.parametrize(
    ("through", "error", "error_back"), [(8, 0.058, 0.049), (4, 0.18, 0.18), (2, 0.61, 0.63), (1, 0.84, 0.84)]
)
def test_there_and_back(through: int, error: float, error_back: float) -> None:
    """16 -> p -> 16 on smooth kernels: what is lost on the way (measured), and that one colour is never lost."""
    kernel = smooth_kernels()
    small = resize_patch_embed(kernel, through)
    back = resize_patch_embed(small, 16)
    assert response_error(kernel, small) == pytest.approx(error, rel=0.15)
    assert response_error(kernel, back) == pytest.approx(error_back, rel=0.15)
    assert constant_response(kernel, back) == pytest.approx(1, abs=1e-4)


def test_to_a_finer_patch_and_back_through_whole_models() -> None:
    model = build(patch_size=16, img_size=32)
    there, _ = convert(model, patch_size=8)
    back, _ = convert(there, patch_size=16)
    kernel, kernel_back = model.patch_embed.proj.weight, back.patch_embed.proj.weight
    assert constant_response(kernel, kernel_back) == pytest.approx(1, abs=1e-5)
    assert torch.equal(back.pos_embed[:, -1], model.pos_embed[:, -1])
    drift = (back.pos_embed - model.pos_embed).norm() / model.pos_embed.norm()
    assert 0 < drift < 0.4


@pytest.mark.parametrize("name", ["adventurer_test", "vit_test"])
def test_the_class_row_is_untouched_and_in_its_place(name: str) -> None:
    model = build(name)
    row = -1 if name.startswith("adventurer") else 0
    with torch.no_grad():
        model.pos_embed.fill_(0.5)  # patches are all alike, so that a stray class row would show anywhere
        model.pos_embed[:, row] = 7.0
    for img_size in (8, 24, (8, 16)):
        table = convert(model, img_size=img_size)[0].pos_embed
        assert (table[:, row] == 7).all()
        patches = table[:, :-1] if row == -1 else table[:, 1:]
        torch.testing.assert_close(patches, torch.full_like(patches, 0.5))
    if name.startswith("adventurer"):
        shifted = convert(model, img_size=24, quirk=True)[0].pos_embed
        assert (shifted[:, :-1] - 0.5).abs().max() > 1  # the released code smears it over the last patches


def test_the_quirk_is_what_the_released_code_computes() -> None:
    model = Adventurer(img_size=3, patch_size=1, embed_dim=32, depth=1, num_classes=2)
    with torch.no_grad():
        model.pos_embed[..., :2] = waves((1, 10, 2), 0.23, 0.3)
    new, report = convert(model, img_size=5, quirk=True)
    released = expected(golden()["pos_embed"]["upstream_finetune_quirk_3to5"]).float()
    torch.testing.assert_close(new.pos_embed[..., :2], released, rtol=0, atol=2e-6)
    assert [str(tensor) for tensor in report.resampled] == ["pos_embed: 1x10x32 -> 1x26x32, bicubic, as released"]


@pytest.mark.parametrize("options", [{"name": "vit_test"}, {"pos_embed": "sincos2d"}])
def test_the_quirk_is_for_learned_positions_of_adventurer(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="quirk repeats what the released code did to Adventurer's learned positions"):
        convert(build(**options), img_size=32, quirk=True)


@pytest.mark.parametrize("name", ["adventurer_test", "vit_test"])
def test_fixed_positions_are_computed_anew(name: str) -> None:
    model = build(name, pos_embed="sincos2d")
    new, report = convert(model, patch_size=2, img_size=(8, 12))
    rows = {"rows_after": 1} if name.startswith("adventurer") else {"rows_before": 1}
    assert torch.equal(new.pos_embed, sincos2d((4, 6), 32, **rows))
    assert "pos_embed" not in new.state_dict()
    assert "pos_embed" not in dict(new.named_parameters())
    assert [tensor.name for tensor in report.resampled] == ["patch_embed.proj.weight"]


def modes(model: nn.Module) -> Iterator[Any]:
    for name, parameter in model.named_parameters():
        yield name, parameter.dtype, parameter.requires_grad
    for name, module in model.named_modules():
        yield name, module.training, getattr(module, "drop_prob", None)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adventurer_test", "vit_test", "test_vit"])
def test_what_the_model_was_set_to_is_kept(name: str, dtype: torch.dtype, training: bool) -> None:
    model = build(name, drop_path_rate=0.2).to(dtype).train(training)
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    model.patch_embed.eval()
    for swap in (False, True):
        for key in SIZED:
            model.get_parameter(key).requires_grad_(swap)
        new, _ = convert(model, patch_size=2, img_size=8)
        assert list(modes(new)) == list(modes(model))


def test_a_model_made_by_timm_itself() -> None:
    plain = VisionTransformer(img_size=32, patch_size=16, embed_dim=32, depth=1, num_heads=2, num_classes=2).eval()
    new, report = convert(plain, patch_size=8, img_size=(32, 16))
    assert new(torch.zeros(1, 3, 32, 16)).shape == (1, 2)
    assert report.new_img_size == (32, 16)
    named = timm.create_model("adventurer_tiny_patch16_64")
    assert convert(named, img_size=32)[0].pretrained_cfg["input_size"] == (3, 32, 32)
    assert named.pretrained_cfg["input_size"] == (3, 64, 64)


def test_the_bias_tables_of_beit() -> None:
    model = create_model("beit_base_patch16_224", patch_size=16, img_size=32, num_classes=2).eval()
    if not hasattr(model, "set_input_size"):
        with pytest.raises(UserError, match="Beit of this timm cannot change its sizes; install the newest timm"):
            convert(model, img_size=64)
        return
    new, report = convert(model, img_size=(64, 32))
    assert len(report.resampled) == 12
    assert str(report.resampled[0]) == "blocks.0.attn.relative_position_bias_table: 12x12 -> 24x12, timm's"
    with torch.no_grad():
        assert new(torch.zeros(1, 3, 64, 32)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_test", {"patch_size": 5}, "patch_size=5 does not divide the 16x16 image; use patch_size one of 2, 4"),
        ("vit_test", {"img_size": 30}, "patch_size=4 does not divide the 30x30 image; .* image sides of 28 or 32"),
        ("vit_test", {"patch_size": 0}, "must be positive"),
        ("vit_test", {"patch_size": 2.0}, "patch_size=2.0 must be positive whole numbers of pixels"),
        ("vit_test", {"img_size": 32.0}, "img_size=32.0 and patch_size=4 must be positive whole numbers of pixels"),
        ("vit_test", {"patch_size": 2, "method": "lanczos"}, "'lanczos' is unknown; choose one of auto, area"),
        ("vit_test", {"method": "lanczos"}, "'lanczos' is unknown; choose one of auto, area"),  # nothing to resample
        ("xcit_nano_12_p16_224", {"img_size": 32}, "Xcit does not embed its patches by one convolution"),
    ],
)
def test_what_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    model = build(name, patch_size=8 if name.startswith("xcit") else 4)
    with pytest.raises(UserError, match=message):
        convert(model, **options)


def test_the_report() -> None:
    _, report = convert(build(patch_size=16, img_size=32), patch_size=1, img_size=(4, 8))
    lines = str(report).splitlines()
    assert lines[:3] == [
        "patch 16 at 32x32 px -> patch 1 at 4x8 px",
        "  patch_embed.proj.weight: 32x3x16x16 -> 32x3x1x1, area",
        "  pos_embed: 1x5x32 -> 1x33x32, bicubic_antialias",
    ]
    assert "relative error 9" in lines[3]
    assert "100.00% of the answer to one colour is left" in lines[3]
    frame = report.frame()
    assert list(frame.columns) == ["name", "old_shape", "new_shape", "method"]
    assert frame.new_shape.tolist() == [(32, 3, 1, 1), (1, 33, 32)]
    assert convert(build())[1].frame().empty


def test_flexivit_s_resize_loses_the_kernel_and_says_so() -> None:
    model = build("vit_test", patch_size=16, img_size=16)
    _, kept = convert(model, patch_size=1)
    _, lost = convert(model, patch_size=1, method="bilinear")
    assert kept.constant_response == pytest.approx(1, abs=1e-5)
    assert lost.constant_response < 0.1  # 1 / 64 for kernels of one colour
    assert lost.response_error > kept.response_error
    assert lost.resampled[0].method == "bilinear"
