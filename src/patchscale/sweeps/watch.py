"""What whoever looks at a sweep gets told."""

from collections.abc import Sequence

from patchscale.sweeps.plan import PlannedRun


class SweepWatcher:
    """Gets told how a sweep goes; this one keeps quiet."""

    def planned(self, runs: Sequence[PlannedRun], todo: Sequence[PlannedRun]) -> None:
        """All runs of the study, and those that will be carried out."""

    def started(self, job: PlannedRun, workers: int) -> None:
        """A run has started, on one of so many workers."""

    def looked(self, running: Sequence[PlannedRun]) -> None:
        """Called a few times a second with the runs under way; their files say how far they are."""

    def ended(self, job: PlannedRun, state: str, message: str) -> None:
        """A run has ended as done, failed or interrupted."""

    def left_alone(self, job: PlannedRun) -> None:
        """Another process is carrying out this run."""

    def message(self, text: str) -> None:
        """One line for people."""
