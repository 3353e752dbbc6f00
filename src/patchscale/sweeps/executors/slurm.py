"""Runs as jobs of Slurm, submitted with submitit as arrays; several nodes of one run meet through torchrun.

A job outlives the sweep: its number is in `job.json` of the run directory, so that the next sweep finds it. A job that
is preempted, or whose time is nearly over, lets its run save and is queued again under the same number; so does Slurm
itself when a node fails. What became of a job is asked of squeue, and of sacct once it has left the queue. Ctrl-C
cancels the jobs, whose runs save; SIGTERM (a login node that goes down) ends the sweep alone.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from patchscale.errors import UserError
from patchscale.runs.record import RunDirectory
from patchscale.sweeps.executors.base import Ending, Options
from patchscale.sweeps.executors.command import start, stop, train_command, wait
from patchscale.sweeps.plan import PlannedRun
from patchscale.sweeps.resources import Resources, resources_of

POLL_S = 3.0
SUBMIT_AGAIN_S = 5.0
"""After Slurm did not take a submission."""
UNKNOWN_LOOKS = 5
"""A job that neither squeue nor sacct knows, at so many looks in turn, has ended."""
MOST_JOBS = 1000
"""In the queue at a time."""
SIGNAL_BEFORE_END_S = 90
DEFAULT_TIME_H = 4.0
"""A run that takes longer is queued again, and goes on."""
PORTS = range(20_000, 30_000)
"""Where the nodes of a job meet; each job has its own."""
NOT_NOW = (
    "Unable to contact",
    "timed out",
    "Connection refused",
    "temporarily",
    "limit",
    "Limit",
    "Unexpected message",
)
"""What sbatch says when the controller is away or the queue is full."""
TAKEN_AWAY = ("NODE_FAIL", "PREEMPTED", "TIMEOUT", "DEADLINE", "BOOT_FAIL", "REVOKED", "REQUEUED", "STOPPED")
WAITING_OR_RUNNING = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "RESIZING")


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
        self._looked = self._submitted = 0.0
        self._asked: set[str] = set()

    @property
    def running(self) -> Collection[PlannedRun]:
        return [*self._jobs.values(), *self._handed_over]

    def adopt(self, jobs: Sequence[PlannedRun]) -> dict[PlannedRun, int]:
        known = {number: job for job in jobs if (number := _number_of(job.run)) is not None}
        queued = squeue() if known else {}
        if queued is None:
            raise UserError("Slurm does not answer squeue, so that jobs of an earlier sweep cannot be found; try again")
        self._jobs = {number: job for number, job in known.items() if number in queued}
        return {job: (job.run.read_json("job.json") or {}).get("attempt", 0) for job in self._jobs.values()}

    def has_room(self, job: PlannedRun) -> bool:
        return len(self.running) < self.workers

    def start(self, job: PlannedRun) -> None:
        self._handed_over.append(job)

    def flush(self) -> None:
        if not self._handed_over or time.monotonic() - self._submitted < SUBMIT_AGAIN_S:
            return
        self._submitted = time.monotonic()
        groups: dict[str, list[PlannedRun]] = {}
        for job in self._handed_over:
            groups.setdefault(repr(self._resources(job)), []).append(job)
        for group in groups.values():
            attempts = {job: job.run.attempt() for job in group}
            numbers = self._submit(group)
            for job, number in zip(group, numbers, strict=False):  # none, if Slurm takes no jobs now
                job.run.write_json("job.json", {"executor": "slurm", "number": number, "attempt": attempts[job]})
                self._jobs[number] = job
                self._handed_over.remove(job)

    def ended(self, *, timeout_s: float) -> Iterator[tuple[PlannedRun, Ending]]:
        time.sleep(timeout_s)
        if not self._jobs or time.monotonic() - self._looked < POLL_S:
            return
        self._looked = time.monotonic()
        for number, state in self._states().items():
            ending = _ending(state)
            if ending is not None:
                self._asked.discard(number)
                job = self._jobs.pop(number)
                yield job, Ending(exit_code=_exit_code(job.run, number)) if state == "COMPLETED" else ending

    def stop(self, received: signal.Signals) -> bool:
        self._handed_over = []
        if received == signal.SIGTERM:  # the jobs go on; the next sweep finds them
            self._jobs = {}
            return False
        to_ask = self._jobs.keys() - self._asked
        self._cancel(to_ask)
        self._asked |= to_ask
        return bool(to_ask)

    def kill(self) -> None:
        self._cancel(self._jobs, "--signal=KILL")

    def close(self) -> None:
        """Jobs outlive the sweep."""

    def _submit(self, group: Sequence[PlannedRun]) -> list[str]:
        import submitit

        needs = self._resources(group[0])
        executor = submitit.SlurmExecutor(self.folder, max_num_timeout=1_000_000)
        try:
            executor.update_parameters(**_parameters(needs, self.workers))
        except (TypeError, ValueError) as error:
            raise UserError(f"resources.slurm: {' '.join(str(error).split())[:300]}") from None
        paths = [str(job.run.path.resolve()) for job in group]
        try:
            jobs = executor.map_array(RunAsJob(needs.nodes, needs.processes_per_node), paths)
        except submitit.core.utils.FailedJobError as error:
            refusal = " ".join(str(error).split())
            if any(words in refusal for words in NOT_NOW):
                return []
            raise UserError(f"Slurm refuses the jobs: {refusal}; see resources of the study") from None
        return [submitted.job_id for submitted in jobs]

    def _resources(self, job: PlannedRun) -> Resources:
        return resources_of(job.config, self.options.resources)

    def _states(self) -> dict[str, str]:
        """State of every job, as far as Slurm answers; UNKNOWN if it has no such job (any more)."""
        queued = squeue()
        if queued is None:
            return {}
        gone = [number for number in self._jobs if number not in queued]
        ended = sacct(gone)
        states = {number: queued[number] for number in self._jobs if number in queued}
        for number in gone:
            state = ended.get(number, "UNKNOWN")
            if state == "UNKNOWN" or state in WAITING_OR_RUNNING:  # accounting lags behind, or there is none
                self._unknown[number] = self._unknown.get(number, 0) + 1
                if self._unknown[number] < UNKNOWN_LOOKS:
                    continue
                state = "UNKNOWN"
            self._unknown.pop(number, None)
            states[number] = state
        return states

    @staticmethod
    def _cancel(numbers: Collection[str], *how: str) -> None:
        if numbers:
            with suppress(OSError, subprocess.SubprocessError):
                subprocess.run(["scancel", *how, *numbers], check=False, capture_output=True, timeout=60)


class RunAsJob:
    """What every task of a job does, one on each node: start the run's processes, and see them to their end."""

    def __init__(self, nodes: int, processes: int) -> None:
        self.nodes, self.processes = nodes, processes

    def __call__(self, path: str) -> int:
        job, restarts = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_RESTART_COUNT", "0")
        meet_at = f"{_first_host()}:{PORTS[int(job) % len(PORTS)]}" if self.nodes > 1 else ""
        command = train_command(
            Path(path),
            processes=self.processes,
            nodes=self.nodes,
            meet_at=meet_at,
            job=f"{job}.{restarts}",
        )
        self.process = start(Path(path), command)
        exit_code = wait(self.process, Path(path))
        if exit_code < 0:  # of a signal; its word is not in status.json, so tell the sweep
            RunDirectory(Path(path)).write_json("exit.json", {"number": _own_number(), "exit_code": exit_code})
        return exit_code

    def checkpoint(self, path: str) -> Any:
        """Called by submitit when the job is preempted or its time is nearly over: save, then be queued again."""
        import submitit

        stop(self.process)
        return submitit.helpers.DelayedSubmission(RunAsJob(self.nodes, self.processes), path)


def squeue() -> dict[str, str] | None:
    """State of each of this user's jobs in the queue; None if Slurm does not answer."""
    lines = _ask(["squeue", "--me", "--noheader", "--array", "--format=%i|%T"])
    return None if lines is None else dict(line.split("|") for line in lines)


def sacct(numbers: Sequence[str]) -> dict[str, str]:
    """State of jobs that have ended, in one word; {} where there is no accounting."""
    if not numbers:
        return {}
    question = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State", "--jobs"]
    found: dict[str, str] = {}
    for place in range(0, len(numbers), 200):
        for line in _ask([*question, ",".join(numbers[place : place + 200])]) or ():
            number, _, state = line.partition("|")
            found[number] = state.partition(" ")[0]  # "CANCELLED by 1000"
    return found


def _ask(command: Sequence[str]) -> list[str] | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[:-1]


def _ending(state: str) -> Ending | None:
    """What a state of Slurm's means for a run; None while the job goes on."""
    if state in WAITING_OR_RUNNING:
        return None
    if state == "CANCELLED":
        return Ending(cancelled="its job was cancelled")
    if state == "OUT_OF_MEMORY":
        return Ending(out_of_memory=True)
    if state in TAKEN_AWAY:
        return Ending(lost=f"Slurm: {state}")
    if state == "FAILED":
        return Ending(lost="its job failed before it could say why; see .slurm in the study's folder")
    return Ending()


def _parameters(needs: Resources, workers: int) -> Mapping[str, Any]:
    """Those of submitit for a job."""
    given: dict[str, Any] = {
        "job_name": "patchscale",
        "nodes": needs.nodes,
        "ntasks_per_node": 1,
        "time": max(1, round(60 * (needs.time_h or DEFAULT_TIME_H))),
        "cpus_per_task": needs.cpus,
        "gpus_per_node": None if needs.gpus is None else -int(-needs.gpus // 1),
        "mem": None if needs.memory_gib is None else f"{round(needs.memory_gib * 1024)}M",
        "array_parallelism": workers,
        "signal_delay_s": SIGNAL_BEFORE_END_S,
        "stderr_to_stdout": True,
    }
    known = _submitit_names()
    own = {name: value for name, value in needs.slurm.items() if name in known}
    others = {name.replace("_", "-"): value for name, value in needs.slurm.items() if name not in known}
    additional = {"requeue": True} | others | dict(own.pop("additional_parameters", {}))
    parameters = {name: value for name, value in (given | own).items() if value is not None}
    return parameters | {"additional_parameters": additional}


def _submitit_names() -> Collection[str]:
    import submitit

    return submitit.SlurmExecutor._valid_parameters()


def _number_of(run: RunDirectory) -> str | None:
    with suppress(UserError):
        job = run.read_json("job.json")
        if job is not None and job.get("executor") == "slurm":
            return str(job["number"])
    return None


def _exit_code(run: RunDirectory, number: str) -> int | None:
    """The signal that the process of this job died of, negative; None if it died of none."""
    with suppress(UserError):
        told = run.read_json("exit.json") or {}
        return told["exit_code"] if told.get("number") == number else None
    return None


def _own_number() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _first_host() -> str:
    nodes = os.environ["SLURM_JOB_NODELIST"]
    return subprocess.run(
        ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
    ).stdout.split()[0]
