"""Where a run computes: device, precision, threads, and the memory it needed."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from patchscale.errors import UserError

Precision = Literal["fp32", "bf16"]
DEVICES = ("cuda", "mps", "cpu")

# How torch's CPU, CUDA and MPS allocators say it where they have no exception of their own.
_OUT_OF_MEMORY_WORDS = ("can't allocate memory", "out of memory", "Cannot allocate memory")


def resolve_device(name: str, *, option: str = "execution.device=") -> torch.device:
    """The device of that name; "auto" is cuda, else mps, else cpu.

    Raises `UserError`, in terms of the `option` that gave it, if the named device is not on this machine.
    """
    here = available_devices()
    if name == "auto":
        name = here[0]
    if name not in DEVICES:
        raise UserError(f"{option}{name!r}: choose auto, {', '.join(DEVICES)}")
    if name not in here:
        raise UserError(
            f"{option}{name}: no such device here (available: {', '.join(here)}); "
            f"use {option}auto, or see `patchscale doctor`"
        )
    return torch.device(name)


def available_devices() -> list[str]:
    """Kinds of devices on this machine, the best first."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind in DEVICES if present[kind]]


@contextmanager
def torch_settings(num_threads: int | None, device: torch.device) -> Iterator[None]:
    """Apply `num_threads`, and on a CPU ask for deterministic kernels; put everything back afterwards.

    With the same number of threads a run on a CPU repeats itself bit for bit. GPU kernels are left at their
    defaults, so there two runs agree to rounding.
    """
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        if device.type == "cpu":
            torch.use_deterministic_algorithms(True, warn_only=True)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """bf16 autocast, or no change for fp32; parameters stay float32 either way."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def peak_memory_kind(device: torch.device) -> str:
    """What `peak_memory_bytes` measures on this device."""
    return "cuda_allocated" if device.type == "cuda" else "process_resident"


def peak_memory_bytes(device: torch.device) -> int:
    """On CUDA the most memory allocated for tensors; elsewhere the most this process ever had resident.

    Loader processes are not counted.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024  # macOS: bytes; Linux: KiB


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch or Python means that memory ran out, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _OUT_OF_MEMORY_WORDS)


def device_name(device: torch.device) -> str:
    """The device as people know it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    return cpu_name()


def cpu_name() -> str:
    """Model name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - one line of a virtual file
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform

        return platform.processor() or platform.machine()
