"""Weights out of a file, without running anything that is in it; and into a file.

Read are torch files (`.pth`, `.pt`, `.bin`: the layouts of the Adventurer, DeiT and timm releases, bare state dicts,
checkpoints of our own training) and safetensors (anybody's; ours say in their header what model they are of).
"""

import argparse
import json
import math
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from patchscale.errors import UserError
from patchscale.files import atomic_write
from patchscale.shapes import image_height_width, parse_img_size

HEADER = "patchscale"
"""Entry of a safetensors header that holds our description of the model, as JSON."""

# Where files keep a state dict, and its moving average: DeiT and Adventurer, timm and Lightning, our own training.
_STATE_KEYS = ("model", "state_dict", "task")
_EMA_KEYS = ("model_ema", "state_dict_ema", "ema")
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel and moving averages; torch.compile
_BACKBONE = "backbone."  # a task's weights: its backbone, and possibly a head of its own

# What published checkpoints hold beside tensors and plain values: the settings of the run, with paths in them, and best
# scores as NumPy scalars. Python 3.13 writes paths as pathlib._local, NumPy 1 its scalars as numpy.core.
_SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    *(
        (pure, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for pure, name in (
            (pathlib.PurePosixPath, "PosixPath"),
            (pathlib.PurePosixPath, "PurePosixPath"),
            (pathlib.PureWindowsPath, "WindowsPath"),
            (pathlib.PureWindowsPath, "PureWindowsPath"),
        )
    ),
    *((np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # type: ignore[attr-defined]
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")),
]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors of one model, under the names the model gives them."""

    path: Path
    entry: str
    """Where in the file they were: "model", "model_ema", ..., or "" if the file holds nothing else."""
    tensors: dict[str, Tensor]
    task_head: dict[str, Tensor]
    """Weights of a task's own head, which stands behind the model (segmentation)."""
    header: dict[str, Any]
    """What our own files say about their model; empty for others."""

    @property
    def is_adventurer(self) -> bool:
        """Whether the names are those of Adventurer."""
        return "layers.0.mixer.A_log" in self.tensors

    @property
    def patch_size(self) -> tuple[int, int] | None:
        """Height and width of the patch kernel; without one what the header says; None if nothing tells."""
        kernel = self.tensors.get("patch_embed.proj.weight")
        if kernel is not None and kernel.dim() == 4 and kernel.numel():
            return kernel.shape[2], kernel.shape[3]
        stated = self.header.get("patch_size")
        return (stated, stated) if isinstance(stated, int) and stated > 0 else None

    @property
    def img_size(self) -> tuple[int, int] | None:
        """Height and width in pixels that the header says; None if it says nothing."""
        stated = self.header.get("img_size")
        if stated is None:
            return None
        with self.quoting("img_size"):
            return image_height_width(parse_img_size(str(stated)))

    @property
    def num_classes(self) -> int:
        """Outputs of the model's head, 0 if there is none; `UserError` if it is not a linear map."""
        head = self.tensors.get("head.weight")
        if head is None:
            return 0
        if head.dim() != 2 or not head.numel():
            raise UserError(f"{self.path}: head.weight has the shape {list(head.shape)}, not [num_classes, embed_dim]")
        return head.shape[0]

    @contextmanager
    def quoting(self, *keys: str) -> Iterator[None]:
        """Let a `UserError` name the file, and what its header says under these keys, if it says anything."""
        try:
            yield
        except UserError as error:
            said = ", ".join(f"{key} {self.header[key]!r}" for key in keys if self.header.get(key) is not None)
            if not said:
                raise
            raise UserError(f"{self.path}: its header says {said}: {error}") from None

    def grid(self, other_rows: int) -> tuple[int, int] | None:
        """Patch grid, from the header or else of a square image; None if nothing tells.

        `other_rows` of the position table are not patches.
        """
        img_size, patch_size = self.img_size, self.patch_size
        if img_size is not None and patch_size is not None:
            return img_size[0] // patch_size[0], img_size[1] // patch_size[1]
        table = self.tensors.get("pos_embed")
        if table is None or table.dim() != 3:
            return None
        patches = table.shape[1] - other_rows
        side = math.isqrt(max(patches, 0))
        return (side, side) if side and side * side == patches else None


def read_weights(path: str | Path, *, ema: bool = False) -> Weights:
    """Read a torch or safetensors file, told apart by their first bytes; `ema` takes the moving average.

    Only tensors and plain values are unpickled (`weights_only=True`). Raises `UserError` for a file that is missing,
    damaged, of another type, without weights, or that holds anything that could run code.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
        size = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file of weights") from None
    header: dict[str, Any] = {}
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < size:  # safetensors begin with their header's length
        content, header = _read_safetensors(path)
    elif start.startswith((b"PK", b"\x80")):  # zip since torch 1.6, a bare pickle before
        content = _read_torch(path, is_zip=start.startswith(b"PK"))
    else:
        raise UserError(f"{path}: neither a torch file (.pth, .pt) nor safetensors; give a file of weights")
    entry, state = _state_dict(path, content, ema=ema)
    if ema and not entry and header.get("weights") != "ema":
        raise UserError(f"{path}: holds no moving average; read it without ema")
    state = _unwrapped(dict(sorted(state.items())))  # safetensors come in random order
    backbone = {name: tensor for name, tensor in state.items() if name.startswith(_BACKBONE)}
    return Weights(
        path=path,
        entry=entry,
        tensors=_unwrapped({name.removeprefix(_BACKBONE): tensor for name, tensor in (backbone or state).items()}),
        task_head={name: tensor for name, tensor in state.items() if backbone and name not in backbone},
        header=header,
    )


def write_safetensors(path: Path, state: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and our header, whole or not at all.

    One header entry, because safetensors writes several in random order: equal weights make equal files.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_write(path, "wb") as file:
        file.write(safetensors.torch.save(tensors, metadata={HEADER: json.dumps(header)}))


def _read_torch(path: Path, *, is_zip: bool) -> Any:
    try:
        if is_zip:
            _check_archive(path)
        with torch.serialization.safe_globals(_SAFE_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats; what cannot be read ends in an error here
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            raise UserError(
                f"{path}: holds {forbidden[1]}, which could run code, so it is not read; ask for a file with tensors "
                "and plain values only, or for safetensors"
            ) from None
        raise UserError(
            f"{path}: damaged, or a pickle that cannot be read safely; save the weights as safetensors or by torch.save"
        ) from None
    except (UserError, MemoryError, OSError):
        raise
    except Exception as error:  # torch raises many types for a damaged file
        if "can't allocate memory" in str(error):  # torch's own allocator has no exception for it
            raise MemoryError(f"{path}: {error}") from None
        words = str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise UserError(f"{path}: damaged or cut off ({words}); get it again") from None


def _check_archive(path: Path) -> None:
    """Refuse zip files that torch.save did not write, before torch does in words of its own."""
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}  # all are in one folder
    if "constants.pkl" in names:  # how torch itself tells
        raise UserError(f"{path}: a TorchScript program; save its state_dict() with torch.save")
    if "data.pkl" not in names:
        raise UserError(f"{path}: a zip file, but not one of torch.save; give a file of weights")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    content = path.read_bytes()
    try:
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        header = json.loads(metadata.get(HEADER, "{}"))
        if not isinstance(header, dict) or not all(isinstance(value, str | int | None) for value in header.values()):
            raise ValueError(f"the {HEADER!r} entry of its header does not describe a model")
        return tensors, header
    except MemoryError:
        raise
    except Exception as error:  # safetensors has its own types
        raise UserError(f"{path}: damaged or cut off ({' '.join(str(error).split())[:100]}); get it again") from None


def _state_dict(path: Path, content: Any, *, ema: bool) -> tuple[str, dict[str, Tensor]]:
    """The state dict in what a file holds, and the name of its entry."""
    found = [
        key for key in (_EMA_KEYS if ema else _STATE_KEYS) if _is_mapping(content) and _is_mapping(content.get(key))
    ]
    state = content[found[0]] if found else content
    if found or _is_state_dict(content):
        if _is_state_dict(state):
            return (found[0] if found else ""), dict(state)
        if not state:
            raise UserError(f"{path}: entry {found[0]!r} is empty; give a file with a state dict")
        raise UserError(f"{path}: entry {found[0]!r} holds more than named tensors; give a file with a state dict")
    if not _is_mapping(content):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict of named tensors")
    wanted = "moving average" if ema else "state dict"
    entries = ", ".join(repr(key) for key in list(content)[:6]) or "nothing"
    looked_for = ", ".join(_EMA_KEYS if ema else _STATE_KEYS)
    raise UserError(f"{path}: no {wanted} in it (entries: {entries}; looked for {looked_for})")


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_state_dict(value: Any) -> bool:
    return (
        _is_mapping(value)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that wrappers put in front of every name."""
    for prefix in _WRAPPERS * 2:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
