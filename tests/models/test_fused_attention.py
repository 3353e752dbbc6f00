"""Attention never writes its score matrix: memory grows with the tokens, not with their square."""

import pytest
import timm.layers
import torch
from torch import nn

from patchscale.models import create_model
from patchscale.models.vit import keeps_scores

SETUP = """
import torch
from patchscale.models.vit import create_vit
from patchscale.shapes import ViTShape

def model_of(height, width, fused=True):
    shape = ViTShape(embed_dim=16, depth=1, num_heads=1, mlp_dim=32)
    model = create_vit(
        shape, patch_size=1, img_size=(height, width), num_classes=2, pos_embed="sincos2d", drop_path_rate=0.0
    )
    model.blocks[0].attn.fused_attn = fused
    return model, torch.randn(1, 3, height, width)

def step(height, width, fused=True):
    model, images = model_of(height, width, fused)
    model(images).sum().backward()

def forward(height, width):
    model, images = model_of(height, width)
    with torch.inference_mode():
        assert model(images).isfinite().all()

step(16, 16)
"""


def score_matrix_bytes(tokens):
    return 4 * tokens**2


def test_memory_grows_with_the_tokens(peak_memory):
    """Forward and backward of one block with one head at 3,136, 6,272 and 12,544 tokens."""
    *fused, unfused = peak_memory(SETUP, "step(56, 56)", "step(56, 112)", "step(112, 112)", "step(56, 56, fused=False)")
    assert fused[1] < 2.2 * fused[0]
    assert fused[2] < 2.2 * fused[1]
    assert fused[2] < score_matrix_bytes(12_544) / 8
    assert unfused > score_matrix_bytes(3_136)  # the measurement sees such a matrix where there is one


@pytest.mark.slow
def test_50176_tokens_in_a_fraction_of_their_score_matrix(peak_memory):
    (peak,) = peak_memory(SETUP, "forward(224, 224)")
    assert peak < score_matrix_bytes(50_176) / 50  # of 10 GB


FAMILIES = (
    *("vit_test", "deit3_small_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch16_18x2_224"),
    *("beit_base_patch16_224", "vit_relpos_small_patch16_224"),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_is_fused_whatever_the_environment_says(name):
    timm.layers.set_fused_attn(False)  # what TIMM_FUSED_ATTN=0 does
    try:
        with torch.device("meta"):
            model = create_model(name, patch_size=16, img_size=32, num_classes=3)
    finally:
        timm.layers.set_fused_attn(True)
    attention = [module for module in model.modules() if hasattr(module, "fused_attn")]
    assert attention
    assert all(module.fused_attn for module in attention)


def test_families_that_write_scores_are_known():
    names = {name: keeps_scores(name) for name in (*FAMILIES, "cait_xxs24_224", "xcit_nano_12_p16_224")}
    assert [name for name, keeps in names.items() if keeps] == [
        "beit_base_patch16_224",
        "vit_relpos_small_patch16_224",
        "cait_xxs24_224",
    ]


def test_fused_and_plain_attention_agree():
    torch.manual_seed(0)
    model: nn.Module = create_model("vit_test", patch_size=4, img_size=32, num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32)
    fused = model(images)
    for block in model.blocks:
        block.attn.fused_attn = False
    torch.testing.assert_close(model(images), fused, rtol=1e-4, atol=1e-5)
