"""What Slurm is asked with squeue and sacct, and what its answers, and sbatch's refusals, mean for runs."""

import re
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from patchscale.sweeps.executors.base import Ending

NOT_NOW = ("Unable to contact", "timed out", "Connection refused", "temporarily", "Unexpected message")
"""What sbatch says when the controller is away or its queue is full."""
TOO_MANY_OR_TOO_LARGE = "job submit limit"
"""Of accounting: "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"."""
TAKEN_AWAY = ("NODE_FAIL", "PREEMPTED", "TIMEOUT", "DEADLINE", "BOOT_FAIL", "REVOKED", "REQUEUED", "STOPPED")
WAITING_OR_RUNNING = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "RESIZING")
IN_VAIN = re.compile(
    r"PartitionConfig|PartitionTimeLimit|PartitionNodeLimit|BadConstraints|InvalidAccount|InvalidQOS"
    r"|(QOS|Assoc)(Max|Min)\w*(PerJob|NotSatisfied)\w*"
)
"""Reasons that are about the job alone (Slurm, job reason codes), where submission does not enforce them."""


class Queued(NamedTuple):
    """A job as squeue shows it."""

    state: str
    reason: str
    """Why it waits, such as Resources."""

    @property
    def waits_in_vain(self) -> bool:
        """Whether it waits for what no other job that ends can give it."""
        return self.state == "PENDING" and IN_VAIN.fullmatch(self.reason) is not None


def squeue() -> dict[str, Queued] | None:
    """Each of this user's jobs in the queue, by its number; None if Slurm does not answer."""
    lines = _ask(["squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r"])
    if lines is None:
        return None
    jobs = [line.split("|", 2) for line in lines]
    return {number: Queued(state, reason) for number, state, reason in jobs}


def sacct(numbers: Sequence[str]) -> dict[str, str]:
    """State of jobs, and of all elements of their arrays, in one word; {} where there is no accounting.

    Elements that never began have one row, such as 12_[4-6,8%5], which is found by the number of the array alone.
    """
    arrays = sorted({array_of(number) for number in numbers})
    question = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State", "--jobs"]
    found: dict[str, str] = {}
    for place in range(0, len(arrays), 200):
        for line in _ask([*question, ",".join(arrays[place : place + 200])]) or ():
            name, _, state = line.partition("|")
            found |= dict.fromkeys(elements(name), state.partition(" ")[0])  # "CANCELLED by 1000"
    return found


def elements(name: str) -> list[str]:
    """`12_4`, `12_5` and `12_8` of `12_[4-5,8%5]`; a name without brackets is one job."""
    array, bracket, rest = name.partition("[")
    if not bracket:
        return [name]
    ranges = re.findall(r"(\d+)(?:-(\d+)(?::(\d+))?)?", rest.partition("%")[0])
    return [
        f"{array}{element}"
        for first, last, step in ranges
        for element in range(int(first), int(last or first) + 1, int(step or 1))
    ]


def array_of(number: str) -> str:
    """`12` of `12_4`."""
    return number.partition("_")[0]


def _ask(command: Sequence[str]) -> list[str] | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[:-1]


def ending_of(state: str) -> Ending | None:
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


def is_for_later(refusal: str) -> bool:
    """Whether what sbatch said may be otherwise later: the controller is away, or there are too many jobs by now.

    Accounting names the limit, such as QOSMaxSubmitJobPerUserLimit or QOSMaxWallDurationPerJobLimit, if it enforces it
    at submission; those on submissions have SubmitJob in their names (Slurm, job reason codes).
    """
    if (limit := re.search(r"\b(?:QOS|Assoc)\w+", refusal)) is not None:
        return "SubmitJob" in limit[0]
    return TOO_MANY_OR_TOO_LARGE in refusal or any(words in refusal for words in NOT_NOW)
