"""Runs on this machine: one process each, forked from a server that has imported torch already.

A run starts in milliseconds and dies alone: a crash or an out-of-memory kill ends one run, which is marked failed, and
the others go on. No torch is imported here; the server does that.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from patchscale.errors import RunFailed, UserError
from patchscale.runs.record import RunBusy, RunDirectory
from patchscale.runs.stages import former_run
from patchscale.runs.store import UNREADABLE
from patchscale.sweeps.plan import NOT_RETRIED, PlannedRun
from patchscale.sweeps.watch import SweepWatcher

PRELOADED = ["patchscale.training.loop", "patchscale.sweeps.executors.local", "timm", "torchvision.transforms.v2"]
LOOK_EVERY_S = 0.25
BUSY = 75
"""Exit code of a child that found its run held by another process (EX_TEMPFAIL)."""
LAST_WORDS = {"failed": (1, 2), "interrupted": (128 + signal.SIGINT, 128 + signal.SIGTERM)}
"""Exit codes of a child that has written this state itself."""

_STARTING = threading.Lock()


class SweepInterrupted(KeyboardInterrupt):
    """A sweep that was asked to stop, and whose runs have saved their state; `exit_code` is 130 or 143."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__("sweep stopped")
        self.exit_code = 128 + received


def run_local(
    jobs: Sequence[PlannedRun], *, workers: int | None = None, watcher: SweepWatcher, retry_failed: bool = False
) -> None:
    """Carry out `jobs` in their order, `workers` at a time (default: one per GPU, else one per core).

    The CPU cores are divided among the workers, unless OMP_NUM_THREADS is smaller or a config sets
    `execution.num_threads`. A stage waits for the one before. A run that another process holds is left alone. On Ctrl-C
    or SIGTERM the running ones save their state and stop; then raises `SweepInterrupted`. A second Ctrl-C kills them.
    """
    gpus = visible_gpus() if any(job.config.execution.device in ("auto", "cuda") for job in jobs) else []
    cores = _available_cores()
    workers = min(workers or len(gpus) or cores, max(1, len(jobs)))
    pool = _Pool(workers=workers, threads=max(1, cores // workers), gpus=gpus, retry_failed=retry_failed)
    waiting = list(jobs)
    tried: set[str] = set()
    held: list[PlannedRun] = []  # found held by another process; looked at again when the rest is done
    second_look = False
    with _StopRequests(pool) as stop, pool:
        while waiting or pool.running or (held and not second_look):
            if not waiting and not pool.running:
                waiting, held, second_look = held, [], True
            for job in tuple(waiting):
                if not pool.has_room() or stop.received:
                    break
                state, message = current_stage(job.run, retry_failed=retry_failed, tried=tried)
                if state == "waits":
                    continue
                waiting.remove(job)
                if state == "running":
                    held.append(job)
                elif state == "open":
                    pool.start(job)
                    watcher.started(job, workers)
                else:  # another sweep has carried it out since it was planned
                    watcher.ended(job, state, message)
            if (
                waiting and not pool.running and not stop.received and pool.has_room()
            ):  # they wait for runs held elsewhere
                held, waiting = [*held, *waiting], []
            for job, exit_code in pool.ended(timeout_s=LOOK_EVERY_S):
                tried.add(job.config.run_id)
                if exit_code == BUSY:
                    held.append(job)
                else:
                    watcher.ended(job, *settle(job.run, exit_code, stopping=stop.received is not None))
            watcher.looked(list(pool.running.values()))
            if stop.received:
                if pool.ask_to_stop():
                    watcher.message("stopping: running runs finish their step and save; Ctrl-C again kills them")
                if not pool.running:
                    raise SweepInterrupted(stop.received)
    for job in held:
        watcher.left_alone(job)


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


def settle(run: RunDirectory, exit_code: int, *, stopping: bool) -> tuple[str, str]:
    """(state, message) of a run whose process has ended; marks it failed if the process could not say so itself."""
    try:
        status = run.read_json("status.json") or {"state": "queued"}
    except UserError as error:
        return UNREADABLE, str(error)
    state, message = status["state"], status.get("message") or ""
    # Other exit codes mean that the last word in status.json is older than this process.
    if state == "done" or exit_code in LAST_WORDS.get(state, ()):
        return state, message
    if run.result() is not None:
        return "done", ""  # it was killed between writing its result and saying so
    if stopping or -exit_code in (signal.SIGTERM, signal.SIGINT):
        return "interrupted", "stopped before it could save; it goes on from its last checkpoint"
    kind, message = _cause_of_death(exit_code)
    message += f"; see {run.log_path}"
    with suppress(RunBusy, OSError), run.lock():
        run.write_status("failed", kind=kind, message=message)
    return "failed", message


def _cause_of_death(exit_code: int) -> tuple[str, str]:
    if exit_code == -signal.SIGKILL:
        return "out_of_memory", "killed by the system (SIGKILL), most often for want of memory: use fewer --workers"
    if exit_code < 0:
        return "crash", f"its process died of {signal.Signals(-exit_code).name}"
    return "crash", f"its process ended with exit code {exit_code} and no word"


class _Pool:
    """The processes of the runs under way."""

    def __init__(self, *, workers: int, threads: int, gpus: Sequence[str], retry_failed: bool) -> None:
        self.threads, self.gpus, self.retry_failed = threads, gpus, retry_failed
        self.running: dict[ForkServerProcess, PlannedRun] = {}
        self._slots: dict[ForkServerProcess, int] = {}
        self._asked: set[ForkServerProcess] = set()
        self._free = list(range(workers))
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing outlives the sweep, however it ends."""
        self.ask_to_stop()
        for process in self.running:
            process.join()

    def has_room(self) -> bool:
        return bool(self._free)

    def start(self, job: PlannedRun) -> None:
        slot = self._free.pop(0)
        gpu = self.gpus[slot % len(self.gpus)] if self.gpus else None
        environment = dict(os.environ) | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
        arguments = (str(job.run.path), environment, self.threads, self.retry_failed)
        process = self._context.Process(target=_child, args=arguments, name=job.config.run_id)
        try:
            with _surroundings_of_a_child():
                process.start()
        except (EOFError, ConnectionError) as error:
            raise UserError(
                "the process that starts runs has died, probably while importing torch; to see why: "
                f"{sys.executable} -c 'import {', '.join(PRELOADED)}'"
            ) from error
        self.running[process] = job
        self._slots[process] = slot

    def ended(self, *, timeout_s: float) -> Iterator[tuple[PlannedRun, int]]:
        """Runs whose process has ended, with its exit code (negative: the signal); waits up to `timeout_s` for one."""
        by_sentinel = {process.sentinel: process for process in self.running}
        for sentinel in wait(list(by_sentinel), timeout_s) if by_sentinel else ():
            process = by_sentinel[sentinel]  # type: ignore[index]
            process.join()
            exit_code = process.exitcode
            job = self.running.pop(process)
            self._free.append(self._slots.pop(process))
            self._asked.discard(process)
            process.close()
            assert exit_code is not None
            yield job, exit_code

    def ask_to_stop(self) -> bool:
        """Ask every run to finish its step, save and end; once, as asked twice it drops the step. Whether any was."""
        to_ask = self.running.keys() - self._asked
        for process in to_ask:
            process.terminate()
        self._asked |= to_ask
        return bool(to_ask)

    def kill(self) -> None:
        """End every run at once; it goes on from its last checkpoint another time."""
        for process in self.running:
            process.kill()


class _StopRequests:
    """Ctrl-C and SIGTERM: the first is remembered, for the runs to be asked to save and stop; the second kills them."""

    def __init__(self, pool: _Pool) -> None:
        self.received: signal.Signals | None = None
        self._pool = pool
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "_StopRequests":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self._pool.kill()
        self.received = signal.Signals(number)


@contextmanager
def _surroundings_of_a_child() -> Iterator[None]:
    """What has to hold in this process while it starts another."""
    with _STARTING:
        main, policy = sys.modules["__main__"], os.environ.get("OMP_WAIT_POLICY")
        # multiprocessing would import the user's script in every child, and so run it a second time.
        sys.modules["__main__"] = ModuleType("__main__")
        # Threads that spin while they wait slow a small step 20 to 50 times where other processes want the core;
        # waiting asleep costs a fifth at most. Read when the server imports torch.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
            if policy is None:
                del os.environ["OMP_WAIT_POLICY"]


def _child(path: str, environment: dict[str, str], threads: int, retry_failed: bool) -> None:
    """The life of one run's process; its last words are its exit code and status.json."""
    run = RunDirectory(Path(path))
    os.setpgid(0, 0)  # Ctrl-C in the terminal reaches the sweep alone, which asks each run once
    _write_everything_to(run.log_path)
    _stop_if_the_sweep_dies()
    os.environ.clear()  # the server's is that of the first sweep
    os.environ.update(environment)  # before CUDA is touched in this process
    import torch

    from patchscale.training.loop import run_training

    torch.set_num_threads(min(threads, torch.get_num_threads()) if "OMP_NUM_THREADS" in os.environ else threads)
    if current_state(run, retry_failed=retry_failed)[0] != "open":
        sys.exit(BUSY)
    try:
        run_training(run)
    except RunBusy:
        sys.exit(BUSY)
    except RunFailed:
        sys.exit(1)
    except KeyboardInterrupt as stopped:
        sys.exit(getattr(stopped, "exit_code", 130))
    except UserError as error:
        with suppress(RunBusy), run.lock():
            if run.status()["state"] != "failed":
                run.write_status("failed", kind="config", message=str(error))
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _write_everything_to(path: Path) -> None:
    """Send what this process prints, also from C code or in a crash, to a file."""
    import faulthandler

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    faulthandler.enable()


def _stop_if_the_sweep_dies() -> None:
    """Save and stop when the sweep's process is gone, even if it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Names of the CUDA devices a process started now would see, for CUDA_VISIBLE_DEVICES; asked without torch."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [name.strip() for name in allowed.split(",") if name.strip() and name.strip() != "-1"]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]
