"""Models through torch.compile, for training and for measuring it."""

import torch
from torch import nn


def compile_backbone(backbone: nn.Module) -> None:
    """Compile what every task runs, in place: no module is wrapped, so names of parameters stay as they are.

    Random numbers are drawn as without compilation, so that drop path stays a function of (seed, step, image).
    """
    compiled = torch.compile(backbone.forward_features, options={"fallback_random": True})  # type: ignore[arg-type]
    backbone.forward_features = compiled  # type: ignore[assignment]
