"""Peak memory of one block of code."""

import re
from pathlib import Path
from typing import Literal

import torch

from patchscale.training.device import peak_memory_bytes

MemoryKind = Literal["cuda_allocated", "resident_above_start", "process_resident"]

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Use as `with PeakMemory(device) as peak: ...`, then read `peak.bytes`.

    `kind` says what the number is:
        cuda_allocated         most memory allocated for tensors during the block, with what was there before (weights)
        resident_above_start   how far the process's resident memory rose above its level before the block (Linux);
                               memory that the process had freed but kept is not counted again, so use a fresh process
        process_resident       the most the process ever had resident (where the system cannot reset its mark)
    `process_bytes` is the whole process's peak on a CPU: during the block on Linux, ever elsewhere.
    """

    kind: MemoryKind
    bytes: int
    process_bytes: int | None = None

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            self.kind = "cuda_allocated"
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        elif _reset_resident_peak():
            self.kind = "resident_above_start"
            self._before = _status_bytes("VmRSS")
        else:
            self.kind = "process_resident"
        return self

    def __exit__(self, *_: object) -> None:
        if self.kind == "resident_above_start":
            self.process_bytes = _status_bytes("VmHWM")
            self.bytes = self.process_bytes - self._before
        else:
            self.bytes = peak_memory_bytes(self.device)
            if self.kind == "process_resident":
                self.process_bytes = self.bytes


def _reset_resident_peak() -> bool:
    """Set the process's mark of its highest resident memory to what it has now; False where that is not possible."""
    try:
        _CLEAR_REFS.write_text("5")  # "resets the peak resident set size to the current value", proc(5)
        return True
    except OSError:
        return False


def _status_bytes(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert match is not None, name
    return int(match[1]) * 1024
