"""One contract for every model: our own of all sizes, and one or more of every supported family of timm.

Small models run for real, forward and backward. Large ones run on the meta device, which checks every shape.
"""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from patchscale.errors import UserError
from patchscale.models import count_parameters, create_model, list_models
from patchscale.models.vit import TIMM_FAMILIES, timm_vit_names
from patchscale.shapes import SHAPES

TIMM_NAMES = (
    "test_vit",
    "vit_tiny_patch16_224",
    "vit_small_patch16_18x2_224",
    "deit3_small_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "eva02_tiny_patch14_224",
    "vit_base_patch16_rope_224",
    "beit_base_patch16_224",
    "vit_relpos_small_patch16_224",
    "cait_xxs24_224",
    "xcit_nano_12_p16_224",
    "vit_base_patch16_siglip_224",
)
SMALL = (
    *("vit_test", "vit_nano", "adventurer_test", "adventurer_nano"),
    *("test_vit", "eva02_tiny_patch14_224", "xcit_nano_12_p16_224"),
)
FAST = ("vit_test", "adventurer_test")
PATCH_SIZES = (16, 8, 4, 2, 1)


def patch_sizes_of(name: str) -> tuple[int, ...]:
    return (16, 8) if name.startswith("xcit") else PATCH_SIZES


def rectangle(patch_size: int) -> tuple[int, int]:
    """Two by three patches, so that height and width cannot be confused."""
    return 2 * patch_size, 3 * patch_size


def build(name: str, patch_size: int = 8, **options: object) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"patch_size": patch_size, "img_size": rectangle(patch_size), "num_classes": 7}
    return create_model(name, **(sizes | options))  # type: ignore[arg-type]


def images_for(model: nn.Module, batch: int = 2, device: str = "cpu") -> Tensor:
    generator = None if device == "meta" else torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, *model.img_size, device=device, generator=generator)


def check_contract(model: nn.Module, patch_size: int, images: Tensor) -> None:
    tokens = model.forward_features(images)
    assert model.forward_head(tokens).shape == (2, 7)
    assert model.forward_feature_map(images).shape == (2, model.embed_dim, 2, 3)
    assert (model.patch_size, model.img_size) == (patch_size, rectangle(patch_size))
    assert model.architecture in ("vit", "adventurer")
    assert isinstance(model.num_features, int)
    assert model.num_features == model.embed_dim
    assert all(isinstance(name, str) for name in model.no_weight_decay())
    model.set_grad_checkpointing(True)
    model.set_grad_checkpointing(False)
    counts = count_parameters(model)
    assert counts["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert counts["backbone"] + counts["head"] + counts["pos_embed"] == counts["total"]
    assert min(counts["head"], counts["patch_embed"]) > 0
    model.reset_classifier(0)
    assert model(images).shape[0] == 2
    assert count_parameters(model)["head"] == 0


def check_contract_on_meta(name: str, patch_size: int) -> None:
    with torch.device("meta"):
        model = build(name, patch_size).eval()
        check_contract(model, patch_size, images_for(model, device="meta"))


@pytest.mark.parametrize("name", [*SHAPES, *TIMM_NAMES])
def test_contract(name: str) -> None:
    check_contract_on_meta(name, patch_sizes_of(name)[-1])


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_contract_of_all_that_is_listed() -> None:
    for name in list_models():
        check_contract_on_meta(name, 8)


@pytest.mark.parametrize("name", SMALL)
def test_contract_at_every_patch_size(name: str) -> None:
    for patch_size in patch_sizes_of(name):
        model = build(name, patch_size).eval()
        with torch.no_grad():
            logits = model(images_for(model))
            assert logits.shape == (2, 7)
            assert logits.isfinite().all()
            check_contract(model, patch_size, images_for(model))


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    for patch_size in patch_sizes_of(name):
        model = build(name, patch_size).train()
        images = images_for(model)
        map_loss = model.forward_feature_map(images).square().mean()
        (model(images).square().sum() + map_loss).backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, f"{key} at patch size {patch_size} has no gradient"
            assert parameter.grad.isfinite().all(), f"{key} at patch size {patch_size}"
            if not key.startswith("head"):  # the loss is flat where logits start at zero
                assert parameter.grad.any(), f"{key} at patch size {patch_size} has a zero gradient"


@pytest.mark.parametrize("name", SMALL)
def test_a_copy_gives_the_same_outputs(name: str) -> None:
    model = build(name, patch_sizes_of(name)[-1]).eval()
    duplicate = copy.deepcopy(model)
    images = images_for(model)
    with torch.no_grad():
        assert torch.equal(model(images), duplicate(images))
        assert torch.equal(model.forward_feature_map(images), duplicate.forward_feature_map(images))
        pickled = pickle.loads(pickle.dumps(model))
        assert torch.equal(model(images), pickled(images))
        next(duplicate.parameters()).add_(1)
        assert not torch.equal(model(images), duplicate(images))


@pytest.mark.parametrize("name", SMALL)
def test_weights_load_into_a_new_model(name: str) -> None:
    model, other = build(name).eval(), build(name).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
        other.load_state_dict(model.state_dict())
        assert torch.equal(model(images_for(model)), other(images_for(model)))


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_decides_the_weights(name: str) -> None:
    first, second = build(name).state_dict(), build(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("pos_embed", ["learned", "sincos2d"])
@pytest.mark.parametrize("name", [*FAST, "vit_nano", "adventurer_nano"])
def test_gradient_checkpointing_changes_nothing(name: str, pos_embed: str) -> None:
    gradients = []
    for enable in (False, True):
        model = build(name, patch_size=1, img_size=(4, 6), pos_embed=pos_embed).train()
        model.set_grad_checkpointing(enable)
        model(images_for(model)).square().sum().backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    plain, checkpointed = gradients
    for key, gradient in plain.items():
        torch.testing.assert_close(checkpointed[key], gradient, msg=key)


@pytest.mark.parametrize("name", [*FAST, "eva02_tiny_patch14_224"])
def test_images_do_not_influence_each_other(name: str) -> None:
    model = build(name, 1).eval()
    images = images_for(model, batch=3)
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(model(images), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_autocast_is_finite_both_ways(name: str) -> None:
    model = build(name, patch_sizes_of(name)[-1]).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images_for(model))
    assert logits.isfinite().all()
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("schedule", ["alternate", "released", "pairs", "none"])
def test_only_adventurer_minds_the_flip_schedule(schedule: str) -> None:
    assert build("adventurer_test", flip_schedule=schedule).flip_schedule == schedule
    assert not hasattr(build("vit_test", flip_schedule=schedule), "flip_schedule")


@pytest.mark.parametrize("name", [*SHAPES, *TIMM_NAMES])
def test_patches_that_do_not_tile_the_image_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="patch_size=7 does not divide the 32x48 image; use patch_size one of"):
        create_model(name, patch_size=7, img_size=(32, 48))


@pytest.mark.parametrize("name", FAST)
def test_images_of_another_size_are_refused(name: str) -> None:
    model = build(name)
    with pytest.raises((UserError, AssertionError), match=r"16"):
        model(torch.zeros(1, 3, 8, 8))


def test_the_list_has_ours_first_then_timms() -> None:
    names = list_models()
    assert names[: len(SHAPES)] == list(SHAPES)
    assert names[len(SHAPES) :] == sorted(timm_vit_names())
    assert list_models("adventurer_t*") == ["adventurer_test", "adventurer_tiny"]
    assert set(TIMM_NAMES) <= set(names)
    assert not [name for name in names if name.startswith(("swin", "resnet", "samvit"))]
    assert len(TIMM_FAMILIES) == 7
