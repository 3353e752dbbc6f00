"""timm's ViTs at our sizes: the same numbers as timm, zero patch bias, fixed positions, feature maps, refusals."""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from patchscale.errors import UserError
from patchscale.models.parameters import count_parameters
from patchscale.models.positions import sincos2d
from patchscale.models.registry import create_model

# DeiT-Base with 1000 classes: (patch size, image size) -> parameters, as timm counts them.
DEIT_BASE_COUNTS = {
    (16, 64): 86_429_416,
    (8, 64): 86_023_912,
    (4, 64): 86_060_776,
    (2, 64): 86_622_952,
    (1, 64): 88_975_336,
    (16, 128): 86_466_280,
    (8, 128): 86_171_368,
    (4, 128): 86_650_600,
    (2, 128): 88_982_248,
    (16, 224): 86_567_656,
    (8, 224): 86_576_872,
}


@pytest.mark.parametrize(("patch_size", "img_size"), DEIT_BASE_COUNTS)
def test_parameter_counts(patch_size: int, img_size: int) -> None:
    with torch.device("meta"):
        model = create_model("deit_base", patch_size=patch_size, img_size=img_size)
    counts = count_parameters(model)
    assert counts["total"] == DEIT_BASE_COUNTS[patch_size, img_size]
    assert counts["pos_embed"] == ((img_size // patch_size) ** 2 + 1) * 768
    assert counts["patch_embed"] == (3 * patch_size**2 + 1) * 768
    assert counts["head"] == 769 * 1000
    assert counts["backbone"] == counts["total"] - counts["head"] - counts["pos_embed"]


@pytest.mark.parametrize(
    ("ours", "timms"),
    [
        ("vit_tiny", "vit_tiny_patch16_224"),
        ("vit_small", "vit_small_patch16_224"),
        ("vit_base", "vit_base_patch16_224"),
        ("vit_large", "vit_large_patch16_224"),
        ("deit_tiny", "deit_tiny_patch16_224"),
        ("deit_base", "deit_base_patch16_224"),
    ],
)
def test_short_names_are_timms_models(ours: str, timms: str) -> None:
    with torch.device("meta"):
        model = create_model(ours, patch_size=16, img_size=224)
        reference = timm.create_model(timms)
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in reference.state_dict().items()
    }


def test_short_names_compute_what_timm_computes() -> None:
    model = create_model("vit_nano", patch_size=4, img_size=(8, 16), num_classes=5).eval()
    reference = VisionTransformer(
        img_size=(8, 16), patch_size=4, num_classes=5, embed_dim=96, depth=4, num_heads=3, mlp_ratio=3
    ).eval()
    reference.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 8, 16)
    assert torch.equal(model(images), reference(images))
    tokens = reference.forward_features(images)[:, 1:]
    assert torch.equal(model.forward_feature_map(images).flatten(2).transpose(1, 2), tokens)
    assert model.norm.eps == model.blocks[0].norm1.eps == 1e-6


def test_timm_names_compute_what_timm_computes() -> None:
    model = create_model("deit3_small_patch16_224", patch_size=8, img_size=(16, 24), num_classes=5).eval()
    reference = timm.create_model("deit3_small_patch16_224", patch_size=8, img_size=(16, 24), num_classes=5).eval()
    reference.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 16, 24)
    assert torch.equal(model(images), reference(images))


def test_a_tag_of_weights_is_ignored() -> None:
    model = create_model("test_vit.r160_in1k", patch_size=8, img_size=16, num_classes=3)
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, 3)


@pytest.mark.parametrize("name", ["vit_test", "deit3_small_patch16_224", "eva02_tiny_patch14_224"])
@pytest.mark.parametrize("patch_size", [1, 16])
def test_patch_bias_starts_at_zero(name: str, patch_size: int) -> None:
    model = create_model(name, patch_size=patch_size, img_size=16)
    assert (model.patch_embed.proj.bias == 0).all()
    assert model.patch_embed.proj.weight.std() > 0


def test_feature_map_of_a_model_that_pools_first_is_normalised() -> None:
    model = create_model("eva02_tiny_patch14_224", patch_size=8, img_size=(16, 24)).eval()
    assert isinstance(model.norm, nn.Identity)
    features = model.forward_feature_map(torch.randn(1, 3, 16, 24))
    assert features.shape == (1, 192, 2, 3)
    torch.testing.assert_close(features.mean(1), torch.zeros(1, 2, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.var(1, correction=0), torch.ones(1, 2, 3), rtol=0, atol=1e-3)


def test_feature_map_is_in_raster_order() -> None:
    """Without positions, a patch's own pixels move the feature at its own place most."""
    torch.manual_seed(0)
    model = create_model("vit_test", patch_size=4, img_size=(8, 12)).eval()
    images = torch.randn(1, 3, 8, 12)
    before = model.forward_feature_map(images)
    images[..., 4:8, 8:12] += 3  # row 1, column 2
    moved = (model.forward_feature_map(images) - before).norm(dim=1)[0]
    assert moved.argmax() == 1 * 3 + 2


def test_fixed_positions_replace_the_learned_table() -> None:
    model = create_model("vit_test", patch_size=2, img_size=(4, 8), pos_embed="sincos2d")
    assert "pos_embed" not in dict(model.named_parameters())
    assert "pos_embed" in dict(model.named_buffers())
    assert count_parameters(model)["pos_embed"] == 0
    assert (model.pos_embed[0, 0] == 0).all()
    assert torch.equal(model.pos_embed[:, 1:], sincos2d((2, 4), 32))
    assert model(torch.randn(1, 3, 4, 8)).isfinite().all()


def test_sincos2d_tells_rows_from_columns() -> None:
    table = sincos2d((3, 4), 8, rows_before=2, rows_after=1)
    assert table.shape == (1, 15, 8)
    assert (table[0, :2] == 0).all()
    assert (table[0, -1] == 0).all()
    image = table[0, 2:-1].reshape(3, 4, 8)
    assert torch.equal(image[0, 1, :4], image[2, 1, :4])  # the first half depends on the column only
    assert torch.equal(image[1, 0, 4:], image[1, 3, 4:])  # the second on the row only
    assert image[1, 2, 0].item() == pytest.approx(torch.sin(torch.tensor(2.0)).item())
    assert len({tuple(row) for row in image.reshape(12, 8).tolist()}) == 12
    with pytest.raises(UserError, match="divisible by 4; got 6"):
        sincos2d((2, 2), 6)


def test_drop_path_reaches_timm() -> None:
    rates = [
        block.drop_path1.drop_prob
        for block in create_model("vit_tiny", patch_size=8, img_size=16, drop_path_rate=0.1).blocks[1:]
    ]
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("swin_tiny_patch4_window7_224", {}, "does not keep one token per patch or cannot be given a patch size"),
        ("resnet50", {}, "families that can: vision_transformer, deit, eva"),
        ("vit_tinny", {}, r"'vit_tinny' is unknown; did you mean vit_tiny"),
        ("eva02_tiny_patch14_225", {}, "did you mean eva02_tiny_patch14_224"),
        ("qqqq", {}, r"is unknown; ours are vit_test, vit_nano, .*_huge; patchscale.list_models\(\) lists all"),
        ("xcit_nano_12_p16_224", {"patch_size": 4}, r"has no patch_size=4; xcit models have \(8, 16\)"),
        ("beit_base_patch16_224", {"pos_embed": "sincos2d"}, "has no table of learned positions to replace"),
        ("vit_test", {"patch_size": 5}, "patch_size=5 does not divide the 32x32 image; use patch_size one of 2, 4, 8"),
        ("vit_test", {"patch_size": 0}, "img_size=32 and patch_size=0 must be positive whole numbers of pixels"),
        ("vit_test", {"patch_size": 2.0}, "patch_size=2.0 must be positive whole numbers"),
        ("vit_test", {"patch_size": None}, "patch_size=None must be positive whole numbers"),
        ("vit_test", {"img_size": "32"}, "img_size='32' and patch_size=8 must be positive whole numbers"),
        ("adventurer_test", {"img_size": (32, 32.0)}, r"img_size=\(32, 32.0\) and"),
        ("vit_test", {"img_size": (30, 32)}, "does not divide the 30x32 image; .* or image sides of .*24.*32.*40"),
        ("vit_test", {"pos_embed": "rope"}, "pos_embed='rope' is unknown; choose one of learned, sincos2d"),
        ("vit_test", {"num_classes": -1}, "num_classes=-1 must be 0"),
        ("vit_test", {"drop_path_rate": 1.0}, "drop_path_rate=1.0 must be at least 0 and below 1"),
    ],
)
def test_what_is_refused(name: str, options: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=message):
        create_model(name, **({"patch_size": 8, "img_size": 32} | options))  # type: ignore[arg-type]
