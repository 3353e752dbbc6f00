"""Closed formulas against the models themselves, built without memory on torch's meta device."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from patchscale.costs.estimate import estimate_cost
from patchscale.costs.flops import scan_macs
from patchscale.errors import UserError
from patchscale.models.parameters import count_parameters
from patchscale.models.registry import create_model
from patchscale.models.ssd.chunked import CHUNK_SIZE
from patchscale.shapes import SHAPES, image_height_width

OWN_SHAPES = [name for name in SHAPES if not name.startswith("deit_")]  # DeiT is another name for the same shapes


def build(name, **options):
    with torch.device("meta"):
        return create_model(name, **options).eval()


def counted_flops(model, height, width):
    """FLOPs of a forward pass over one image."""
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad():
        images = torch.empty(1, 3, height, width)
        with counter:
            model(images)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", OWN_SHAPES)
def test_parameters_equal_the_real_models(name):
    for patch_size in (16, 8, 4, 2, 1):
        cost = estimate_cost(name, patch_size=patch_size, img_size=64, num_classes=10)
        real = count_parameters(build(name, patch_size=patch_size, img_size=64, num_classes=10))
        assert cost.params_total == real["total"]
        assert cost.params_pos_embed == real["pos_embed"]
        assert cost.params_backbone == real["backbone"]
        assert cost.params["head"] == real["head"]
        assert cost.params["patch_embed"] == real["patch_embed"]


@pytest.mark.parametrize("name", ["vit_test", "adventurer_test"])
def test_parameters_of_rectangular_headless_and_fixed_position_models(name):
    options = {"patch_size": 8, "img_size": (32, 48), "num_classes": 0, "pos_embed": "sincos2d"}
    cost = estimate_cost(name, **options)
    real = count_parameters(build(name, **options))
    assert (cost.params_total, cost.params_pos_embed) == (real["total"], 0)
    assert cost.params_backbone == real["backbone"]


@pytest.mark.parametrize(
    ("name", "patch_size", "img_size"),
    [
        ("vit_tiny", 1, 224),
        ("vit_base", 16, 224),
        ("vit_small", 2, 128),
        ("vit_nano", 7, 28),
        ("vit_test", 8, (32, 48)),
    ],
)
def test_vit_flops_equal_torchs_count(name, patch_size, img_size):
    model = build(name, patch_size=patch_size, img_size=img_size)
    expected = counted_flops(model, *image_height_width(img_size))
    assert estimate_cost(name, patch_size=patch_size, img_size=img_size).flops_forward == expected


@pytest.mark.parametrize(("name", "patch_size"), [("adventurer_tiny", 8), ("adventurer_base", 4)])
def test_adventurer_flops_agree_with_torchs_count_at_the_published_chunk(name, patch_size):
    """Torch counts the padding of the last chunk and not the elementwise passing of states."""
    model = build(name, patch_size=patch_size, img_size=224)
    for module in model.modules():
        if hasattr(module, "chunk_size"):
            module.chunk_size = SHAPES[name].chunk_size
    cost = estimate_cost(name, patch_size=patch_size, img_size=224)
    assert counted_flops(model, 224, 224) == pytest.approx(cost.flops_forward, rel=5e-3)


def test_the_count_changes_with_the_chunk_as_the_scans_formula_says():
    shape, tokens = SHAPES["adventurer_tiny"], 28 * 28
    model = build("adventurer_tiny", patch_size=8, img_size=224)
    assert shape.chunk_size != CHUNK_SIZE
    cost = estimate_cost("adventurer_tiny", patch_size=8, img_size=224)
    scan = scan_macs(tokens + 2, d_inner=shape.d_inner, d_state=shape.d_state, chunk_size=CHUNK_SIZE)
    expected = cost.flops_forward - 2 * cost.macs["scan"] + 2 * shape.depth * scan
    assert counted_flops(model, 224, 224) == pytest.approx(expected, rel=2e-3)


def test_a_timm_model_without_a_formula_is_counted():
    """A plain ViT of timm's, counted, equals our formula for the same shape."""
    counted = estimate_cost("vit_small_patch16_224", patch_size=8, img_size=128, num_classes=10)
    formula = estimate_cost("vit_small", patch_size=8, img_size=128, num_classes=10)
    assert counted.params_total == formula.params_total
    assert counted.params_backbone == formula.params_backbone
    assert counted.flops_forward == formula.flops_forward
    assert counted.macs["attention_quadratic"] == formula.macs["attention_quadratic"]


def test_counting_leaves_other_models_alone():
    """SwiGLU, rotary positions, registers: whatever timm has, the parts add up to the model."""
    name = "vit_small_patch16_dinov3"
    cost = estimate_cost(name, patch_size=8, img_size=64, num_classes=7)
    real = count_parameters(build(name, patch_size=8, img_size=64, num_classes=7))
    assert cost.params_total == real["total"]
    assert cost.flops_forward > 0


def test_an_unknown_name_is_refused_with_close_ones():
    with pytest.raises(UserError, match=r"vit_smal"):
        estimate_cost("vit_smal", patch_size=8, img_size=64)


def test_a_timm_name_without_torch_says_what_to_install():
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "timm", "torchvision"):
            raise ImportError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocked())
from patchscale import estimate_cost
from patchscale.errors import UserError
assert estimate_cost("vit_base", patch_size=8, img_size=224).tokens == 784
try:
    estimate_cost("vit_small_patch16_224", patch_size=8, img_size=128)
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "the cost of model 'vit_small_patch16_224' is counted by torch, and torch is missing: "
        "pip install 'patchscale[train]', or choose a built-in model\n"
    )
