"""Closed formulas against the models themselves, built without memory on torch's meta device."""

import subprocess
import sys
from math import prod

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

import patchscale.models.ssd.triton  # noqa: F401  registers the formula of the scan
from patchscale.costs.counts import count
from patchscale.costs.estimate import estimate_cost
from patchscale.costs.flops import scan_macs
from patchscale.costs.roofline import executed_macs, step_work
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
from math import prod
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


FAST_NAMES = ("vit_test", "vit_nano", "vit_small_reg4", "adventurer_test", "adventurer_nano")


def _convolution_backward(gradient, images, weight, *options, **_):
    """Each gradient takes the products of the convolution; torch's formula ignores groups."""
    return 2 * prod(gradient) * prod(weight[1:]) * sum(options[-1][:2])


def _flops_forward_and_train(name, patch_size, img_size):
    with torch.device("meta"):
        model = create_model(name, patch_size=patch_size, img_size=img_size).train()
        for module in model.modules():
            if hasattr(module, "ssd_backend"):
                module.ssd_backend = "triton"  # one operation, counted by the convention of the scan
        mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
        counter = FlopCounterMode(display=False, custom_mapping=mapping)
        with counter:
            images, targets = torch.empty(1, 3, img_size, img_size), torch.empty(1, dtype=torch.long)
            loss = torch.nn.functional.cross_entropy(model(images), targets)
            forward = counter.get_total_flops()
            loss.backward()
        return forward, counter.get_total_flops()


def _check_against_torch(name, patch_size, img_size):
    forward, train = _flops_forward_and_train(name, patch_size, img_size)
    cost = estimate_cost(name, patch_size=patch_size, img_size=img_size)
    if name.startswith("vit"):
        assert (cost.flops_forward, cost.flops_train) == (forward, train)
    else:
        # The weight gradient of the short convolution is elementwise work to torch; the rest is equal.
        assert cost.flops_forward == pytest.approx(forward, rel=1e-3)
        assert cost.flops_train == pytest.approx(train, rel=1e-2)


@pytest.mark.parametrize("name", FAST_NAMES)
def test_forward_and_training_flops_agree_with_torchs_counter(name):
    for patch_size in (16, 8, 4, 2, 1):
        _check_against_torch(name, patch_size, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_forward_and_training_flops_of_every_shape_agree_with_torchs_counter(name):
    for patch_size in (16, 8, 4, 2, 1):
        _check_against_torch(name, patch_size, 64)


@pytest.mark.parametrize(
    ("name", "patch_size"), [("vit_tiny", 1), ("vit_so400m", 16), ("vit_giant_swiglu_reg4", 16), ("adventurer_base", 8)]
)
def test_flops_agree_with_torchs_counter_at_224(name, patch_size):
    _check_against_torch(name, patch_size, 224)


def test_the_scan_is_what_the_chunked_scan_executes_at_the_published_chunk():
    """Products of two full chunks, with one head a batch: equal up to the passing of states, which is elementwise."""
    from patchscale.models.ssd.chunked import ssd_chunked

    L, heads, headdim, S = 512, 4, 64, 16
    with torch.device("meta"), torch.no_grad():
        x, dt = torch.empty(1, L, heads, headdim), torch.empty(1, L, heads)
        A, B, C = torch.empty(heads), torch.empty(1, L, 1, S), torch.empty(1, L, 1, S)
        with FlopCounterMode(display=False) as counter:
            ssd_chunked(
                *(x, dt, A, B, C),
                D=None,
                dt_bias=None,
                dt_softplus=False,
                chunk_size=256,
                initial_state=None,
                return_final_state=False,
            )
    E = heads * headdim
    passing = 2 * S * E
    assert counter.get_total_flops() == 2 * (scan_macs(L, d_inner=E, d_state=S, chunk_size=256) - passing)


@pytest.mark.parametrize(
    "name",
    ["vit_base_patch16_siglip_224", "cait_xxs24_224", "vit_small_patch16_dinov3", "deit_tiny_distilled_patch16_224"],
)
def test_timm_models_are_counted_forward_and_backward_as_torch_does(name):
    """Attention pools, layers of the class token and second heads included."""
    cost = estimate_cost(name, patch_size=16, img_size=64)
    assert (cost.flops_forward, cost.flops_train) == _flops_forward_and_train(name, 16, 64)


def test_the_attention_pool_is_a_part_of_its_own_and_not_of_segmentation():
    options = {"patch_size": 16, "img_size": 64}
    pooled = estimate_cost("vit_base_patch16_siglip_224", **options)
    dense = estimate_cost("vit_base_patch16_siglip_224", **options, task="segmentation")
    # 16 tokens, one latent, D = 768: q and output of the latent, keys and values, two products, its MLP of 4 D
    assert pooled.macs["attention_pool"] == (2 + 2 * 16) * 768**2 + 2 * 16 * 768 + 8 * 768**2
    assert "attention_pool" not in dense.macs


def test_gradients_of_depthwise_convolutions_cost_what_the_convolution_does():
    cost = count("xcit_nano_12_p16_224", patch_size=16, img_size=64)
    assert 2 * cost.macs["other"] < cost.macs_train["other"] <= 3 * cost.macs["other"]


def test_an_operation_without_a_formula_is_named():
    from patchscale.costs.operations import count_forward_and_backward

    @torch.library.custom_op("patchscale_test::doubled", mutates_args=())
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    doubled.register_fake(torch.empty_like)
    doubled.register_autograd(lambda context, gradient: gradient * 2)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = torch.nn.Linear(4, 4)

        def forward(self, x):
            return doubled(self.mlp(x))

    with torch.device("meta"):
        model, x = Model(), torch.empty(1, 4)
    with pytest.raises(UserError, match=r"model 'strange' cannot be counted: .* patchscale_test.doubled has no FLOP"):
        count_forward_and_backward(model, model.forward, x, name="strange")
    register_flop_formula(torch.ops.patchscale_test.doubled)(lambda shape, **_: 2 * prod(shape))
    macs, macs_train = count_forward_and_backward(model, model.forward, x, name="strange")
    assert sum(macs.values()) == 4 * 4 + 4
    assert sum(macs_train.values()) == 2 * 4 * 4 + 4  # the input needs no gradient


@pytest.mark.parametrize(
    ("name", "built_in"),
    [("vit_small_patch16_224", "vit_small"), ("vit_giant_patch14_dinov2", "vit_giant_swiglu_reg4")],
)
def test_numbers_moved_by_a_layer_are_those_of_the_built_in_shape(name, built_in):
    """Without class token and registers, which a counted model does not tell."""
    counted, formula = (step_work(count(each, patch_size=16, img_size=64), train=False) for each in (name, built_in))
    patches = 16 / (16 + SHAPES[built_in].prefix_tokens)
    assert counted["moved"] == pytest.approx(patches * formula["moved"])


@pytest.mark.parametrize(
    ("name", "outside"),
    [
        ("vit_base_patch16_siglip_224", ("patch_embed", "attention_pool", "head")),
        ("xcit_nano_12_p16_224", ("patch_embed", "head")),
    ],
)
def test_checkpointing_computes_blocks_again_and_nothing_else(name, outside):
    counts = count(name, patch_size=16, img_size=64)
    plain, again = (executed_macs(counts, train=True, activation_checkpointing=with_it) for with_it in (False, True))
    assert {part for part in plain if again[part] == plain[part]} == set(outside)
    assert all(again[part] - plain[part] == counts.macs[part] for part in plain if part not in outside)
