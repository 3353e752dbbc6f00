"""What the benchmark scripts share: options, the setting they record, peers, and how results are written."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchscale.files import write_json
from patchscale.measurements.environment import environment, environment_words
from patchscale.measurements.paired import Spread
from patchscale.training.device import resolve_device


def options_parser(description: str | None, *, repetitions: int, warm_up: int = 2) -> argparse.ArgumentParser:
    """A parser with the options of every script; its help is the script's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--warm-up", type=int, default=warm_up, help="rounds before the timed ones")
    parser.add_argument("--repetitions", type=int, default=repetitions, help="timed rounds")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser


def begin(options: argparse.Namespace, *packages: str) -> tuple[torch.device, dict[str, Any]]:
    """Apply the threads; return the device, and the setting with machine, versions, commit and all options."""
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device, option="--device ")
    given = {name: value for name, value in vars(options).items() if name not in ("output", "device", "threads")}
    setting = {"benchmark": Path(sys.argv[0]).stem} | environment(device, *packages) | given
    print(environment_words(setting))
    return device, setting


def finish(options: argparse.Namespace, setting: dict[str, Any], **results: Any) -> None:
    """Write everything to --output, if that was given."""
    if options.output is not None:
        write_json(options.output, {"setting": setting, **results})


def numbers(spread: Spread) -> dict[str, float]:
    """A median with its quartiles, for JSON."""
    return {"median": spread.median, "25": spread.low, "75": spread.high}


def words(spread: Spread, digits: int = 3) -> str:
    """The same for people."""
    return f"{spread.median:.{digits}g} (25-75 % {spread.low:.{digits}g}-{spread.high:.{digits}g})"


def relative_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Norm of the difference over norm of the truth."""
    return ((found.double() - truth.double()).norm() / truth.double().norm()).item()


def transformers_mixer(embed_dim: int, num_heads: int) -> nn.Module:
    """The Mamba-2 mixer of Hugging Face transformers, causal, one group; raises ImportError where it is missing."""
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=embed_dim,
        num_heads=num_heads,
        head_dim=2 * embed_dim // num_heads,
        state_size=64,
        n_groups=1,
        expand=2,
        conv_kernel=4,
        chunk_size=256,
        num_hidden_layers=1,
    )
    return Mamba2Mixer(config, layer_idx=0)
