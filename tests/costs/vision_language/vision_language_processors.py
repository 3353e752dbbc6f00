"""The families' real processors, built from their published settings; nothing is downloaded."""

from functools import cache

import torch
from tokenizers import Tokenizer, models
from transformers import (
    GotOcr2ImageProcessor,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Siglip2ImageProcessor,
)
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.siglip.image_processing_siglip import SiglipImageProcessor

from patchscale.costs.vision_language.image_rules.smart_resize import SmartResize

CLIP_336 = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}


def image(size: tuple[int, int]) -> torch.Tensor:
    """A black image of (height, width)."""
    return torch.zeros(3, *size, dtype=torch.uint8)


def qwen(rule: SmartResize) -> Qwen2VLImageProcessor:
    """Qwen3-VL uses the same class with patches of 16."""
    return Qwen2VLImageProcessor(
        patch_size=rule.patch_size, min_pixels=rule.min_pixels, max_pixels=rule.max_pixels, merge_size=rule.merge_size
    )


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    names = ["<unk>", "<image>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        unk_token="<unk>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )


def internvl(**settings: int) -> InternVLProcessor:
    """With the settings of `GotOcr2ImageProcessor` that are given."""
    images = GotOcr2ImageProcessor(size={"height": 448, "width": 448}, crop_to_patches=True, **settings)
    return InternVLProcessor(image_processor=images, tokenizer=_tokenizer(), video_processor=InternVLVideoProcessor())


def llava_next(pinpoints: list[list[int]] | None = None) -> LlavaNextProcessor:
    """As LLaVA-NeXT with CLIP L/14 at 336 pixels; other resolutions (height, width) if given."""
    settings = CLIP_336 | ({} if pinpoints is None else {"image_grid_pinpoints": pinpoints})
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(**settings),
        tokenizer=_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def clip_336() -> CLIPImageProcessor:
    """The image processor of LLaVA-1.5."""
    return CLIPImageProcessor(**CLIP_336)


def siglip(side: int) -> SiglipImageProcessor:
    """The image processor of PaliGemma."""
    return SiglipImageProcessor(size={"height": side, "width": side})


def naflex(max_num_patches: int) -> Siglip2ImageProcessor:
    """The image processor of SigLIP 2 NaFlex."""
    return Siglip2ImageProcessor(patch_size=16, max_num_patches=max_num_patches)
