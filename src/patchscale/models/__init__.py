"""Backbones at any patch size: timm's vision transformers, and Adventurer. Importing this registers ours with timm."""

from patchscale.models import timm_names
from patchscale.models.adventurer import Adventurer
from patchscale.models.parameters import count_parameters
from patchscale.models.registry import create_model, list_models
from patchscale.models.resize import resize_patch_embed, resize_pos_embed
from patchscale.models.ssd import ssd_scan

timm_names.register()

__all__ = [
    "Adventurer",
    "count_parameters",
    "create_model",
    "list_models",
    "resize_patch_embed",
    "resize_pos_embed",
    "ssd_scan",
]
