"""What a resume needs, as a folder of tensors and one JSON file, and the final weights.

`checkpoint/step-00001234/` holds weights, optimizer, moving average and running totals, in one form for any number of
processes. No generator state: randomness is a function of (seed, step). Nothing in it is a pickle, so reading one runs
no code. `checkpoint/model.safetensors` is written once, at the end.
"""

import json
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from patchscale.errors import RunFailed, UserError
from patchscale.files import write_text
from patchscale.models.weights import write_safetensors
from patchscale.training.collective import on_rank_0
from patchscale.training.sharding import whole_state
from patchscale.training.tensor_files import describe_file, flush, read_tensors, stored_shapes, write_tensors

FORMAT = "patchscale-checkpoint-2"
MANIFEST = "manifest.json"
OLD = "last.pt"
"""The checkpoint of earlier versions, a pickle."""
WEIGHTS = "model.safetensors"
RAW_WEIGHTS, EMA_WEIGHTS = "model_raw.safetensors", "model_ema.safetensors"
"""Of a run with a moving average: those of its two kinds of final weights that are not the evaluated ones."""


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
    learning_rate_factor: float = 1.0
    """What the schedule's learning rate is multiplied by; less than 1 once the run has gone back: `rollback.py`."""
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
    evaluates_ema: bool = True

    @property
    def evaluated(self) -> nn.Module:
        """The weights that count: the moving average if there is one, unless it is kept aside."""
        return self.ema.module if self.ema is not None and self.evaluates_ema else self.task

    @property
    def final_weights(self) -> dict[str, nn.Module]:
        """By name of the file: what is saved at the end, the evaluated weights as `WEIGHTS`."""
        if self.ema is None:
            return {WEIGHTS: self.task}
        if self.evaluates_ema:
            return {WEIGHTS: self.ema.module, RAW_WEIGHTS: self.task}
        return {WEIGHTS: self.task, EMA_WEIGHTS: self.ema.module}


class Checkpoints:
    """The checkpoints of one run, `<folder>/step-<step>/`; only a whole one ever has such a name.

    A checkpoint is written under a temporary name, flushed, and renamed when all ranks are done; only then are older
    ones removed, beyond the newest `keep_last` and, with `keep_best`, the one of the lowest validation loss. Its
    manifest, written last, has the checksum of every file. `identity` is the config's, so that no other run resumes
    from it; `say` gets a line for people. `save` and `load` are collective: every rank calls them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: str,
        keep_last: int = 1,
        keep_best: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = folder
        self.identity = identity
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.say = say or (lambda text: None)

    def save(self, state: TrainingState, *, loss: float | None = None) -> None:
        """Write `state`, whole or not at all; `loss` is that of the validation after this step, if there was one.

        Raises `RunFailed("storage")` if the disk is full or cannot be written; earlier checkpoints are then untouched.
        """
        step, tensors = state.totals.step, _tensors(state)
        path = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{path.name}.tmp"
        manifest = {
            "format": FORMAT,
            "identity": self.identity,
            "step": step,
            "loss": loss,
            "totals": asdict(state.totals),
            "param_groups": state.optimizer.state_dict()["param_groups"],
        }
        try:
            on_rank_0(lambda: _make_anew(temporary))
            files = write_tensors(temporary, tensors)
            on_rank_0(lambda: self._publish(temporary, path, manifest | {"files": files}))
        except OSError as error:
            message = on_rank_0(partial(self._give_up, temporary, step, tensors, error))
            raise RunFailed("storage", message) from error

    def load(self, state: TrainingState) -> bool:
        """Continue `state` from the newest whole checkpoint, of any number of processes; False if there is none.

        Damaged ones are passed over. Raises `UserError` if all are damaged, and for the checkpoint of another run.
        """
        found = on_rank_0(self._newest_whole)
        if found is None:
            return False
        path, manifest = found
        if manifest["identity"] != self.identity:
            raise UserError(
                f"{path}: belongs to run {manifest['identity']}, this is {self.identity}; {_advice(self.folder)}"
            )
        try:
            _restore(state, path, manifest)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            words = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: does not fit this run's model ({words}); {_advice(self.folder)}") from error
        return True

    def clear(self) -> None:
        """Remove what only a resume needs; call at the end of a run, on one rank. The best stays if it is asked for."""
        best = self._best() if self.keep_best else None
        for path in self._paths():
            if path != best:
                _remove(path)
        for leftover in self.folder.glob(".*.tmp"):  # of a process that was killed here
            _remove_leftover(leftover)

    def _paths(self) -> list[Path]:
        """Checkpoints, the newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _newest_whole(self) -> tuple[Path, dict[str, Any]] | None:
        paths, damage = self._paths(), {}
        for path in paths:
            try:
                manifest = _read_manifest(path)
                _check_files(path, manifest)
            except _Damaged as error:
                damage[path] = str(error)
                continue
            for other, words in damage.items():
                self.say(f"{other}: damaged checkpoint ({words}); going on from {path.name}")
            return path, manifest
        if damage:
            words = f"damaged checkpoint ({damage[paths[0]]}), and no older one is whole"
            raise UserError(f"{paths[0]}: {words}; {_advice(self.folder)}")
        if (old := self.folder / OLD).exists():
            raise UserError(f"{old}: a checkpoint of a version before this one, not read; {_advice(self.folder)}")
        return None

    def _best(self) -> Path | None:
        """The checkpoint of the lowest validation loss, the earlier of two."""
        losses = {}
        for path in reversed(self._paths()):
            with suppress(_Damaged, UserError):
                losses[path] = _read_manifest(path)["loss"]
        losses = {path: loss for path, loss in losses.items() if loss is not None}
        return min(losses, key=lambda path: losses[path], default=None)

    def _publish(self, temporary: Path, path: Path, manifest: dict[str, Any]) -> None:
        """Seal a written checkpoint with its manifest, give it its name, and then remove others."""
        text = json.dumps(manifest)
        write_text(temporary / MANIFEST, json.dumps({"crc32": zlib.crc32(text.encode()), "manifest": text}) + "\n")
        flush(temporary)
        if path.exists():  # a damaged one, passed over: this run would have gone on from a whole one
            _remove(path)
        temporary.rename(path)
        flush(self.folder)
        self._prune(path)

    def _prune(self, newest: Path) -> None:
        """Remove what need not be kept, now that `newest` is written; later steps are damaged ones, passed over."""
        paths = self._paths()
        for path in paths[: paths.index(newest)]:
            _remove(path)
        paths = self._paths()
        best = self._best() if self.keep_best else None
        for path in paths[self.keep_last :]:
            if path != best:
                _remove(path)

    def _give_up(self, temporary: Path, step: int, tensors: dict[str, Tensor], error: OSError) -> str:
        """Make room again; what to tell of a checkpoint that could not be written."""
        before = _disk_free(self.folder)
        shutil.rmtree(temporary, ignore_errors=True)
        free = max(before, _disk_free(self.folder))
        needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        last = next((path.name for path in self._paths()), None)
        kept = f"{last} is kept, go on from it" if last else "nothing was saved before, begin again"
        return (
            f"{self.folder}: checkpoint of step {step} cannot be written ({error.strerror or error}); it needs "
            f"{needed / 2**20:,.1f} MiB, {free / 2**20:,.1f} MiB are free; {kept} when there is room to write"
        )


class _Damaged(Exception):
    """A checkpoint that is not as it was written; the message says in what."""


def _advice(folder: Path) -> str:
    return f"move {folder} away to start this run from its beginning"


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    """Every tensor that training changes, by a name that does not depend on the order of parameters."""
    tensors = {f"task.{name}": tensor for name, tensor in state.task.state_dict().items()}
    if state.ema is not None:
        tensors |= {f"ema.{name}": tensor for name, tensor in state.ema.module.state_dict().items()}
    for name, parameter in state.task.named_parameters():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def _restore(state: TrainingState, path: Path, manifest: dict[str, Any]) -> None:
    """Raises `ValueError` and the like if `state` is of another model; it may then be half restored."""
    _grow_optimizer_state(state, stored := stored_shapes(path), manifest["param_groups"])
    tensors = _tensors(state)
    expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | stored.keys()):
        if expected.get(name) != stored.get(name):
            raise ValueError(f"{name} has shape {stored.get(name)} in it, here {expected.get(name)}")
    read_tensors(path, tensors)
    state.totals = Totals(**manifest["totals"])


def _grow_optimizer_state(
    state: TrainingState, stored: dict[str, tuple[int, ...]], groups: list[dict[str, Any]]
) -> None:
    """Give an optimizer that has done no step the tensors that a checkpoint has for it, of zeros, and its settings."""
    number = {id(p): n for n, p in enumerate(p for group in state.optimizer.param_groups for p in group["params"])}
    grown: dict[int, dict[str, Tensor]] = {}
    for name, parameter in state.task.named_parameters():
        prefix = f"optimizer.{name}."
        for key in (each.removeprefix(prefix) for each in stored if each.startswith(prefix)):
            whole = stored[prefix + key] == tuple(parameter.shape)
            empty = torch.zeros_like(parameter) if whole else torch.zeros(stored[prefix + key])
            grown.setdefault(number[id(parameter)], {})[key] = empty.detach()
    state.optimizer.load_state_dict({"state": grown, "param_groups": [_with_tuples(group) for group in groups]})


def _with_tuples(group: dict[str, Any]) -> dict[str, Any]:
    """As it was before JSON made lists of tuples."""
    return {name: tuple(v) if isinstance(v, list) and name != "params" else v for name, v in group.items()}


def _make_anew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _read_manifest(path: Path) -> dict[str, Any]:
    """Raises `_Damaged`, and `UserError` for one of another version."""
    try:
        sealed = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        text = sealed["manifest"]
        if zlib.crc32(text.encode()) != sealed["crc32"]:
            raise _Damaged(f"{MANIFEST} has changed")
        manifest: dict[str, Any] = json.loads(text)
    except FileNotFoundError:
        raise _Damaged(f"{MANIFEST} is missing") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _Damaged(f"{MANIFEST} cannot be read ({type(error).__name__})") from None
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this version ({FORMAT}); {_advice(path.parent)}")
    return manifest


def _check_files(path: Path, manifest: dict[str, Any]) -> None:
    """Raises `_Damaged`."""
    for name, expected in manifest["files"].items():
        try:
            found = describe_file(path / name)
        except FileNotFoundError:
            raise _Damaged(f"{name} is missing") from None
        except OSError as error:
            raise _Damaged(f"{name} cannot be read ({error.strerror})") from None
        if found != expected:
            raise _Damaged(f"{name} has changed" if found["bytes"] == expected["bytes"] else f"{name} is cut off")


def _remove(path: Path) -> None:
    """Delete a checkpoint; killed half way, it leaves a temporary name."""
    doomed = path.with_name(f".{path.name}.old.tmp")
    with suppress(OSError):
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _disk_free(folder: Path) -> int:
    with suppress(OSError):
        return shutil.disk_usage(folder).free
    return 0


def remove_leftovers(run_path: Path) -> None:
    """Delete half-written files that a killed process left; call only while holding the run's lock.

    Not those of config.yaml, which a sweep may be writing at this moment without the lock.
    """
    for pattern in (".*.json*.tmp", "checkpoint/.*.tmp"):
        for leftover in run_path.glob(pattern):
            _remove_leftover(leftover)


def _remove_leftover(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def save_weights(path: Path, task: nn.Module, metadata: dict[str, Any]) -> None:
    """Write the task's whole weights (backbone and head) as safetensors, with `metadata` in the header; collective."""
    state = whole_state(task)
    on_rank_0(lambda: write_safetensors(path, state, metadata))
