"""Device hours: what a study has cost, what its runs will cost, and whether another one may start. No torch.

A device hour is an hour of one GPU, or of one process on a CPU, in which a process had claimed a run: setting up,
training, and work that was lost when it was killed. A run that shares a GPU counts whole. What a run will cost comes
from the cost model of a named device, else from the runs of the study so far, by their training FLOPs.
"""

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from statistics import median

from patchscale.errors import UserError
from patchscale.runs.held_time import held_time_s
from patchscale.runs.record import RunDirectory
from patchscale.runs.store import last_metrics, progress
from patchscale.sweeps.plan import PlannedRun
from patchscale.sweeps.price import price
from patchscale.sweeps.resources import ResourceRule, resources_of


class Ledger:
    """Hours used and predicted, of all runs of a study.

    Devices of a run are those of `resources`; without any, as many as it has had processes.
    """

    def __init__(
        self, planned: Iterable[PlannedRun], *, resources: Sequence[ResourceRule] = (), device: str | None = None
    ) -> None:
        self.planned = {item.run_id: item for item in planned}
        self.resources, self.device = resources, device
        self.used: dict[str, float] = {}
        """Hours of each run when it was last looked at."""
        self.shares: dict[str, float] = {}
        """How much of each run is done."""
        self._whole: dict[str, float | None] = {}
        """Hours of each run from its start to its end on `device`."""
        self.look(self.planned.values())

    def look(self, jobs: Iterable[PlannedRun]) -> None:
        """Read again how far these runs are."""
        for job in jobs:
            time_s, self.shares[job.run_id], processes = _so_far(job.run)
            devices = resources_of(job.config, self.resources).devices if self.resources else processes
            self.used[job.run_id] = time_s / 3600 * devices
        self.__dict__.pop("hours_per_work", None)

    @property
    def spent_hours(self) -> float:
        """Of all runs, by what their files say."""
        return sum(self.used.values())

    def left_hours(self, job: PlannedRun) -> float | None:
        """What the run will still cost; None if nothing tells."""
        left = 1 - self.shares[job.run_id]
        if self.device is not None and job.workload.images_seen is not None:
            hours = self._whole_hours(job, self.device, job.workload.images_seen)
            return None if hours is None else hours * left
        rate = self.hours_per_work
        return None if rate is None else rate * job.work * left

    @cached_property
    def hours_per_work(self) -> float | None:
        """Device hours of a unit of `PlannedRun.work`, the median of all runs that have done some of theirs."""
        rates = [
            self.used[run_id] / (item.work * self.shares[run_id])
            for run_id, item in self.planned.items()
            if self.shares[run_id] and self.used[run_id]
        ]
        return median(rates) if rates else None

    def _whole_hours(self, job: PlannedRun, device: str, images_seen: int) -> float | None:
        if job.run_id not in self._whole:
            self._whole[job.run_id] = price(job, device).device_hours(images_seen)
        return self._whole[job.run_id]


class Budget:
    """So many device hours for a study."""

    def __init__(self, hours: float, ledger: Ledger) -> None:
        self.hours, self.ledger = hours, ledger

    def expected_hours(self, running: Collection[PlannedRun]) -> float | None:
        """What the study will have cost when these runs have ended; None if nothing tells."""
        left = [self.ledger.left_hours(job) for job in running]
        return None if None in left else self.ledger.spent_hours + sum(each for each in left if each is not None)

    def allows(self, job: PlannedRun, running: Collection[PlannedRun]) -> bool:
        """Whether the run, and those under way, are predicted to end within the budget."""
        return self.has_room(job, expected_hours=self.expected_hours(running), alone=not running)

    def has_room(self, job: PlannedRun, *, expected_hours: float | None, alone: bool) -> bool:
        """`allows`, beside runs that are expected to take the study so far.

        While nothing tells what a run costs, one is started alone, to learn it.
        """
        left = self.ledger.left_hours(job)
        if left is None or expected_hours is None:
            return alone and self.ledger.spent_hours < self.hours
        return expected_hours + left <= self.hours

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


def _so_far(run: RunDirectory) -> tuple[float, float, int]:
    """Seconds that all attempts at a run took, the share of it that is done, and how many processes it has had.

    A run that came without its claims, such as one from an archive, took what it has saved.
    """
    result = status = environment = None
    with suppress(UserError):
        result = run.result()
        status = run.read_json("status.json")
        environment = run.read_json("environment.json")
    recorded = result or last_metrics(run.metrics_path)
    time_s = max(held_time_s(run.claims_path), float(recorded.get("wall_time_s") or 0))
    share = 1.0 if result is not None else progress(run, status or {})
    ranks = (environment or {}).get("ranks") or [None]
    return time_s, share, int((result or {}).get("world_size") or len(ranks))
