"""The scheduling of a study, the same for every executor: what may start, what has ended, what is tried again.

A run is started when it is open, its earlier stage is done and the executor has room. One that another process holds is
looked at now and then. When all else is done, the loop waits for those that this sweep itself has started and for
those whose owner gives no sign of life, which it takes over; those whose owner lives are left alone, or waited for too.
"""

import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from patchscale.errors import UserError
from patchscale.runs.claim import BEAT_EVERY_S, last_beat_age_s
from patchscale.sweeps.budget import Budget
from patchscale.sweeps.executors.base import Ending, Executor
from patchscale.sweeps.plan import PlannedRun
from patchscale.sweeps.resources import ResourceRule, resources_of
from patchscale.sweeps.retries import Retry, decide
from patchscale.sweeps.states import Verdict, current_stage, judge, write_down
from patchscale.sweeps.stop import StopRequests, SweepInterrupted
from patchscale.sweeps.watch import SweepWatcher

LOOK_EVERY_S = 0.25
LOOK_ELSEWHERE_EVERY_S = 1.0
"""Runs that others hold."""
LOOKS_PER_S = 50
"""At so many runs at most: the files of a thousand that wait in a queue are on a file system that others share."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a sweep may do."""

    retry_failed: bool = False
    keep_going: bool = False
    """Go on after a mistake in the configuration."""
    wait: bool = False
    """Wait for runs that other processes carry out, and take them over if those die."""
    budget: Budget | None = None
    resources: Sequence[ResourceRule] = ()


def carry_out(jobs: Sequence[PlannedRun], executor: Executor, *, watcher: SweepWatcher, rules: Rules) -> None:
    """Carry out `jobs` in their order. On Ctrl-C or SIGTERM running ones save; then raises `SweepInterrupted`."""
    loop = _Loop(jobs, executor, watcher, rules)
    try:
        with StopRequests(executor.kill) as stop:
            loop.run(stop)
    finally:
        executor.close()


class _Loop:
    def __init__(self, jobs: Sequence[PlannedRun], executor: Executor, watcher: SweepWatcher, rules: Rules) -> None:
        self.executor, self.watcher, self.rules = executor, watcher, rules
        self.waiting = list(jobs)
        self.held: list[PlannedRun] = []
        """Another process holds them, or those that they go on from."""
        self.ended: set[str] = set()
        self.attempts: dict[str, int] = {}
        """Of the runs handed over here: how often they had been claimed before."""
        self.begun: set[str] = set()
        """Those of them whose process has claimed the run since."""
        self.any_trained = False
        self.stopped = ""
        """Why no further run is started."""
        self.is_budget_spent = False
        self.looked = self.looked_elsewhere = time.monotonic()

    def run(self, stop: StopRequests) -> None:
        adopted = self.executor.adopt(self.waiting)
        for job, attempts in adopted.items():
            self.waiting.remove(job)
            self.attempts[job.run_id] = attempts
        if adopted:
            self.watcher.message(f"{len(adopted)} runs are on their way already, from a sweep before")
        self.held = [job for job in self.waiting if job.state == "running"]
        self.waiting = [job for job in self.waiting if job.state != "running"]
        while True:
            if not stop.received and not self.stopped:
                self._start()
            for job, ending in self.executor.ended(timeout_s=LOOK_EVERY_S):
                self._settle(job, ending, stopping=stop.received is not None)
            if self._is_due(self.looked, LOOK_EVERY_S, len(self.executor.running)):
                self._look(stopping=stop.received is not None)
            if stop.received:
                if self.executor.stop(stop.received):
                    self.watcher.message("stopping: running runs finish their step and save; Ctrl-C again kills them")
                if not self.executor.running:
                    raise SweepInterrupted(stop.received)
            elif self.is_budget_spent:
                self.executor.stop(signal.SIGINT)
            self._look_elsewhere()
            if self._is_over():
                return

    def _start(self) -> None:
        """Hand over what may start, as far as there is room."""
        here = {job.run_id for job in (*self.waiting, *self.executor.running)}
        budget, handed_over = self.rules.budget, 0
        expected_hours = self._expected_hours()
        for job in tuple(self.waiting):
            if not self.executor.has_room(job):
                break
            if job.former is not None and job.former.run_id in here:
                continue
            alone = not self.executor.running
            if budget is not None and not budget.has_room(job, expected_hours=expected_hours, alone=alone):
                continue
            state, message = current_stage(job, retry_failed=self.rules.retry_failed, tried=self.ended)
            self.waiting.remove(job)
            if state in ("running", "waits"):
                self.held.append(job)
                expected_hours = self._expected_hours()
            elif state == "open":
                self.attempts[job.run_id] = job.run.attempt()
                self.executor.start(job)
                self.watcher.handed_over(job, self.executor.workers)
                handed_over += 1
                expected_hours = self._expected_hours()
            else:  # another sweep has carried it out since it was planned
                self._end(job, state, message)
        self.executor.flush()
        if handed_over > 1:
            self.watcher.message(f"{handed_over} runs are handed over")

    def _expected_hours(self) -> float | None:
        """Of the study, with all that is under way here and elsewhere; None if nothing tells, or nobody asks."""
        if self.rules.budget is None:
            return None
        return self.rules.budget.expected_hours([*self.executor.running, *self.held])

    def _look(self, *, stopping: bool) -> None:
        """At the runs under way; of those that wait in a queue only whether they have begun."""
        self.looked = time.monotonic()
        under_way = [job for job in self.executor.running if self._has_begun(job)]
        self.watcher.looked(under_way)
        budget = self.rules.budget
        if budget is not None and not stopping and not self.stopped and budget.is_spent(under_way):
            saving = "; running runs save" if under_way else ""
            self._stop_starting(f"the budget is spent: {budget.words(under_way)}{saving}")
            self.is_budget_spent = True

    def _has_begun(self, job: PlannedRun) -> bool:
        if job.run_id not in self.begun and job.run.attempt() > self.attempts[job.run_id]:
            self.begun.add(job.run_id)
            self.watcher.started(job)
        return job.run_id in self.begun

    @staticmethod
    def _is_due(before: float, every_s: float, runs: int) -> bool:
        return time.monotonic() - before >= max(every_s, runs / LOOKS_PER_S)

    def _settle(self, job: PlannedRun, ending: Ending, *, stopping: bool) -> None:
        verdict = judge(job.run, ending, before=self.attempts[job.run_id], stopping=stopping)
        if verdict.state == "running":
            self.begun.discard(job.run_id)
            self.held.append(job)
            return
        self._has_begun(job)  # between two looks, perhaps
        self.begun.discard(job.run_id)
        if not stopping and not self.stopped:
            try:
                retry = self._decide(job, verdict, ending)
            except UserError as error:  # a damaged file of this run, which the others have no part in
                retry, verdict = Retry(again=False), replace(verdict, message=f"{verdict.message}; {error}")
            if retry.again:
                # A sweep that goes on after this one was killed must find it open.
                write_down(
                    job.run,
                    replace(verdict, state="interrupted", written=verdict.written and verdict.state != "failed"),
                )
                self.watcher.message(
                    f"{verdict.kind or verdict.state}: {job.run_id}: {verdict.message}; again, {retry.reason}"
                )
                self.waiting.insert(0, job)
                self._take_note(job)
                return
            if retry.stops_study:
                anyway = "; --keep-going starts them all the same" if verdict.kind == "config" else ""
                self._stop_starting(f"no further run is started: {retry.reason}{anyway}")
        write_down(job.run, verdict)
        self._end(job, verdict.state, verdict.message)

    def _decide(self, job: PlannedRun, verdict: Verdict, ending: Ending) -> Retry:
        needs = resources_of(job.config, self.rules.resources)
        any_trained = self.any_trained or self.rules.keep_going or any(map(_has_trained, self.executor.running))
        processes = needs.nodes * needs.processes_per_node
        return decide(job.run, verdict, ending, processes=processes, any_trained=any_trained)

    def _end(self, job: PlannedRun, state: str, message: str) -> None:
        self.ended.add(job.run_id)
        self.any_trained |= state == "done"
        self._take_note(job)
        self.watcher.ended(job, state, message)

    def _take_note(self, job: PlannedRun) -> None:
        if self.rules.budget is not None:
            self.rules.budget.ended(job)

    def _stop_starting(self, why: str) -> None:
        self.stopped = why
        self.executor.withdraw()
        self.watcher.message(why)

    def _look_elsewhere(self) -> None:
        """Take back what is no longer held."""
        if not self.held or not self._is_due(self.looked_elsewhere, LOOK_ELSEWHERE_EVERY_S, len(self.held)):
            return
        self.looked_elsewhere = time.monotonic()
        if self.rules.budget is not None:
            self.rules.budget.ledger.look(self.held)
        for job in tuple(self.held):
            state, _ = current_stage(job, retry_failed=self.rules.retry_failed, tried=self.ended)
            if state not in ("running", "waits"):
                self.held.remove(job)
                self.waiting.insert(0, job)

    def _is_over(self) -> bool:
        if self.executor.running:
            return False
        if self.stopped:
            return True
        if self.waiting:
            budget, waiting = self.rules.budget, {job.run_id for job in self.waiting}
            startable = [job for job in self.waiting if job.former is None or job.former.run_id not in waiting]
            if budget is None:
                return False
            expected_hours = self._expected_hours()
            if any(budget.has_room(job, expected_hours=expected_hours, alone=True) for job in startable):
                return False
            if any(self._is_awaited(job) for job in self.held):
                return False  # they may take less than is expected of them
            self.watcher.message(f"{len(self.waiting)} runs are left: {budget.words(())}")
            self.waiting = []
        if any(self._is_awaited(job) for job in self.held):
            return False
        for job in self.held:
            self.watcher.left_alone(job)
        return True

    def _is_awaited(self, job: PlannedRun) -> bool:
        """Whether a run that is held elsewhere is worth waiting for."""
        if job.former is not None and job.former.run_id in self.ended:
            return False  # it ended here, and not in a way that another stage can go on from
        if self.rules.wait or job.run_id in self.attempts:
            return True
        if job.former is not None and job.former in self.held:
            return self._is_awaited(job.former)
        owner = job.run.owner()
        if owner is None:
            return True  # it was let go this instant
        age_s = last_beat_age_s(job.run.claims_path)
        return not owner.is_here and age_s is not None and age_s > 2 * BEAT_EVERY_S


def _has_trained(job: PlannedRun) -> bool:
    with suppress(UserError):
        return bool((job.run.read_json("status.json") or {}).get("step"))
    return False
