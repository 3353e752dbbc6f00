"""Where a run of a sweep stands, by its files, and how its attempt ended. No torch."""

import signal
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from patchscale.errors import UserError
from patchscale.runs.record import RunBusy, RunDirectory
from patchscale.runs.store import UNREADABLE
from patchscale.sweeps.executors.base import Ending
from patchscale.sweeps.plan import NOT_RETRIED, PlannedRun

LAST_WORDS = {"failed": (1, 2), "interrupted": (128 + signal.SIGINT, 128 + signal.SIGTERM)}
"""Exit codes of a process that has written this state itself."""


def current_state(run: RunDirectory, *, retry_failed: bool) -> tuple[str, str]:
    """(state, message) of a run by its files; the state is "open" if it is still to be done and nobody does it."""
    try:
        status = run.status()
    except UserError as error:
        return UNREADABLE, str(error)
    state, message = status["state"], status.get("message") or ""
    if state in ("queued", "interrupted"):
        state = "running" if run.is_locked() else "open"
    if state == "failed" and retry_failed and status.get("kind") not in NOT_RETRIED:
        state = "open"
    return state, message


def current_stage(job: PlannedRun, *, retry_failed: bool, tried: Collection[str] = ()) -> tuple[str, str]:
    """`current_state` of a run that may go on from a former one: it "waits" for it, or is "blocked" if it has failed.

    Runs in `tried` are not retried again.
    """
    state, message = current_state(job.run, retry_failed=retry_failed and job.run_id not in tried)
    if state != "open" or job.former is None:
        return state, message
    former = job.former.run
    try:
        if former.result() is not None:
            return state, message
    except UserError as error:
        return "blocked", str(error)
    before = current_stage(job.former, retry_failed=retry_failed, tried=tried)[0]
    if before in ("open", "running", "waits"):
        return "waits", f"for {former.path.name}"
    return "blocked", f"waits for {former.path.name}, an earlier stage, which is {before}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an attempt has come to."""

    state: str
    """As in `patchscale.runs.record.STATES`; "running" if another process holds the run."""
    kind: str | None = None
    message: str = ""
    written: bool = True
    """Whether status.json says so already."""


def judge(run: RunDirectory, ending: Ending, *, before: int | None = None, stopping: bool = False) -> Verdict:
    """What has become of a run whose process has ended; nothing is written.

    `before` is the number of attempts (`RunDirectory.attempt`) when it was started; without it, the exit code alone
    tells whether the last word in status.json is this process's.
    """
    try:
        status = run.read_json("status.json") or {"state": "queued"}
        finished = run.result() is not None
    except UserError as error:
        return Verdict(state=UNREADABLE, message=str(error))
    state = status["state"]
    if finished:  # it was killed between writing its result and saying so, or had no room to say so
        return Verdict(state="done", written=state == "done")
    spoke = before is not None and status.get("attempt", 0) > before
    if state == "done" or (spoke and state in LAST_WORDS) or ending.exit_code in LAST_WORDS.get(state, ()):
        return Verdict(state=state, kind=status.get("kind"), message=status.get("message") or "")
    if run.is_locked():
        return Verdict(state="running")
    if ending.cancelled:
        goes_on = "goes on from its last checkpoint" if run.attempt() else "starts it"
        message = f"{ending.cancelled}; the same command {goes_on}"
        return Verdict(state="interrupted", message=message)
    if ending.lost:
        return Verdict(state="interrupted", kind="preempted", message=ending.lost, written=False)
    if stopping or (ending.exit_code is not None and -ending.exit_code in (signal.SIGTERM, signal.SIGINT)):
        message = "stopped before it could save; it goes on from its last checkpoint"
        return Verdict(state="interrupted", message=message)
    kind, message = _cause_of_death(ending)
    return Verdict(state="failed", kind=kind, message=f"{message}; see {run.log_path}", written=False)


def write_down(run: RunDirectory, verdict: Verdict) -> None:
    """Let status.json say so, unless another process holds the run by now."""
    if verdict.written:
        return
    with suppress(RunBusy, OSError), run.lock():
        run.write_status(verdict.state, kind=verdict.kind, message=verdict.message)


def _cause_of_death(ending: Ending) -> tuple[str, str]:
    exit_code = ending.exit_code
    if ending.out_of_memory or exit_code == -signal.SIGKILL:
        return "out_of_memory", "killed by the system (SIGKILL), most often for want of memory: use fewer --workers"
    if exit_code is None:
        return "crash", "its process ended without a word"
    if exit_code < 0:
        return "crash", f"its process died of {signal.Signals(-exit_code).name}"
    return "crash", f"its process ended with exit code {exit_code} and no word"
