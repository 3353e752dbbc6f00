"""Models through torch.compile, for training and for measuring it."""

import torch
from torch import nn


def compile_backbone(backbone: nn.Module) -> None:
    """Compile what every task runs, in place: no module is wrapped, so names of parameters stay as they are.

    Random numbers are drawn as without compilation, so that drop path stays a function of (seed, step, image).
    """
    for name in ("forward_features", "forward_intermediates"):  # compiled when they are first called
        setattr(backbone, name, torch.compile(getattr(backbone, name), options={"fallback_random": True}))
