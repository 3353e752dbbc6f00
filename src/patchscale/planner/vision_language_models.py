"""Named vision-language models, varied: other images, patches, merges and language models. No torch.

What a variation costs is asked of `patchscale.costs.vision_language` alone: encoder and prefill with attention, cache,
memory of the request.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pandas as pd

from patchscale.costs.vision_language import LANGUAGE_MODELS, VisionLanguageModel, estimate_vision_language_cost, vary
from patchscale.costs.vision_language.image_rules.fixed_size import FixedSize
from patchscale.costs.vision_language.language_models import decoder_params
from patchscale.costs.vision_language.models import get_model
from patchscale.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Variation:
    """A model as it would be built, and the image that it is given."""

    name: str
    """Of the model that was varied."""
    llm: str
    img_size: int
    """Side of a square image in pixels; of models that resize all images to one square, the side of that."""
    model: VisionLanguageModel


def variations(
    models: Sequence[str],
    *,
    img_sizes: Sequence[int],
    patch_sizes: Sequence[int] = (),
    merge_factors: Sequence[int] = (),
    llms: Sequence[str] = (),
) -> list[Variation]:
    """All that can be built; what is empty stays as the model has it.

    What does not fit together is left out. Raises `UserError` with the last reason if nothing is left.
    """
    found, reason = [], ""
    for name in models:
        model = get_model(name)
        own = (model.image_rule.patch_size,), (model.image_rule.merge_size,), (own_llm(model),)
        axes = (img_sizes, patch_sizes or own[0], merge_factors or own[1], llms or own[2])
        for img_size, patch_size, merge_factor, llm in product(*axes):
            try:
                varied = _varied(model, img_size, patch_size, merge_factor, llm)
                varied.image_rule.count(img_size)
            except UserError as error:
                reason = str(error)
                continue
            found.append(Variation(name=name, llm=llm, img_size=img_size, model=varied))
    if not found:
        raise UserError(f"none of these can be built with {', '.join(models)}: {reason}")
    return found


def _varied(model: VisionLanguageModel, img_size: int, patch_size: int, merge_factor: int, llm: str) -> Any:
    rule = model.image_rule
    if isinstance(rule, FixedSize):  # image and patches change together: neither has to fit the other's old size
        rule = replace(rule, side=img_size, patch_size=patch_size, merge_size=merge_factor)
    shape = model.llm if llm == own_llm(model) else LANGUAGE_MODELS[llm]
    return vary(model, image_rule=rule, patch_size=patch_size, merge_size=merge_factor, llm=shape)


def own_llm(model: VisionLanguageModel) -> str:
    """The name of a model's language model; its vocabulary may be a little larger than the language model's own."""
    shape = model.llm
    alike = {
        name: abs(one.vocab_size - shape.vocab_size)
        for name, one in LANGUAGE_MODELS.items()
        if replace(one, vocab_size=shape.vocab_size, tied_embeddings=shape.tied_embeddings) == shape
    }
    return min(alike, key=lambda name: alike[name])


def check_llms(names: Sequence[str]) -> None:
    """Raises `UserError` for a language model that is not known."""
    for name in names:
        if name not in LANGUAGE_MODELS:
            raise UserError(f"language model {name!r} is not known; choose one of {', '.join(LANGUAGE_MODELS)}")


def priced_variations(found: Sequence[Variation], **request: Any) -> pd.DataFrame:
    """One row each, with what its request costs; `request` as `estimate_vision_language_cost` takes it.

    `llm_params` are all of the language model's parameters, embedding table included.
    """
    rows = []
    for one in found:
        cost = estimate_vision_language_cost(one.model, img_size=one.img_size, **request)
        prefill = 2 * sum(number for part, number in cost.macs.items() if part.startswith("llm_"))
        rows.append(
            {
                "model": one.name,
                "img_size": one.img_size,
                "patch_size": one.model.image_rule.patch_size,
                "merge_factor": one.model.image_rule.merge_size,
                "llm": one.llm,
                "tokens": cost.num_images * cost.visual.encoder_tokens,
                "visual_tokens": cost.visual_tokens,
                "llm_params": float(sum(decoder_params(one.model.llm).values())),
                "encoder_flops": float(cost.flops_prefill - prefill),
                "prefill_flops": float(prefill),
                "infer_flops": float(cost.flops_prefill),
                "params_total": float(cost.params_total),
                "weights_bytes": float(cost.weights_bytes),
                "kv_cache_bytes": float(cost.kv_cache_bytes),
                "peak_memory_bytes": float(cost.peak_memory_bytes),
            }
        )
    frame = pd.DataFrame(rows)
    return frame.assign(model=frame["model"].astype("category"), llm=frame["llm"].astype("category"))
