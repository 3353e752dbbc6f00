"""A run in a process that may take little more memory than it has: the target of a new process."""

import resource
from pathlib import Path

from patchscale.errors import RunFailed
from patchscale.runs.record import RunDirectory
from patchscale.training.loop import run_training


def train_in_little_memory(path, spare_bytes):
    """Exit code 7 if the run ran out of memory, 8 if it failed otherwise."""
    with Path("/proc/self/status").open(encoding="utf-8") as file:
        used = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (used + spare_bytes, used + spare_bytes))
    try:
        run_training(RunDirectory(Path(path)))
    except RunFailed as failure:
        raise SystemExit(7 if failure.kind == "out_of_memory" else 8) from None
