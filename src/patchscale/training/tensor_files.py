"""Named tensors of any number of processes in a folder of safetensors files, and back into any other number.

torch.distributed.checkpoint decides which process writes which piece, and puts the pieces together again. Its usual
files hold pickles. Its reader also knows safetensors, which hold tensors only: reading them runs no code.
"""

import json
import os
import re
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from patchscale.training.collective import is_distributed, on_every_rank

OFFSETS = "DCP_SHARDING_INFO"
"""Entry of a file's header in which torch's reader looks for the place of each piece; without it they are whole."""
CHUNK_BYTES = 2**20


def write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Write plain tensors (equal on all ranks) and DTensors into an empty folder, flushed to disk; collective.

    Returns size and checksum of every file by its name. Raises `OSError` on all ranks if one cannot write.
    """
    if is_distributed():
        _write_together(folder, tensors)
    else:
        _save(folder / _file_name(0), tensors)
    own = folder / _file_name(dist.get_rank() if is_distributed() else 0)
    described = on_every_rank(lambda: {own.name: describe_file(own)} if own.exists() else {})
    return {name: file for files in described for name, file in files.items()}


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every whole tensor in a folder that `write_tensors` wrote."""
    stored = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in stored.items()}  # type: ignore[union-attr]


def read_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors`, plain or DTensors, from a folder that `write_tensors` wrote; collective."""
    reader = dcp.HuggingFaceStorageReader(str(folder))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it should be, alone
            dcp.load(dict(tensors), storage_reader=reader, no_dist=not is_distributed())
    except dcp.CheckpointException as error:
        raise _first_failure(error) from error


def describe_file(path: Path) -> dict[str, Any]:
    """Size in bytes and CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return {"bytes": path.stat().st_size, "crc32": f"{crc:08x}"}


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Writer(dcp.HuggingFaceStorageWriter):
    """Torch's writer of safetensors with another way to the file: its own copies every tensor twice in memory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), save_distributed=True)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors, offsets, written = {}, {}, []
        for item in plan.items:
            name, tensor = item.index.fqn, planner.resolve_data(item)
            assert isinstance(tensor, Tensor), name
            assert item.tensor_data is not None, name
            tensors[name] = tensor
            offsets[name] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
            written.append(WriteResult(index=item.index, size_in_bytes=tensor.nbytes, storage_data=name))
        if tensors:
            _save(Path(self.path) / _file_name(dist.get_rank()), tensors, {OFFSETS: json.dumps(offsets)})
        done: Future[list[WriteResult]] = Future()
        done.set_result(written)
        return done


def _write_together(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        dcp.save(dict(tensors), storage_writer=_Writer(folder))
    except dcp.CheckpointException as error:
        raise _first_failure(error) from error


def _save(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str] | None = None) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata=header)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    flush(path)


def _first_failure(error: dcp.CheckpointException) -> BaseException:
    """What went wrong on the first rank that failed; torch's own is not an `Exception`."""
    return error.failures[min(error.failures)][0]


def _file_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"
