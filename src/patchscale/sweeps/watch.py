"""What whoever looks at a sweep gets told."""

from collections.abc import Sequence

from patchscale.sweeps.plan import PlannedRun


class SweepWatcher:
    """Gets told how a sweep goes; this one keeps quiet."""

    def planned(self, runs: Sequence[PlannedRun], todo: Sequence[PlannedRun]) -> None:
        """All runs of the study, and those that will be carried out."""

    def handed_over(self, job: PlannedRun, workers: int) -> None:
        """A run was given to the executor, which carries out so many at a time; it may wait in a queue."""

    def started(self, job: PlannedRun) -> None:
        """The process of a run has begun."""

    def looked(self, running: Sequence[PlannedRun]) -> None:
        """Called again and again with the runs that have begun; their files say how far they are."""

    def ended(self, job: PlannedRun, state: str, message: str) -> None:
        """A run has ended as done, failed or interrupted."""

    def left_alone(self, job: PlannedRun) -> None:
        """Another process is carrying out this run."""

    def message(self, text: str) -> None:
        """One line for people."""
