"""Closed formulas against published and independently counted numbers. No torch."""

import csv
from dataclasses import replace
from importlib.resources import files

import pytest

from patchscale.costs.counts import count
from patchscale.costs.estimate import estimate_cost
from patchscale.costs.flops import scan_macs
from patchscale.costs.tokens import num_tokens, token_grid
from patchscale.errors import UserError
from patchscale.shapes import SHAPES


def test_tokens_of_square_and_rectangular_images():
    assert num_tokens(224, 1) == 50176
    assert token_grid((32, 48), 8) == (4, 6)


@pytest.mark.parametrize("patch_size", [5, 0, -4, 64])
def test_a_patch_that_does_not_divide_is_refused_with_both_numbers(patch_size):
    with pytest.raises(UserError, match=f"patch_size={patch_size} does not divide the 32x48 image"):
        num_tokens((32, 48), patch_size)


@pytest.mark.parametrize("name", ["vit_tiny", "adventurer_base", "vit_giant_swiglu_reg4"])
def test_a_shape_counts_as_the_model_that_has_it(name):
    by_name, by_shape = (
        count(model, patch_size=16, img_size=64, num_classes=10) for model in (name, replace(SHAPES[name]))
    )
    assert replace(by_shape, model=name) == by_name
    assert count(replace(SHAPES["vit_tiny"], depth=7), patch_size=16, img_size=64).model == "vit_d192_l7"
    deeper = count(replace(SHAPES[name], depth=2 * SHAPES[name].depth), patch_size=16, img_size=64)
    blocks = {part for part in deeper.macs if deeper.macs[part] == 2 * by_name.macs.get(part, 0)}
    assert {"patch_embed"} < set(deeper.macs) - blocks
    assert len(blocks) >= 2


# Parameters of the released Adventurer code with 1000 classes at 224 px (Patch_Scaling fb8cce8, counted by running it).
RELEASED = {
    "tiny": (11_608_840, 11_611_912, 12_177_160, 14_576_392, 24_207_880),
    "small": (44_491_816, 44_497_960, 45_628_456, 50_426_920, 69_689_896),
    "base": (98_657_608, 98_666_824, 100_362_568, 107_560_264, 136_454_728),
    "large": (346_196_200, 346_208_488, 348_469_480, 358_066_408, 396_592_360),
}


@pytest.mark.parametrize("size", RELEASED)
def test_adventurer_parameters_equal_the_released_models(size):
    for patch_size, expected in zip((16, 8, 4, 2, 1), RELEASED[size], strict=True):
        cost = estimate_cost(f"adventurer_{size}", patch_size=patch_size, img_size=224)
        assert cost.params_total == expected


@pytest.mark.parametrize(
    ("size", "img_size", "expected"),
    [("tiny", 128, 15_557_128), ("base", 64, 101_065_288), ("large", 128, 361_989_352)],
)
def test_adventurer_parameters_at_other_resolutions(size, img_size, expected):
    assert estimate_cost(f"adventurer_{size}", patch_size=1, img_size=img_size).params_total == expected


def test_the_position_table_is_counted_apart():
    cost = estimate_cost("adventurer_base", patch_size=1, img_size=224)
    assert cost.params_pos_embed == 38_535_936 == 50177 * 768
    assert cost.params_backbone == cost.params_total - 38_535_936 - 769_000
    fixed = estimate_cost("adventurer_base", patch_size=1, img_size=224, pos_embed="sincos2d")
    assert fixed.params_pos_embed == 0
    assert fixed.params_backbone == cost.params_backbone
    assert fixed.macs == cost.macs


# GMACs that timm publishes for its own models, attention products included.
TIMM_GMACS = [
    ("vit_base", 16, 224, 17.58),
    ("vit_base", 8, 224, 78.22),
    ("vit_base", 32, 224, 4.41),
    ("vit_large", 16, 224, 61.60),
    ("vit_base", 16, 384, 55.54),
    ("vit_huge", 14, 224, 167.40),
    ("vit_small", 8, 224, 22.44),
]


@pytest.mark.parametrize(("model", "patch_size", "img_size", "gmacs"), TIMM_GMACS)
def test_vit_macs_agree_with_timms_published_counts(model, patch_size, img_size, gmacs):
    cost = estimate_cost(model, patch_size=patch_size, img_size=img_size)
    assert sum(cost.macs.values()) / 1e9 == pytest.approx(gmacs, rel=2e-3)


def test_the_costs_explain_the_papers_gpu_hours():
    """Table 6 of arXiv 2502.03738: hours span a factor of 2,700, utilisation of an A100 stays between 0.28 and 0.36."""
    table = files("patchscale.published_tables") / "compute_cost.csv"
    for row in csv.DictReader(table.read_text().splitlines()):
        for model, hours in (
            ("vit_base", row["gpu_hours_per_epoch_deit_base"]),
            ("adventurer_base", row["gpu_hours_per_epoch_adventurer_base"]),
        ):
            cost = estimate_cost(model, patch_size=int(row["patch_size"]), img_size=224)
            utilisation = cost.flops_train * 1_281_167 / (float(hours) * 3600 * 312e12)
            assert 0.28 < utilisation < 0.36, row


def test_base_models_in_gmacs():
    counts = {
        model: [sum(estimate_cost(model, patch_size=p, img_size=224).macs.values()) / 1e9 for p in (16, 8, 4, 2, 1)]
        for model in ("vit_base", "adventurer_base")
    }
    assert counts["vit_base"] == pytest.approx([17.56, 78.15, 447.9, 3966, 50669], rel=1e-3)
    # At patch 16 the 198 tokens do not fill a chunk of 256; counting a full chunk would give 20.7.
    assert counts["adventurer_base"] == pytest.approx([20.50, 82.05, 327.4, 1309, 5234], rel=1e-3)


def test_a_vit_grows_with_the_square_of_the_tokens_and_an_adventurer_linearly():
    def ratio(model):
        fine, coarse = (estimate_cost(model, patch_size=p, img_size=224, num_classes=0) for p in (1, 2))
        return fine.flops_forward / coarse.flops_forward

    assert 12 < ratio("vit_base") < 16
    assert 3.99 < ratio("adventurer_base") < 4.01


@pytest.mark.parametrize("model", SHAPES)
def test_patch_embedding_costs_the_same_at_every_patch_size(model):
    costs = [estimate_cost(model, patch_size=p, img_size=64).macs["patch_embed"] for p in (16, 4, 1)]
    assert costs == [3 * 64 * 64 * SHAPES[model].embed_dim] * 3


def test_conventions_flops_are_two_macs_and_training_is_three_forwards_less_the_gradient_of_the_images():
    cost = estimate_cost("vit_nano", patch_size=4, img_size=28, num_classes=10)
    assert cost.flops_forward == 2 * sum(cost.macs.values())
    assert cost.flops_train == 3 * cost.flops_forward - 2 * cost.macs["patch_embed"]
    assert cost.counts.macs_train["mlp"] == 3 * cost.macs["mlp"]


def test_a_segmentation_head_works_on_every_patch_token():
    classify = estimate_cost("vit_nano", patch_size=4, img_size=32, num_classes=7)
    segment = estimate_cost("vit_nano", patch_size=4, img_size=32, num_classes=7, task="segmentation")
    assert classify.macs["head"] == 96 * 7
    assert segment.macs["head"] == 64 * 96 * 7
    assert segment.params == classify.params


def test_the_scan_by_hand_for_two_chunks():
    # L=512, Q=256, E=8, S=4: 512*256*(4+8) within chunks, 2*512*4*8 into and out of states, 2*4*8 between chunks.
    assert scan_macs(512, d_inner=8, d_state=4, chunk_size=256) == 512 * 256 * 12 + 32768 + 64


def test_frame_has_every_part_once():
    cost = estimate_cost("adventurer_nano", patch_size=4, img_size=32, num_classes=7)
    frame = cost.frame()
    assert frame["macs"].sum() * 2 == cost.flops_forward
    assert frame["params"].sum() == cost.params_total
    assert frame["part"].is_unique
    assert frame["macs_share"].sum() == pytest.approx(1)


def test_changing_a_result_does_not_change_the_next_one():
    first = estimate_cost("vit_nano", patch_size=4, img_size=32)
    first.params["head"] = 0
    assert estimate_cost("vit_nano", patch_size=4, img_size=32).params["head"] == 97_000


def test_an_unknown_task_is_refused():
    words = "task='captions' is not known; choose one of classification, segmentation, detection"
    with pytest.raises(UserError, match=words):
        estimate_cost("vit_nano", patch_size=4, img_size=32, task="captions")
