"""Reference numbers from other implementations, and the inputs they belong to."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden" / "oracle_golden.json"


@cache
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


def expected(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def waves(shape: tuple[int, ...], frequency: float, phase: float) -> Tensor:
    """sin(frequency * k + phase) in flat order, float64."""
    count = math.prod(shape)
    return torch.sin(frequency * torch.arange(count, dtype=torch.float64) + phase).reshape(shape)


def fill_adventurer(model: torch.nn.Module) -> None:
    """Give every tensor of the state dict, in plain string order of the keys, its formula."""
    state = model.state_dict()
    for j, key in enumerate(sorted(state)):
        i = torch.arange(state[key].numel(), dtype=torch.float64)
        s = torch.sin(0.37 * (i % 1009) + 0.11 * j)
        if key.endswith("A_log"):
            values = torch.log(1 + i % 15)
        elif key.endswith("dt_bias"):
            values = -4 + 0.5 * i
        elif key.endswith((".D", "norm.weight", "norm_mlp.weight", "norm_f.weight")):
            values = 1 + 0.1 * s
        elif key.endswith("conv1d.weight"):
            values = 0.3 * s
        elif key.endswith(("pos_embed", "cls_token")):
            values = 0.5 * s
        else:
            values = 0.08 * s
        state[key] = values.reshape(state[key].shape)
    model.load_state_dict(state)


def wave_images(batch: int, size: int) -> Tensor:
    """[batch, 3, size, size] with pixel sin(0.05 (y size + x) + c + 2 b), float64."""
    pixel = 0.05 * torch.arange(size * size, dtype=torch.float64).reshape(1, 1, size, size)
    channel = torch.arange(3.0, dtype=torch.float64).reshape(1, 3, 1, 1)
    image = 2 * torch.arange(batch, dtype=torch.float64).reshape(batch, 1, 1, 1)
    return torch.sin(pixel + channel + image)
