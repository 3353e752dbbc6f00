"""Runs as jobs of Slurm, submitted with submitit as arrays; several nodes of one run meet through torchrun.

A job outlives the sweep: its number is in `job.json` of the run directory, so that the next sweep finds it. A job that
is preempted, or whose time is nearly over, lets its run save and is queued again under the same number, as long as the
run gets on; so does Slurm itself when a node fails. What became of a job is asked of squeue, and of sacct once it has
left the queue. Ctrl-C lets runs save and cancels what waits, except jobs of another sweep; SIGTERM (a login node that
goes down) ends the sweep alone.
"""

import io
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import asdict
from importlib.util import find_spec

from patchscale.errors import UserError
from patchscale.runs.claim import Owner
from patchscale.runs.record import RunDirectory
from patchscale.sweeps.executors.base import Ending, Options
from patchscale.sweeps.executors.slurm_answers import (
    TOO_MANY_OR_TOO_LARGE,
    Queued,
    array_of,
    ending_of,
    is_for_later,
    sacct,
    squeue,
)
from patchscale.sweeps.executors.slurm_job import RunAsJob, parameters_of
from patchscale.sweeps.plan import PlannedRun
from patchscale.sweeps.resources import Resources, resources_of

POLL_S = 3.0
SUBMIT_AGAIN_S = 5.0
"""After Slurm did not take a submission."""
SAY_AGAIN_S = 300.0
"""That it still does not."""
VAIN_TRIES = 12
"""So often Slurm may say that a user has too many jobs, or too large ones, while this user has none."""
IN_VAIN_S = 60.0
"""A job that waits for so long for what cannot come is given up, and the sweep ends."""
UNKNOWN_LOOKS = 5
"""A job that neither squeue nor sacct knows, at so many looks in turn, has ended."""
MOST_JOBS = 1000
"""In the queue at a time."""
SAVING_S = 300.0
"""A running job that was asked to save is cancelled after so long."""


class SlurmExecutor:
    """Jobs of the cluster that sbatch, squeue and sacct speak to; `workers` at a time, else as many as Slurm starts."""

    def __init__(self, jobs: Sequence[PlannedRun], options: Options) -> None:
        if find_spec("submitit") is None:
            raise UserError("--executor slurm needs submitit: pip install 'patchscale[cluster]'")
        missing = [name for name in ("sbatch", "srun", "squeue", "scancel") if shutil.which(name) is None]
        if missing:
            raise UserError(f"--executor slurm needs {', '.join(missing)}: start the sweep on a machine with Slurm")
        self.options = options
        self.workers = min(options.workers or MOST_JOBS, len(jobs))
        self.folder = options.folder / ".slurm"
        """submitit's scripts, pickles and logs; on the file system that all nodes share."""
        self._jobs: dict[str, PlannedRun] = {}
        """By number; an element of an array is 12_3."""
        self._handed_over: list[PlannedRun] = []
        self._unknown: dict[str, int] = {}
        self._in_vain: dict[str, float] = {}
        """Jobs that wait for what cannot come, and since when."""
        self._looked = self._submitted = 0.0
        self._said = -SAY_AGAIN_S
        self._vain_tries = 0
        self._others: set[str] = set()
        """Jobs that another sweep has submitted, which may be at work."""
        self._asked: dict[str, float] = {}
        """Jobs that were asked to save, and when; those that were cancelled: for ever."""

    @property
    def running(self) -> Collection[PlannedRun]:
        return [*self._jobs.values(), *self._handed_over]

    def adopt(self, jobs: Sequence[PlannedRun]) -> dict[PlannedRun, int]:
        known = {number: job for job in jobs if (number := _number_of(job.run)) is not None}
        queued = squeue() if known else {}
        if queued is None:
            raise UserError("Slurm does not answer squeue, so that jobs of an earlier sweep cannot be found; try again")
        for number, job in known.items():
            if number not in queued:
                continue
            asked = (job.run.read_json("job.json") or {}).get("resources", self._words(job))
            if queued[number].state == "PENDING" and asked != self._words(job) and not _is_anothers(job.run):
                self._cancel([number])  # submitted anew, with the resources of today
                job.run.write_json("job.json", {})
            else:
                self._take_over(number, job)
        return {job: (job.run.read_json("job.json") or {}).get("attempt", 0) for job in self._jobs.values()}

    def has_room(self, job: PlannedRun) -> bool:
        return len(self.running) < self.workers

    def start(self, job: PlannedRun) -> None:
        self._handed_over.append(job)

    def flush(self) -> None:
        if not self._handed_over or time.monotonic() - self._submitted < SUBMIT_AGAIN_S:
            return
        self._submitted = time.monotonic()
        queued = squeue()
        if queued is None:
            self._say_again("Slurm does not answer squeue")
            return
        groups: dict[str, list[PlannedRun]] = {}
        for job in list(self._handed_over):
            number = _number_of(job.run)
            if number in queued and ending_of(queued[number].state) is None:  # another sweep was faster
                self._take_over(number, job)
                self._handed_over.remove(job)
            else:
                groups.setdefault(self._words(job), []).append(job)
        for group in groups.values():
            attempts = {job: job.run.attempt() for job in group}
            try:
                numbers = self._submit(group)
            except _NotNow as refusal:
                self._vain_tries += TOO_MANY_OR_TOO_LARGE in str(refusal) and not queued and not self._jobs
                if self._vain_tries >= VAIN_TRIES:
                    raise _refused(str(refusal)) from None
                self._say_again(str(refusal))
                continue
            self._vain_tries, self._said = 0, -SAY_AGAIN_S
            sweep = asdict(Owner.this_process())
            for job, number in zip(group, numbers, strict=True):
                record = {"executor": "slurm", "number": number, "attempt": attempts[job], "sweep": sweep}
                record["resources"] = self._words(job)
                job.run.write_json("job.json", record)
                self._jobs[number] = job
                self._handed_over.remove(job)

    def ended(self, *, timeout_s: float) -> Iterator[tuple[PlannedRun, Ending]]:
        time.sleep(timeout_s)
        if not self._jobs or time.monotonic() - self._looked < POLL_S:
            return
        self._looked = time.monotonic()
        for number, state in self._states().items():
            ending = ending_of(state)
            if ending is not None:
                self._asked.pop(number, None)
                self._others.discard(number)
                job = self._jobs.pop(number)
                yield job, Ending(exit_code=_exit_code(job.run, number)) if state == "COMPLETED" else ending

    def withdraw(self) -> None:
        self._handed_over = []
        new = self._jobs.keys() - self._asked.keys() - self._others
        waiting = {number for number in new if not self._jobs[number].run.is_locked()}
        self._cancel(waiting)
        self._asked |= dict.fromkeys(waiting, math.inf)

    def stop(self, received: signal.Signals) -> bool:
        self._handed_over = []
        if received == signal.SIGTERM:  # the next sweep finds them
            if self._jobs:
                self.options.say(f"{len(self._jobs)} jobs stay with Slurm: {' '.join(sorted(self._jobs))}")
            self._jobs = {}
            return False
        if left := self._others & self._jobs.keys():
            numbers = " ".join(sorted(left))
            self.options.say(f"{len(left)} jobs of another sweep go on; to end them: scancel {numbers}")
            self._jobs = {number: job for number, job in self._jobs.items() if number not in left}
        now = time.monotonic()
        new = self._jobs.keys() - self._asked.keys()
        running = {number for number in new if self._jobs[number].run.is_locked()}
        # Plain scancel leaves a run KillWait to save, 30 s by default. Of a job's processes the run's alone hears this.
        self._cancel(running, "--signal=TERM")
        self._asked |= dict.fromkeys(running, now)
        self.withdraw()
        late = {number for number, asked in self._asked.items() if now - asked > SAVING_S}
        self._cancel(late)
        self._asked |= dict.fromkeys(late, math.inf)
        return bool(new)

    def kill(self) -> None:
        self._cancel(self._jobs.keys() - self._others, "--signal=KILL")

    def close(self) -> None:
        """Jobs outlive the sweep."""

    def _submit(self, group: Sequence[PlannedRun]) -> list[str]:
        import submitit

        needs = self._resources(group[0])
        executor = submitit.SlurmExecutor(self.folder, max_num_timeout=1_000_000)
        try:
            executor.update_parameters(**parameters_of(needs, self.workers))
        except (TypeError, ValueError) as error:
            raise UserError(f"resources.slurm: {' '.join(str(error).split())[:300]}") from None
        paths = [str(job.run.path.resolve()) for job in group]
        try:
            with redirect_stderr(io.StringIO()):  # submitit prints what sbatch said, and raises it
                jobs = executor.map_array(RunAsJob(needs.nodes, needs.processes_per_node), paths)
        except submitit.core.utils.FailedJobError as error:
            refusal = " ".join(str(error).split())
            if is_for_later(refusal):
                raise _NotNow(refusal) from None
            raise _refused(refusal) from None
        return [submitted.job_id for submitted in jobs]

    def _take_over(self, number: str, job: PlannedRun) -> None:
        """See a job to its end that another sweep, which may live, has submitted."""
        self._jobs[number] = job
        if _is_anothers(job.run):
            self._others.add(number)

    def _say_again(self, refusal: str) -> None:
        if time.monotonic() - self._said >= SAY_AGAIN_S:
            self._said = time.monotonic()
            self.options.say(f"Slurm takes no jobs now: {refusal}; tried again every {SUBMIT_AGAIN_S:g} s")

    def _resources(self, job: PlannedRun) -> Resources:
        return resources_of(job.config, self.options.resources)

    def _words(self, job: PlannedRun) -> str:
        return repr(self._resources(job))

    def _give_up(self, queued: Mapping[str, Queued]) -> None:
        """Raise `UserError` once jobs of this sweep have waited for long for what cannot come; they are cancelled."""
        waiting = {
            number: queued[number].reason
            for number in self._jobs.keys() - self._others
            if number in queued and queued[number].waits_in_vain
        }
        now = time.monotonic()
        self._in_vain = {number: self._in_vain.get(number, now) for number in waiting}
        late = [number for number, since in self._in_vain.items() if now - since >= IN_VAIN_S]
        if late:
            self._cancel(late)
            name = self._jobs[late[0]].run.path.name
            raise UserError(
                f"Slurm will not start {len(late)} of the jobs, the first is {name} ({waiting[late[0]]}): they are "
                "cancelled; see resources of the study"
            )

    def _states(self) -> dict[str, str]:
        """State of every job, as far as Slurm answers; UNKNOWN if it has no such job (any more)."""
        queued = squeue()
        if queued is None:
            return {}
        self._give_up(queued)
        gone = [number for number in self._jobs if number not in queued]
        ended = sacct(gone)
        states = {number: queued[number].state for number in self._jobs if number in queued}
        for number in gone:
            state = ended.get(number, "UNKNOWN")
            if self._asked.get(number) == math.inf:  # an element that never began leaves no trace
                state = "CANCELLED"
            elif state == "UNKNOWN" or ending_of(state) is None:  # accounting lags behind, or there is none
                self._unknown[number] = self._unknown.get(number, 0) + 1
                if self._unknown[number] < UNKNOWN_LOOKS:
                    continue
                # Of an element that was cancelled while it waited, accounting may know the rest of its array alone.
                is_left_out = number not in ended and array_of(number) in map(array_of, ended)
                state = "CANCELLED" if is_left_out else "UNKNOWN"
            self._unknown.pop(number, None)
            states[number] = state
        return states

    @staticmethod
    def _cancel(numbers: Collection[str], *how: str) -> None:
        if numbers:
            with suppress(OSError, subprocess.SubprocessError):
                subprocess.run(["scancel", *how, *numbers], check=False, capture_output=True, timeout=60)


class _NotNow(Exception):
    """Slurm takes no jobs at the moment; the message is its own."""


def _refused(refusal: str) -> UserError:
    return UserError(f"Slurm refuses the jobs: {refusal}; see resources of the study")


def _number_of(run: RunDirectory) -> str | None:
    with suppress(UserError):
        job = run.read_json("job.json")
        if job is not None and job.get("executor") == "slurm":
            return str(job["number"])
    return None


def _is_anothers(run: RunDirectory) -> bool:
    """Whether another sweep that may live has submitted this run's job; of one on another machine nothing tells."""
    with suppress(UserError, TypeError):
        sweep = (run.read_json("job.json") or {}).get("sweep")
        if sweep is not None:
            owner = Owner(**sweep)
            return owner.lives_here is not False and not (owner.is_here and owner.pid == os.getpid())
    return False


def _exit_code(run: RunDirectory, number: str) -> int | None:
    """The signal that the process of this job died of, negative; None if it died of none."""
    with suppress(UserError):
        told = run.read_json("exit.json") or {}
        return told["exit_code"] if told.get("number") == number else None
    return None
