"""The published settings of the families; one entry per family."""

from patchscale.costs.vision_language.image_rules.anyres import AnyRes
from patchscale.costs.vision_language.image_rules.dynamic_tiling import DynamicTiling
from patchscale.costs.vision_language.image_rules.fixed_size import FixedSize
from patchscale.costs.vision_language.image_rules.naflex import NaFlex
from patchscale.costs.vision_language.image_rules.smart_resize import SmartResize
from patchscale.costs.vision_language.image_tokens import ImageRule, VisualTokens
from patchscale.errors import UserError

_QWEN_14 = SmartResize(patch_size=14, min_pixels=56 * 56, max_pixels=16384 * 28 * 28)

FAMILIES: dict[str, ImageRule] = {
    "llava-1.5": FixedSize(side=336, crops=True),
    "llava-next": AnyRes(),
    # Limits of the released preprocessor files; the class defaults of transformers stop at 1,280 tokens instead.
    "qwen2-vl": _QWEN_14,
    "qwen2.5-vl": _QWEN_14,
    "qwen3-vl": SmartResize(patch_size=16, min_pixels=65_536, max_pixels=16_777_216),
    "internvl2": DynamicTiling(),
    "internvl2.5": DynamicTiling(),
    "internvl3": DynamicTiling(),
    "paligemma-224": FixedSize(side=224),
    "paligemma-448": FixedSize(side=448),
    "paligemma-896": FixedSize(side=896),
    "siglip2-naflex": NaFlex(),
}


def family_rule(family: str) -> ImageRule:
    """The rule with the family's published settings; change one with `dataclasses.replace`."""
    if family not in FAMILIES:
        raise UserError(f"family={family!r} is not known; choose one of {', '.join(FAMILIES)}")
    return FAMILIES[family]


def count_visual_tokens(family: str, img_size: int | tuple[int, int]) -> VisualTokens:
    """Tokens of one image (height, width) by the family's published settings.

    Raises `UserError` for an unknown family, an empty image, and a shape that the family refuses.
    """
    return family_rule(family).count(img_size)
