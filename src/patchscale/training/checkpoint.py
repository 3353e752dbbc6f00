"""What a resume needs, in one file, and the final weights.

`checkpoint/last.pt` holds weights, optimizer, moving average and running totals. No generator state: randomness is a
function of (seed, step). `checkpoint/model.safetensors` is written once, at the end.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from timm.utils import ModelEmaV3
from torch import nn

from patchscale.errors import UserError
from patchscale.files import atomic_write
from patchscale.models.weights import write_safetensors

FORMAT = "patchscale-checkpoint-1"
LAST = "last.pt"
WEIGHTS = "model.safetensors"


@dataclass(kw_only=True)
class Totals:
    """What a run has added up so far. Plain numbers, saved with every checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    wall_time_s: float = 0.0
    """All time spent, also on validation; steps repeated after a kill count once."""
    train_time_s: float = 0.0
    """Time spent on training steps alone."""
    window_loss: float = 0.0
    """Sum of the training loss since the last logged step."""
    window_steps: int = 0
    window_time_s: float = 0.0
    final_loss: float = 0.0
    """Sum of the training loss over the last tenth of the steps."""
    final_steps: int = 0
    peak_memory_bytes: int = 0
    validation: dict[str, Any] = field(default_factory=dict)
    """The last evaluation on the validation split."""

    def add_step(self, loss: float, time_s: float, *, is_final: bool) -> None:
        """Count one optimizer step; `is_final` if it is in the last tenth of the run."""
        self.step += 1
        self.train_time_s += time_s
        self.window_loss += loss
        self.window_steps += 1
        self.window_time_s += time_s
        if is_final:
            self.final_loss += loss
            self.final_steps += 1

    def take_window(self, batch_size: int) -> dict[str, float]:
        """Mean loss and speed since the last call, which then starts anew."""
        taken = {
            "loss": self.window_loss / self.window_steps,
            "images_per_s": self.window_steps * batch_size / self.window_time_s,
        }
        self.window_loss, self.window_steps, self.window_time_s = 0.0, 0, 0.0
        return taken


@dataclass(kw_only=True)
class TrainingState:
    """Everything that training changes."""

    task: nn.Module
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None
    totals: Totals

    @property
    def evaluated(self) -> nn.Module:
        """The weights that count: the moving average if there is one."""
        return self.task if self.ema is None else self.ema.module


def save_checkpoint(path: Path, state: TrainingState, identity: str) -> None:
    """Write `state`, whole or not at all; `identity` is the config's, so that no other run resumes from it."""
    with atomic_write(path, "wb") as file:
        torch.save(
            {
                "format": FORMAT,
                "identity": identity,
                "task": state.task.state_dict(),
                "optimizer": state.optimizer.state_dict(),
                "ema": None if state.ema is None else state.ema.state_dict(),
                "totals": asdict(state.totals),
            },
            file,
        )


def load_checkpoint(path: Path, state: TrainingState, identity: str) -> bool:
    """Continue `state` from `path`; False if there is no checkpoint.

    Raises `UserError` for a damaged file and for the checkpoint of another run. Only tensors and plain values are
    unpickled (`weights_only=True`).
    """
    if not path.exists():
        return False
    advice = "move it away to start this run from its beginning"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        words = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{path}: damaged checkpoint ({words}); {advice}") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this version ({FORMAT}); {advice}")
    if saved["identity"] != identity:
        raise UserError(f"{path}: belongs to run {saved['identity']}, this is {identity}; {advice}")
    try:
        state.task.load_state_dict(saved["task"])
        state.optimizer.load_state_dict(saved["optimizer"])
        if state.ema is not None:
            state.ema.load_state_dict(saved["ema"])
        state.totals = Totals(**saved["totals"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        words = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: does not fit this run's model ({words}); {advice}") from error
    return True


def remove_leftovers(run_path: Path) -> None:
    """Delete half-written files that a killed process left; call only while holding the run's lock.

    Not those of config.yaml, which a sweep may be writing at this moment without the lock.
    """
    for pattern in (".*.json*.tmp", "checkpoint/.*.tmp"):
        for leftover in run_path.glob(pattern):
            leftover.unlink(missing_ok=True)


def save_weights(path: Path, task: nn.Module, metadata: dict[str, Any]) -> None:
    """Write the task's weights (backbone and head) as safetensors, with `metadata` in the header."""
    write_safetensors(path, task.state_dict(), metadata)


def load_weights(path: Path, task: nn.Module) -> None:
    """Load what `save_weights` wrote; raises `UserError` if it is missing, damaged or of another model."""
    try:
        task.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except FileNotFoundError:
        raise UserError(f"{path}: no final weights; finish the run first") from None
    except Exception as error:  # safetensors has its own types; a misfit is a RuntimeError
        words = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: damaged, or the weights of another model ({words})") from error
