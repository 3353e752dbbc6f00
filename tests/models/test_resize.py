"""Resizing patch kernels and position tables: timm's and the released code's numbers, and what the algebra promises."""

import pytest
import torch
import torch.nn.functional as F
from tests.models.conftest import expected, golden, waves

from patchscale.errors import UserError
from patchscale.models.resize import resize_patch_embed, resize_pos_embed

METHODS = {"bicubic_aa": "bicubic_antialias", "bilinear_noaa": "bilinear"}
KERNELS = {key: value for key, value in golden()["pi_resize"].items() if "to" in key}


@pytest.mark.parametrize("entry", KERNELS)
def test_golden_kernels(entry: str) -> None:
    sizes, method = entry.split("_", 1)
    kernel = waves((2, 3, 4, 4), 0.29, 0.1)
    resized = resize_patch_embed(kernel, int(sizes.removeprefix("4to")), method=METHODS[method])  # type: ignore[arg-type]
    torch.testing.assert_close(resized, expected(KERNELS[entry]), rtol=2e-5, atol=2e-5)


def test_golden_positions_prefix_first() -> None:
    table = waves((1, 10, 2), 0.23, 0.3)
    resized = resize_pos_embed(table, (5, 5))
    reference = expected(golden()["pos_embed"]["prefix_first_3to5_bicubic_aa"])
    torch.testing.assert_close(resized, reference, rtol=0, atol=2e-6)


def test_golden_positions_released_quirk() -> None:
    table = waves((1, 10, 2), 0.23, 0.3)
    resized = resize_pos_embed(table, (5, 5), layout="released")
    reference = expected(golden()["pos_embed"]["upstream_finetune_quirk_3to5"])
    torch.testing.assert_close(resized, reference, rtol=0, atol=2e-6)


def test_class_last_keeps_the_last_row_and_moves_the_rest() -> None:
    table = torch.randn(1, 10, 2)
    rotated = torch.cat([table[:, -1:], table[:, :-1]], dim=1)  # the same table, class row first
    first = resize_pos_embed(rotated, (4, 6))
    last = resize_pos_embed(table, (4, 6), layout="class_last")
    assert torch.equal(last[:, -1], table[:, -1])
    assert torch.equal(last[:, :-1], first[:, 1:])


@pytest.mark.parametrize("layout", ["prefix_first", "class_last"])
def test_the_same_grid_changes_nothing(layout: str) -> None:
    table = torch.randn(1, 7, 2)
    assert resize_pos_embed(table, (2, 3), old_grid=(2, 3), layout=layout) is table  # type: ignore[arg-type]


def test_equal_counts_on_another_grid_are_resampled() -> None:
    table = torch.randn(1, 17, 2)
    assert not torch.equal(resize_pos_embed(table, (4, 4), old_grid=(2, 8)), table)
    assert resize_pos_embed(table, (8, 2), old_grid=(2, 8)).shape == table.shape


def test_a_table_that_is_not_its_grid_is_refused() -> None:
    with pytest.raises(UserError, match="a position table of 12 rows is not 3x3 patches and 1 other rows"):
        resize_pos_embed(torch.zeros(1, 12, 2), (4, 4))
    with pytest.raises(UserError, match="is not 2x3 patches and 2 other rows"):
        resize_pos_embed(torch.zeros(1, 10, 2), (4, 4), old_grid=(2, 3), num_prefix_tokens=2)


@pytest.mark.parametrize("method", ["auto", "bilinear", "bicubic", "bicubic_antialias"])
@pytest.mark.parametrize(("old", "new"), [(4, 8), (4, 16), (1, 8), (7, 14), (4, 5)])
def test_growing_is_exact(method: str, old: int, new: int) -> None:
    """The grown kernel answers a grown patch as the kernel answered the patch."""
    patch, kernel = torch.randn(5, 3, old, old).double(), torch.randn(6, 3, old, old).double()
    mode = "bilinear" if method == "auto" else method.split("_")[0]
    grown_patch = F.interpolate(patch, size=(new, new), mode=mode, antialias="antialias" in method)
    grown_kernel = resize_patch_embed(kernel, new, method=method)  # type: ignore[arg-type]
    before = torch.einsum("bchw,dchw->bd", patch, kernel)
    after = torch.einsum("bchw,dchw->bd", grown_patch, grown_kernel)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


def test_area_shrinking_keeps_the_answer_to_a_constant_patch() -> None:
    """Measured before (16 -> 1): area keeps all, timm's default 95 %, FlexiViT's 1.6 %."""
    kernel = torch.ones(1, 3, 16, 16)
    kept = {
        method: (resize_patch_embed(kernel, 1, method=method).sum() / kernel.sum()).item()  # type: ignore[arg-type]
        for method in ("auto", "area", "bicubic_antialias", "bilinear")
    }
    assert kept["auto"] == kept["area"] == pytest.approx(1, abs=1e-6)
    assert kept["bicubic_antialias"] == pytest.approx(0.951, abs=2e-3)
    assert kept["bilinear"] == pytest.approx(0.0156, abs=1e-4)
    random = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(resize_patch_embed(random, 1), random.sum((2, 3), keepdim=True), rtol=1e-4, atol=1e-4)


def test_rectangular_patches_and_the_same_size() -> None:
    kernel = torch.randn(2, 3, 4, 4)
    assert resize_patch_embed(kernel, (2, 8)).shape == (2, 3, 2, 8)
    assert resize_patch_embed(kernel, 4) is kernel


def test_what_cannot_be_resized() -> None:
    with pytest.raises(UserError, match=r"a patch kernel is \[embed_dim, channels, p, p\]; got shape \(2, 3\)"):
        resize_patch_embed(torch.zeros(2, 3), 4)
    with pytest.raises(UserError, match="patch_size=0 must be"):
        resize_patch_embed(torch.zeros(2, 3, 4, 4), 0)
    with pytest.raises(UserError, match="'lanczos' is unknown; choose one of auto, area, bilinear"):
        resize_patch_embed(torch.zeros(2, 3, 4, 4), 8, method="lanczos")  # type: ignore[arg-type]
