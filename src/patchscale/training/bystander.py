"""What ranks other than 0 get for a run directory and a journal: they read as others do, and write nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from patchscale.runs.record import RunDirectory
from patchscale.training.distributed import Ranks
from patchscale.training.journal import Journal, Watcher


class ReadOnlyRun(RunDirectory):
    """A run that another rank writes, and holds the lock of."""

    def write_status(self, state: str, **details: Any) -> None:
        """Nothing."""

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Nothing."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Nothing: rank 0 holds it."""
        yield


class SilentJournal(Journal):
    """A journal that keeps what it is told to itself."""

    def track(self, first_step: int) -> None:
        """Nothing."""

    def row(self, kind: str, step: int, **values: Any) -> None:
        """Nothing."""

    def result(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def keep(self, text: str) -> None:
        """Nothing."""


def as_seen_by(ranks: Ranks, run: RunDirectory, watcher: Watcher) -> tuple[RunDirectory, Journal]:
    """The run and its journal for this rank."""
    if ranks.is_main:
        return run, Journal(run, watcher)
    return ReadOnlyRun(run.path), SilentJournal(ReadOnlyRun(run.path), Watcher())
