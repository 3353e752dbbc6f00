"""The command of a run's process, and the process itself where Slurm or Ray starts it. No torch.

What it prints goes to console.txt of the run directory.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from patchscale.runs.record import RunBusy, RunDirectory

PR_SET_PDEATHSIG = 1
"""prctl(2): the system sends this signal when the parent dies."""
MISTAKE = 2
"""Exit code of `patchscale train` for a mistake of the user's."""


def train_command(path: Path, *, processes: int = 1, nodes: int = 1, meet_at: str = "", job: str = "") -> list[str]:
    """`patchscale train` for a run directory; by torchrun if there are several processes.

    `processes` are those of each node; nodes meet at `meet_at`, host and port of the first, under the name `job`.
    """
    train = ["-m", "patchscale", "train", "--run-dir", str(path)]
    if processes * nodes == 1:
        return [sys.executable, *train]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    if nodes == 1:
        return [*launch, "--standalone", *train]
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", meet_at, "--rdzv-id", job]
    return [*launch, "--nnodes", str(nodes), *meet, *train]


class RunProcess:
    """The process of the run in `path`; it saves and stops if this one dies."""

    def __init__(self, path: Path, command: Sequence[str]) -> None:
        self.run, self.console = RunDirectory(path), path / "console.txt"
        self.console_bytes = size_bytes(self.console)
        """What attempts before have left there."""
        with self.console.open("ab") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=_prepare_child
            )

    def wait(self) -> int:
        """Its exit code, when it has ended; a mistake that it could not record itself is recorded."""
        while (exit_code := self.process.poll()) is None:
            time.sleep(0.1)  # signals are handled in between
        if exit_code == MISTAKE:
            _record_mistake(self.run, self.console, since=self.console_bytes)
        elif exit_code > 0:
            record_mistake_of_ranks(self.run, self.console, since=self.console_bytes)
        return exit_code

    def stop(self) -> None:
        """Ask it to save and end, and wait for it."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)  # leaves its exit code to whoever asks


def record_mistake_of_ranks(run: RunDirectory, console: Path, *, since: int) -> int | None:
    """Record a mistake of which torchrun, whose own exit code is 1, says in `console` that a rank ended with it.

    What stands before the byte `since` is of attempts before. Returns that rank's exit code, None if it was nothing of
    the kind.
    """
    text = _read(console, since)
    codes = re.findall(r"^\s*exitcode\s*:\s*(-?\d+)", text, re.MULTILINE)  # of its report, one for each rank
    if not codes or int(codes[-1]) != MISTAKE:
        return None
    _record_mistake(run, console, since=since)
    return MISTAKE


def size_bytes(path: Path) -> int:
    """Of a file; 0 if there is none."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def die_with_the_parent() -> None:
    """Let this process, whatever it executes, get SIGTERM when its parent dies. Linux; elsewhere nothing."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _prepare_child() -> None:
    die_with_the_parent()
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm sends it to all processes of a step; submitit handles it


def _record_mistake(run: RunDirectory, console: Path, *, since: int) -> None:
    status = run.status()
    if status["state"] in ("failed", "running", "done"):
        return
    errors = [line.partition("error: ")[2] for line in _read(console, since).splitlines() if line.startswith("error: ")]
    message = errors[-1] if errors else f"see {console.name}"
    if "another process is running this run" in message:
        return
    with suppress(RunBusy), run.lock():
        run.write_status("failed", kind="config", message=message)


def _read(console: Path, since: int) -> str:
    """What was added after so many bytes."""
    with suppress(FileNotFoundError), console.open("rb") as file:
        file.seek(since)
        return file.read().decode(errors="replace")
    return ""
