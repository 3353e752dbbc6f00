"""Adventurer under timm's naming: after `import patchscale.models`, timm.create_model("adventurer_base_patch1_224").

Names are those of the released code, extended to all sizes, patch sizes and image sizes of the paper, and they build
the released model, with its flip schedule, so that published weights load into what they were trained as. See
docs/decisions/0002-timm-registration.md.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

from timm.models import register_model

from patchscale.errors import UserError
from patchscale.models.adventurer import Adventurer
from patchscale.shapes import SHAPES, AdventurerShape

SIZES = ("tiny", "small", "base", "large", "huge")
PATCH_SIZES = (16, 8, 4, 2, 1)
IMG_SIZES = (64, 128, 224)

# What timm's data pipeline asks of a model; filled below, one entry a name.
default_cfgs: dict[str, dict[str, Any]] = {}


def register() -> None:
    """Tell timm all names; called once, when `patchscale.models` is imported."""
    for size, patch_size, img_size in product(SIZES, PATCH_SIZES, IMG_SIZES):
        name = f"adventurer_{size}_patch{patch_size}_{img_size}"
        # The released evaluation resizes to S / 0.875 and crops; below patch 16, not below 128 px, it does not crop.
        crop_pct = 0.875 if patch_size == 16 or img_size == 64 else 1.0
        default_cfgs[name] = {
            "input_size": (3, img_size, img_size),
            "fixed_input_size": True,
            "crop_pct": crop_pct,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "num_classes": 1000,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        register_model(_entry_point(name, f"adventurer_{size}", patch_size, img_size))


def _entry_point(name: str, shape_name: str, patch_size: int, img_size: int) -> Callable[..., Adventurer]:
    shape = SHAPES[shape_name]
    assert isinstance(shape, AdventurerShape)

    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        in_chans: int = 3,
        **options: Any,
    ) -> Adventurer:
        if pretrained:
            raise UserError(f"{name}: no weights are published with timm; create it without pretrained=True")
        if in_chans != 3:
            raise UserError(f"{name}: images have 3 channels; got in_chans={in_chans}")
        sizes: dict[str, Any] = {"patch_size": patch_size, "img_size": img_size, "flip_schedule": "released"}
        model = Adventurer.from_shape(shape, **(sizes | options))
        model.pretrained_cfg = {"architecture": name, **default_cfgs[name]}
        return model

    create.__name__ = create.__qualname__ = name
    return create
