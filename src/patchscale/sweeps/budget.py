"""Device hours: what a study has cost, what its runs will cost, and whether another one may start. No torch.

A device hour is an hour of one GPU, or of one process on a CPU. A run that shares a GPU counts whole. What a run will
cost comes from the cost model of a named device, else from the runs of the study so far, by their training FLOPs.
"""

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from statistics import median

from patchscale.errors import UserError
from patchscale.runs.record import RunDirectory
from patchscale.runs.store import last_metrics, progress
from patchscale.sweeps.plan import PlannedRun
from patchscale.sweeps.price import price
from patchscale.sweeps.resources import ResourceRule, resources_of


class Ledger:
    """Hours used and predicted, of all runs of a study."""

    def __init__(
        self, planned: Iterable[PlannedRun], *, resources: Sequence[ResourceRule] = (), device: str | None = None
    ) -> None:
        self.planned = {item.run_id: item for item in planned}
        self.resources, self.device = resources, device
        self.used = {run_id: self._used(item) for run_id, item in self.planned.items()}
        """Hours of each run when it was last looked at."""
        self.shares = {run_id: _share(item.run) for run_id, item in self.planned.items()}
        """How much of each run is done."""

    def look(self, jobs: Iterable[PlannedRun]) -> None:
        """Read again how far these runs are."""
        for job in jobs:
            self.used[job.run_id] = self._used(job)
            self.shares[job.run_id] = _share(job.run)

    @property
    def spent_hours(self) -> float:
        """Of all runs, by what their files say."""
        return sum(self.used.values())

    def left_hours(self, job: PlannedRun) -> float | None:
        """What the run will still cost; None if nothing tells."""
        left = 1 - self.shares[job.run_id]
        if self.device is not None and job.workload.images_seen is not None:
            hours = price(job, self.device).device_hours(job.workload.images_seen)
            return None if hours is None else hours * left
        rate = self.hours_per_work
        return None if rate is None else rate * job.work * left

    @property
    def hours_per_work(self) -> float | None:
        """Device hours of a unit of `PlannedRun.work`, the median of all runs that have done some of theirs."""
        rates = [
            self.used[run_id] / (item.work * self.shares[run_id])
            for run_id, item in self.planned.items()
            if self.shares[run_id] and self.used[run_id]
        ]
        return median(rates) if rates else None

    def _used(self, item: PlannedRun) -> float:
        result, processes = None, self._devices(item)
        with suppress(UserError):
            result = item.run.result()
        if result is not None:
            return float(result.get("wall_time_s") or 0) / 3600 * processes
        return float(last_metrics(item.run.metrics_path).get("wall_time_s") or 0) / 3600 * processes

    def _devices(self, item: PlannedRun) -> float:
        return resources_of(item.config, self.resources).devices


class Budget:
    """So many device hours for a study."""

    def __init__(self, hours: float, ledger: Ledger) -> None:
        self.hours, self.ledger = hours, ledger

    def allows(self, job: PlannedRun, running: Collection[PlannedRun]) -> bool:
        """Whether the run, and those under way, are predicted to end within the budget.

        While nothing tells what a run costs, one is started alone, to learn it.
        """
        expected = [self.ledger.left_hours(each) for each in (job, *running)]
        if None in expected:
            return not running and self.ledger.spent_hours < self.hours
        return self.ledger.spent_hours + sum(each for each in expected if each is not None) <= self.hours

    def is_spent(self, running: Collection[PlannedRun]) -> bool:
        """Whether it is used up; runs under way count with what they have used so far."""
        self.ledger.look(running)
        return self.ledger.spent_hours >= self.hours

    def ended(self, job: PlannedRun) -> None:
        """Take note of what a run has cost."""
        self.ledger.look([job])

    def words(self, running: Collection[PlannedRun]) -> str:
        """Where it stands."""
        self.ledger.look(running)
        return f"{self.ledger.spent_hours:.3g} of {self.hours:.3g} device hours used, more would exceed it"


def _share(run: RunDirectory) -> float:
    with suppress(UserError):
        return 1.0 if run.result() is not None else progress(run, run.read_json("status.json") or {})
    return 0.0
