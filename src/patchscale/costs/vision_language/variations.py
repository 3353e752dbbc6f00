"""Other models of the same make: another patch size, merge factor, image rule or language model."""

from dataclasses import replace

from patchscale.costs.vision_language.image_rules.anyres import AnyRes
from patchscale.costs.vision_language.image_rules.dynamic_tiling import DynamicTiling
from patchscale.costs.vision_language.image_rules.fixed_size import FixedSize
from patchscale.costs.vision_language.image_rules.naflex import NaFlex
from patchscale.costs.vision_language.image_tokens import ImageRule
from patchscale.costs.vision_language.language_models import DecoderShape
from patchscale.costs.vision_language.models import VisionLanguageModel
from patchscale.errors import UserError


def vary(
    model: VisionLanguageModel,
    *,
    image_rule: ImageRule | None = None,
    patch_size: int | None = None,
    merge_size: int | None = None,
    llm: DecoderShape | None = None,
    name: str | None = None,
) -> VisionLanguageModel:
    """`model` with the parts that are given, and the others fitted to them.

    A position table of whole tiles follows the number of patches in a tile; one that is interpolated to any image
    (Qwen3-VL) keeps its rows, and attention windows keep their number of patches. A projector as wide inside as its
    input or output stays so. Raises `UserError` if patches do not fill a tile, or the image rule cannot merge.
    """
    rule = image_rule or model.image_rule
    patch, merge = patch_size or rule.patch_size, merge_size or rule.merge_size
    if isinstance(rule, AnyRes | NaFlex):
        if merge != 1:
            raise UserError(f"merge_size={merge}: {type(rule).__name__} does not merge patches; choose 1")
        rule = replace(rule, patch_size=patch)
    else:
        rule = replace(rule, patch_size=patch, merge_size=merge)  # type: ignore[type-var]
    decoder = llm or model.llm
    old = model.projector
    hidden = old.hidden_dim
    projector = replace(old, merge_size=merge, out_dim=decoder.embed_dim)
    if hidden == old.merged_dim:
        projector = replace(projector, hidden_dim=projector.merged_dim)
    elif hidden == old.out_dim:
        projector = replace(projector, hidden_dim=projector.out_dim)
    return replace(
        model,
        name=name or model.name,
        image_rule=rule,
        encoder=replace(model.encoder, patch_size=patch, position_rows=_position_rows(model, rule)),
        projector=projector,
        llm=decoder,
    )


def _position_rows(model: VisionLanguageModel, rule: ImageRule) -> int:
    rows = model.encoder.position_rows
    if not rows:
        return 0
    if isinstance(rule, FixedSize):
        side = rule.side
    elif isinstance(rule, AnyRes | DynamicTiling):
        side = rule.tile_size
    else:
        return rows
    return (side // rule.patch_size) ** 2 + (1 if model.encoder.class_token else 0)
