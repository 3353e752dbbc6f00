"""Which GPUs of this machine have room for a run: several small ones share one, as far as their memory allows."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from patchscale.costs.memory import MEMORY_SHARE

CONTEXT_BYTES = 600 * 2**20
"""What CUDA and its libraries take of a device for every process, on top of tensors; about what an H100 shows."""


@dataclass(kw_only=True)
class Gpu:
    """One device and who is on it."""

    name: str
    """For CUDA_VISIBLE_DEVICES."""
    memory_bytes: int | None
    crowded: bool = False
    """Shared without regard to memory, as asked."""
    runs: dict[str, int] = field(default_factory=dict)
    """Run -> bytes it is predicted to take."""

    def has_room(self, memory_bytes: int, *, runs_per_gpu: int) -> bool:
        """Whether a run that takes so much fits beside the others; the first always does: it plans its own memory."""
        if not self.runs:
            return True
        if len(self.runs) >= runs_per_gpu or self.memory_bytes is None:
            return self.crowded and len(self.runs) < runs_per_gpu
        needed = sum(self.runs.values()) + memory_bytes + (len(self.runs) + 1) * CONTEXT_BYTES
        return needed <= MEMORY_SHARE * self.memory_bytes


class Gpus:
    """The GPUs of this machine."""

    def __init__(self, memory_bytes: Mapping[str, int | None], *, runs_per_gpu: int = 1) -> None:
        self.gpus = [Gpu(name=name, memory_bytes=size) for name, size in memory_bytes.items()]
        self.runs_per_gpu = runs_per_gpu

    def share_at_least(self, workers: int) -> None:
        """So many runs in all were asked for, whatever they are predicted to need."""
        if self.gpus and workers > len(self.gpus) * self.runs_per_gpu:
            self.runs_per_gpu = -(-workers // len(self.gpus))
            self.gpus = [replace(gpu, memory_bytes=None, crowded=True) for gpu in self.gpus]

    def find(self, number: int, memory_bytes: int) -> list[Gpu] | None:
        """GPUs for a run that wants so many, and so much memory of each; None if they are taken. The emptiest first."""
        fitting = [gpu for gpu in self.gpus if gpu.has_room(memory_bytes, runs_per_gpu=self.runs_per_gpu)]
        if number > 1:
            fitting = [gpu for gpu in fitting if not gpu.runs]
        fitting.sort(key=lambda gpu: len(gpu.runs))
        return fitting[:number] if len(fitting) >= number else None

    def take(self, run_id: str, gpus: list[Gpu], memory_bytes: int) -> None:
        """Put the run there."""
        for gpu in gpus:
            gpu.runs[run_id] = memory_bytes

    def release(self, run_id: str) -> None:
        """The run has ended."""
        for gpu in self.gpus:
            gpu.runs.pop(run_id, None)
