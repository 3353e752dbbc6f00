"""Real models of transformers, built on the meta device (no memory, no download) from our plain numbers."""

from typing import Any

import torch
from torch import nn
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from patchscale.costs.vision_language.encoders import EncoderShape
from patchscale.costs.vision_language.image_tokens import VisualTokens
from patchscale.costs.vision_language.language_models import DecoderShape
from patchscale.costs.vision_language.models import VisionLanguageModel

FULL_ATTENTION_BLOCKS = [7, 15, 23, 31]
TAPS = {24: [5, 11, 17], 27: [8, 16, 24]}


def build(model: VisionLanguageModel, attention: str = "eager") -> nn.Module:
    """The model with the attention implementation that is named."""
    config, built = _CONFIGS[family_of(model)](model)
    with torch.device("meta"):
        made = built._from_config(config, attn_implementation=attention, dtype=torch.bfloat16)
    return made.to("meta").eval()


def family_of(model: VisionLanguageModel) -> str:
    """llava-1.5, llava-next, qwen2-vl, qwen2.5-vl, qwen3-vl, internvl or paligemma."""
    return next(family for family in _CONFIGS if model.name.startswith(family))


@torch.no_grad()
def encode(built: nn.Module, model: VisionLanguageModel, visual: VisualTokens) -> Any:
    """Runs encoder and projector on one image."""
    encoder, pixels = model.encoder, {"device": "meta", "dtype": torch.bfloat16}
    side = encoder.patch_size * visual.patch_grid[0]
    if family_of(model).startswith("qwen"):
        return _encode_packed(built.model.visual, encoder, model.projector.merge_size, visual, pixels)
    if family_of(model) == "llava-next":
        images = torch.empty(1, visual.tiles, 3, side, side, **pixels)
        return built.model.get_image_features(images, image_sizes=torch.tensor([visual.img_size]))
    return built.model.get_image_features(torch.empty(visual.tiles, 3, side, side, **pixels))


def _encode_packed(
    tower: nn.Module, encoder: EncoderShape, merge_size: int, visual: VisualTokens, pixels: dict[str, Any]
) -> Any:
    """Indices are computed on the CPU, where they have values, and handed over."""
    grid = torch.tensor([[1, *visual.patch_grid]])
    known = {"position_ids": get_vision_position_ids(grid, merge_size).to("meta")}
    if encoder.window is not None:
        index, lengths = get_vision_window_index(grid, merge_size, encoder.window * encoder.patch_size, 14)
        known |= {"window_index": index.to("meta"), "cu_window_seqlens": lengths}
    if encoder.position_rows:
        indices, weights = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=merge_size,
        )
        known |= {"interp_indices": indices.to("meta"), "interp_weights": weights.to("meta")}
    return tower(torch.empty(visual.encoder_tokens, encoder.patch_inputs, **pixels), grid, **known)


@torch.no_grad()
def prefill(built: nn.Module, model: VisionLanguageModel, tokens: int, batch_size: int = 1) -> Any:
    """Runs the language model on embeddings, and the output layer on the last token."""
    embeddings = torch.empty(batch_size, tokens, model.llm.embed_dim, device="meta", dtype=torch.bfloat16)
    out = built.model.language_model(inputs_embeds=embeddings, use_cache=True)
    return out, built.lm_head(out.last_hidden_state[:, -1:])


def _text(llm: DecoderShape, model_type: str) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": llm.embed_dim,
        "num_hidden_layers": llm.depth,
        "num_attention_heads": llm.num_heads,
        "num_key_value_heads": llm.num_kv_heads,
        "head_dim": llm.head_dim,
        "intermediate_size": llm.mlp_dim,
        "vocab_size": llm.vocab_size,
        "tie_word_embeddings": llm.tied_embeddings,
        "pad_token_id": None,
    }


def _clip_style(encoder: EncoderShape, model_type: str, side: int) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": encoder.embed_dim,
        "intermediate_size": encoder.mlp_dim,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "patch_size": encoder.patch_size,
        "image_size": side,
    }


def _llava(model: VisionLanguageModel) -> tuple[Any, type]:
    text = _text(model.llm, "mistral" if "mistral" in model.name else "llama")
    vision = _clip_style(model.encoder, "clip_vision_model", 336)
    if family_of(model) == "llava-next":
        return LlavaNextConfig(text_config=text, vision_config=vision), LlavaNextForConditionalGeneration
    return LlavaConfig(text_config=text, vision_config=vision), LlavaForConditionalGeneration


def _qwen(model: VisionLanguageModel) -> tuple[Any, type]:
    family, encoder, tied = family_of(model), model.encoder, model.llm.tied_embeddings
    mrope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    vision = {
        "depth": encoder.depth,
        "num_heads": encoder.num_heads,
        "patch_size": encoder.patch_size,
        "temporal_patch_size": encoder.frames_per_patch,
        "spatial_merge_size": model.projector.merge_size,
    }
    text = _text(model.llm, f"{family.replace('-', '_').replace('.', '_')}_text") | {"rope_parameters": mrope}
    if family == "qwen2-vl":
        vision |= {"embed_dim": encoder.embed_dim, "hidden_size": model.llm.embed_dim}
        return Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied), (
            Qwen2VLForConditionalGeneration
        )
    vision |= {
        "hidden_size": encoder.embed_dim,
        "intermediate_size": encoder.mlp_dim,
        "out_hidden_size": model.llm.embed_dim,
    }
    if family == "qwen2.5-vl":
        vision |= {"fullatt_block_indexes": FULL_ATTENTION_BLOCKS, "window_size": 112}
        return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied), (
            Qwen2_5_VLForConditionalGeneration
        )
    vision |= {"deepstack_visual_indexes": TAPS[encoder.depth], "num_position_embeddings": encoder.position_rows}
    text["rope_parameters"] = mrope | {"mrope_section": [24, 20, 20]}
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied), (
        Qwen3VLForConditionalGeneration
    )


def _internvl(model: VisionLanguageModel) -> tuple[Any, type]:
    encoder = model.encoder
    vision = {
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": encoder.mlp_dim,
        "attention_bias": encoder.qkv_bias,
        "use_qk_norm": encoder.qk_norm,
        "norm_type": f"{encoder.norm}_norm",
    }
    text = _text(model.llm, "qwen2" if model.llm.qkv_bias else "llama")
    return (
        InternVLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False),
        InternVLForConditionalGeneration,
    )


def _paligemma(model: VisionLanguageModel) -> tuple[Any, type]:
    gemma2 = model.llm.sliding_window is not None
    text = _text(model.llm, "gemma2" if gemma2 else "gemma") | {"pad_token_id": 0}
    side = 14 * int(model.encoder.position_rows**0.5)
    vision = _clip_style(model.encoder, "siglip_vision_model", side) | {"vision_use_head": False}
    config = PaliGemmaConfig(
        text_config=text, vision_config=vision, projection_dim=model.llm.embed_dim, hidden_size=model.llm.embed_dim
    )
    return config, PaliGemmaForConditionalGeneration


_CONFIGS = {
    "llava-1.5": _llava,
    "llava-next": _llava,
    "qwen2-vl": _qwen,
    "qwen2.5-vl": _qwen,
    "qwen3-vl": _qwen,
    "internvl": _internvl,
    "paligemma": _paligemma,
}
