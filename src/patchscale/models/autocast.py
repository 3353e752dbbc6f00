"""Autocast off, for what chooses its own precisions."""

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Inside, operations take the dtypes they are given, also where backward() is called under autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)  # it knows no meta
