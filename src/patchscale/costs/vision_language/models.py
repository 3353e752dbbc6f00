"""Named vision-language models: encoder + projector + language model + the rule for images.

Sizes are those of the released configuration files. Vocabularies are the ones the released weights have, which are
larger than the language models' own.
"""

from dataclasses import dataclass, replace
from difflib import get_close_matches

from patchscale.costs.vision_language import encoders
from patchscale.costs.vision_language.encoders import EncoderShape, ProjectorShape
from patchscale.costs.vision_language.families import FAMILIES
from patchscale.costs.vision_language.image_tokens import ImageRule
from patchscale.costs.vision_language.language_models import LANGUAGE_MODELS, DecoderShape
from patchscale.errors import UserError


@dataclass(frozen=True, kw_only=True)
class VisionLanguageModel:
    """Four parts; `vary` exchanges one and fits the others. Raises `UserError` where parts do not fit together."""

    name: str
    image_rule: ImageRule
    encoder: EncoderShape
    projector: ProjectorShape
    llm: DecoderShape
    prefix_attends_fully: bool = False
    """Image and prompt attend to each other in both directions (PaliGemma)."""

    def __post_init__(self) -> None:
        for what, left, right in (
            ("patch_size of image rule and encoder", self.image_rule.patch_size, self.encoder.patch_size),
            ("merge_size of image rule and projector", self.image_rule.merge_size, self.projector.merge_size),
            ("width of encoder and projector", self.encoder.embed_dim, self.projector.in_dim),
            ("width of projector and language model", self.projector.out_dim, self.llm.embed_dim),
        ):
            if left != right:
                raise UserError(f"{what} differ: {left} and {right}; give both the same, or use `vary`")


def get_model(name: str) -> VisionLanguageModel:
    """The model of that name; raises `UserError` for an unknown one."""
    if name not in MODELS:
        close = get_close_matches(name, MODELS, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(MODELS)}"
        raise UserError(f"vision-language model {name!r} is not known; {hint}")
    return MODELS[name]


def _llava(name: str, family: str, llm: str) -> VisionLanguageModel:
    decoder = replace(LANGUAGE_MODELS[llm], vocab_size=32_064)
    return VisionLanguageModel(
        name=name,
        image_rule=FAMILIES[family],
        encoder=encoders.CLIP_L_336,
        projector=ProjectorShape(
            in_dim=1024, hidden_dim=decoder.embed_dim, out_dim=decoder.embed_dim, newline=family == "llava-next"
        ),
        llm=decoder,
    )


def _qwen(name: str, family: str, encoder: EncoderShape, llm: str) -> VisionLanguageModel:
    decoder = LANGUAGE_MODELS[llm]
    return VisionLanguageModel(
        name=name,
        image_rule=FAMILIES[family],
        encoder=encoder,
        projector=ProjectorShape(
            in_dim=encoder.embed_dim,
            merge_size=2,
            hidden_dim=4 * encoder.embed_dim,
            out_dim=decoder.embed_dim,
            norm=encoder.norm,
            taps=3 if family == "qwen3-vl" else 0,
        ),
        llm=decoder,
    )


def _internvl(name: str, family: str, encoder: EncoderShape, llm: str) -> VisionLanguageModel:
    vocabulary = 92_553 if llm.startswith("internlm2") else 151_674
    decoder = replace(LANGUAGE_MODELS[llm], vocab_size=vocabulary, tied_embeddings=False)
    return VisionLanguageModel(
        name=name,
        image_rule=FAMILIES[family],
        encoder=encoder,
        projector=ProjectorShape(
            in_dim=encoder.embed_dim,
            merge_size=2,
            hidden_dim=decoder.embed_dim,
            out_dim=decoder.embed_dim,
            norm="layer",
            norm_after_merging=True,
        ),
        llm=decoder,
    )


def _paligemma(name: str, side: int, llm: str) -> VisionLanguageModel:
    decoder = replace(LANGUAGE_MODELS[llm], vocab_size=257_216)
    return VisionLanguageModel(
        name=name,
        image_rule=FAMILIES[f"paligemma-{side}"],
        encoder=encoders.siglip_so400m(side),
        projector=ProjectorShape(in_dim=1152, out_dim=decoder.embed_dim),
        llm=decoder,
        prefix_attends_fully=True,
    )


_QWEN25_SMALL, _QWEN25_LARGE = encoders.qwen25_vl_vision(3420), encoders.qwen25_vl_vision(3456)
_QWEN3_SMALL, _QWEN3_LARGE = encoders.qwen3_vl_vision(1024, 24, 4096), encoders.qwen3_vl_vision(1152, 27, 4304)

MODELS: dict[str, VisionLanguageModel] = {
    model.name: model
    for model in (
        _llava("llava-1.5-7b", "llava-1.5", "vicuna-7b"),
        _llava("llava-1.5-13b", "llava-1.5", "vicuna-13b"),
        _llava("llava-next-vicuna-7b", "llava-next", "vicuna-7b"),
        _llava("llava-next-mistral-7b", "llava-next", "mistral-7b"),
        _llava("llava-next-vicuna-13b", "llava-next", "vicuna-13b"),
        _qwen("qwen2-vl-2b", "qwen2-vl", encoders.QWEN2_VL_VISION, "qwen2.5-1.5b"),
        _qwen("qwen2-vl-7b", "qwen2-vl", encoders.QWEN2_VL_VISION, "qwen2.5-7b"),
        _qwen("qwen2-vl-72b", "qwen2-vl", encoders.QWEN2_VL_VISION, "qwen2.5-72b"),
        _qwen("qwen2.5-vl-3b", "qwen2.5-vl", _QWEN25_SMALL, "qwen2.5-3b"),
        _qwen("qwen2.5-vl-7b", "qwen2.5-vl", _QWEN25_SMALL, "qwen2.5-7b"),
        _qwen("qwen2.5-vl-32b", "qwen2.5-vl", _QWEN25_LARGE, "qwen2.5-32b"),
        _qwen("qwen2.5-vl-72b", "qwen2.5-vl", _QWEN25_LARGE, "qwen2.5-72b"),
        _qwen("qwen3-vl-2b", "qwen3-vl", _QWEN3_SMALL, "qwen3-1.7b"),
        _qwen("qwen3-vl-4b", "qwen3-vl", _QWEN3_SMALL, "qwen3-4b"),
        _qwen("qwen3-vl-8b", "qwen3-vl", _QWEN3_LARGE, "qwen3-8b"),
        _qwen("qwen3-vl-32b", "qwen3-vl", _QWEN3_LARGE, "qwen3-32b"),
        _internvl("internvl2-2b", "internvl2", encoders.INTERN_VIT_300M, "internlm2-1.8b"),
        _internvl("internvl2-8b", "internvl2", encoders.INTERN_VIT_300M, "internlm2-7b"),
        _internvl("internvl2-26b", "internvl2", encoders.INTERN_VIT_6B, "internlm2-20b"),
        _internvl("internvl2.5-1b", "internvl2.5", encoders.INTERN_VIT_300M, "qwen2.5-0.5b"),
        _internvl("internvl2.5-2b", "internvl2.5", encoders.INTERN_VIT_300M, "internlm2-1.8b"),
        _internvl("internvl2.5-4b", "internvl2.5", encoders.INTERN_VIT_300M, "qwen2.5-3b"),
        _internvl("internvl2.5-8b", "internvl2.5", encoders.INTERN_VIT_300M, "internlm2-7b"),
        _internvl("internvl2.5-26b", "internvl2.5", encoders.INTERN_VIT_6B, "internlm2-20b"),
        _internvl("internvl2.5-38b", "internvl2.5", encoders.INTERN_VIT_6B, "qwen2.5-32b"),
        _internvl("internvl2.5-78b", "internvl2.5", encoders.INTERN_VIT_6B, "qwen2.5-72b"),
        _internvl("internvl3-1b", "internvl3", encoders.INTERN_VIT_300M, "qwen2.5-0.5b"),
        _internvl("internvl3-2b", "internvl3", encoders.INTERN_VIT_300M, "qwen2.5-1.5b"),
        _internvl("internvl3-8b", "internvl3", encoders.INTERN_VIT_300M, "qwen2.5-7b"),
        _internvl("internvl3-14b", "internvl3", encoders.INTERN_VIT_300M, "qwen2.5-14b"),
        _internvl("internvl3-38b", "internvl3", encoders.INTERN_VIT_6B, "qwen2.5-32b"),
        _internvl("internvl3-78b", "internvl3", encoders.INTERN_VIT_6B, "qwen2.5-72b"),
        *(_paligemma(f"paligemma-3b-{side}", side, "gemma-2b") for side in (224, 448, 896)),
        *(_paligemma(f"paligemma2-3b-{side}", side, "gemma2-2b") for side in (224, 448, 896)),
        *(_paligemma(f"paligemma2-10b-{side}", side, "gemma2-9b") for side in (224, 448, 896)),
        *(_paligemma(f"paligemma2-28b-{side}", side, "gemma2-27b") for side in (224, 448, 896)),
    )
}
