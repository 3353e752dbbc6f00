"""What a vision-language model costs, from closed formulas: visual tokens, parameters, multiply-adds, memory. No torch.

All functions take plain numbers in frozen dataclasses; the named families, language models and models are only entries
of dictionaries (`families.py`, `language_models.py`, `models.py`). A new family is a rule in `image_rules/` (or the
settings of one that is there) and an entry in `FAMILIES`; a new model is one entry in `MODELS`.
"""

from patchscale.costs.vision_language.estimate import VisionLanguageCost, estimate_vision_language_cost
from patchscale.costs.vision_language.families import FAMILIES, count_visual_tokens
from patchscale.costs.vision_language.image_tokens import VisualTokens
from patchscale.costs.vision_language.inverse import LargestImage, largest_image
from patchscale.costs.vision_language.language_models import LANGUAGE_MODELS
from patchscale.costs.vision_language.models import MODELS, VisionLanguageModel
from patchscale.costs.vision_language.variations import vary

__all__ = [
    "FAMILIES",
    "LANGUAGE_MODELS",
    "MODELS",
    "LargestImage",
    "VisionLanguageCost",
    "VisionLanguageModel",
    "VisualTokens",
    "count_visual_tokens",
    "estimate_vision_language_cost",
    "largest_image",
    "vary",
]
