"""What an executor is: it starts `patchscale train` for run directories, and tells how the processes ended.

It decides nothing about runs, and keeps nothing that could not be lost: all state is in the run directories, so that a
study begun on one executor ends on another.
"""

import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from patchscale.sweeps.plan import PlannedRun
from patchscale.sweeps.resources import ResourceRule


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How the process of a run ended, as far as its executor can tell."""

    exit_code: int | None = None
    """Of `patchscale train`; negative: the signal; None: unknown, or that of torchrun, which tells nothing."""
    lost: str = ""
    """Why the process was taken away, if it was: a node failed, the job was preempted, its time was over."""
    cancelled: str = ""
    """Who cancelled the job, if anybody did, on purpose."""
    out_of_memory: bool = False
    """The system or the scheduler ended it for want of memory."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What whoever starts a sweep may choose about executors."""

    workers: int | None = None
    """Runs at a time."""
    runs_per_gpu: int = 1
    """At most so many runs share a GPU, as far as their predicted memory allows."""
    retry_failed: bool = False
    resources: Sequence[ResourceRule] = field(default=())
    """What each run needs."""
    folder: Path = Path("runs")
    """Folder of the study's runs."""
    ray_address: str | None = None
    say: Callable[[str], None] = lambda text: None
    """Gets one line for people."""


class Executor(Protocol):
    """Where the processes of a sweep run."""

    workers: int
    """Runs at a time, at most."""

    @property
    def running(self) -> Collection[PlannedRun]:
        """Runs that were handed over and have not ended."""

    def adopt(self, jobs: Sequence[PlannedRun]) -> dict[PlannedRun, int]:
        """Those of `jobs` that an earlier sweep has handed over and that are still on their way; they are `running`.

        With each, how often it had been claimed (`RunDirectory.attempt`) when it was handed over.
        """

    def has_room(self, job: PlannedRun) -> bool:
        """Whether the run can be handed over now."""

    def start(self, job: PlannedRun) -> None:
        """Hand the run over; it may start with the next `flush`."""

    def flush(self) -> None:
        """Start what was handed over, in as few submissions as possible."""

    def ended(self, *, timeout_s: float) -> Iterator[tuple[PlannedRun, Ending]]:
        """Runs whose process has ended; waits up to `timeout_s` for one."""

    def withdraw(self) -> None:
        """Take back, as far as that is possible, what was handed over and has not begun."""

    def stop(self, received: signal.Signals) -> bool:
        """Ask every run to finish its step, save and end, once each; whether any was asked.

        Called again and again until no run is left, so that one that does not end can be dealt with.
        """

    def kill(self) -> None:
        """End every run at once; it goes on from its last checkpoint another time."""

    def close(self) -> None:
        """Called at the end, however the sweep ends."""
