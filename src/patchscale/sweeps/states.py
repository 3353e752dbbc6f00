"""Where a run of a sweep stands, by its files, and how its attempt ended. No torch."""

import signal
from collections.abc import Collection
from contextlib import suppress

from patchscale.errors import UserError
from patchscale.runs.record import RunBusy, RunDirectory
from patchscale.runs.stages import former_run
from patchscale.runs.store import UNREADABLE
from patchscale.sweeps.executors.base import Ending
from patchscale.sweeps.plan import NOT_RETRIED

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


def current_stage(run: RunDirectory, *, retry_failed: bool, tried: Collection[str] = ()) -> tuple[str, str]:
    """`current_state` of a run that may go on from a former one: it "waits" for it, or is "blocked" if it has failed.

    Runs in `tried` are not retried again.
    """
    state, message = current_state(run, retry_failed=retry_failed and run.path.name not in tried)
    if state != "open":
        return state, message
    try:
        former = former_run(run, run.config()) if run.config_path.exists() else None
        if former is None or former.result() is not None:
            return state, message
        before = current_stage(former, retry_failed=retry_failed, tried=tried)[0]
    except UserError as error:
        return "blocked", str(error)
    if before in ("open", "running", "waits"):
        return "waits", f"for {former.path.name}"
    return "blocked", f"waits for {former.path.name}, an earlier stage, which is {before}"


def settle(run: RunDirectory, ending: Ending, *, before: int | None = None, stopping: bool = False) -> tuple[str, str]:
    """(state, message) of a run whose process has ended; marks the run if the process could not say so itself.

    `before` is the number of attempts (`RunDirectory.attempt`) when it was started; without it, the exit code alone
    tells whether the last word in status.json is this process's. "running": another process holds the run.
    """
    try:
        status = run.read_json("status.json") or {"state": "queued"}
        finished = run.result() is not None
    except UserError as error:
        return UNREADABLE, str(error)
    state, message = status["state"], status.get("message") or ""
    spoke = before is not None and status.get("attempt", 0) > before
    if state == "done" or (spoke and state in LAST_WORDS) or ending.exit_code in LAST_WORDS.get(state, ()):
        return state, message
    if finished:
        return "done", ""  # it was killed between writing its result and saying so
    if run.is_locked():
        return "running", ""
    if ending.cancelled:
        return "interrupted", f"{ending.cancelled}; the same command goes on from its last checkpoint"
    if ending.lost:
        _mark(run, "interrupted", "preempted", ending.lost)
        return "interrupted", ending.lost
    if stopping or (ending.exit_code is not None and -ending.exit_code in (signal.SIGTERM, signal.SIGINT)):
        return "interrupted", "stopped before it could save; it goes on from its last checkpoint"
    kind, message = _cause_of_death(ending)
    message += f"; see {run.log_path}"
    _mark(run, "failed", kind, message)
    return "failed", message


def _mark(run: RunDirectory, state: str, kind: str, message: str) -> None:
    with suppress(RunBusy, OSError), run.lock():
        run.write_status(state, kind=kind, message=message)


def _cause_of_death(ending: Ending) -> tuple[str, str]:
    exit_code = ending.exit_code
    if ending.out_of_memory or exit_code == -signal.SIGKILL:
        return "out_of_memory", "killed by the system (SIGKILL), most often for want of memory: use fewer --workers"
    if exit_code is None:
        return "crash", "its process ended without a word"
    if exit_code < 0:
        return "crash", f"its process died of {signal.Signals(-exit_code).name}"
    return "crash", f"its process ended with exit code {exit_code} and no word"
