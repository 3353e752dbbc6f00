"""Runs on this machine: one process each, forked from a server that has imported torch already.

A run starts in milliseconds and dies alone: a crash or an out-of-memory kill ends one run, and the others go on. Runs
of several processes are started by torchrun. No torch is imported here; the server does that.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import ModuleType

from patchscale.errors import RunFailed, UserError
from patchscale.runs.record import RunBusy, RunDirectory
from patchscale.sweeps.executors.base import Ending, Options
from patchscale.sweeps.executors.command import (
    die_with_the_parent,
    record_mistake_of_ranks,
    size_bytes,
    train_command,
)
from patchscale.sweeps.packing import Gpus
from patchscale.sweeps.plan import PlannedRun
from patchscale.sweeps.price import price
from patchscale.sweeps.resources import Resources, resources_of
from patchscale.sweeps.retries import set_execution
from patchscale.sweeps.states import current_state

PRELOADED = ["patchscale.training.loop", "patchscale.sweeps.executors.local", "timm", "torchvision.transforms.v2"]
STOPPING = (signal.SIGINT, signal.SIGTERM)
BUSY = 75
"""Exit code of a child that found its run held by another process (EX_TEMPFAIL)."""

_STARTING = threading.Lock()


class LocalExecutor:
    """Processes of this machine, so many at a time: by default one per GPU, else one per core.

    The CPU cores are divided among them, unless OMP_NUM_THREADS is smaller or a config sets `execution.num_threads`.
    """

    def __init__(self, jobs: Sequence[PlannedRun], options: Options) -> None:
        names = visible_gpus() if any(job.config.execution.device in ("auto", "cuda") for job in jobs) else []
        cores = _available_cores()
        most = options.workers or len(names) * options.runs_per_gpu or cores
        self.workers = min(most, max(1, len(jobs)))
        self.options, self.threads = options, max(1, cores // self.workers)
        self.gpus = Gpus(gpu_memory_bytes(names, options.runs_per_gpu), runs_per_gpu=options.runs_per_gpu)
        if options.workers is not None:  # more workers than GPUs were asked for: they share, whatever they need
            self.gpus.share_at_least(options.workers)
        for job in jobs:
            self._refuse_what_will_never_fit(self._resources(job))
        self._jobs: dict[ForkServerProcess, PlannedRun] = {}
        self._asked: set[ForkServerProcess] = set()
        self._memory_bytes: dict[str, int] = {}
        self._logged_bytes: dict[ForkServerProcess, int] = {}
        """What each run's log held before."""
        self._oom_kills: dict[ForkServerProcess, int] = {}
        """Those before its start, and those that have been told of another run since."""
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    @property
    def running(self) -> Collection[PlannedRun]:
        return self._jobs.values()

    def adopt(self, jobs: Sequence[PlannedRun]) -> dict[PlannedRun, int]:
        return {}  # nothing outlives a sweep on this machine

    def has_room(self, job: PlannedRun) -> bool:
        if len(self._jobs) >= self.workers:
            return False
        return not self.gpus.gpus or self.gpus.find(self._number_of_gpus(job), self._memory(job)) is not None

    def start(self, job: PlannedRun) -> None:
        environment = dict(os.environ)
        if self.gpus.gpus:
            gpus = self.gpus.find(self._number_of_gpus(job), self._memory(job))
            assert gpus is not None
            self.gpus.take(job.run_id, gpus, self._memory(job))
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.name for gpu in gpus)
            if gpus:
                self._limit_memory(job, gpus[0].memory_bytes)
        processes = self._resources(job).processes_per_node
        arguments = (str(job.run.path), environment, self.threads, self.options.retry_failed, processes)
        process = self._context.Process(target=_child, args=arguments, name=job.run_id)
        oom_kills_before, logged_bytes = oom_kills(), size_bytes(job.run.log_path)
        try:
            with _surroundings_of_a_child():
                process.start()
        except (EOFError, ConnectionError) as error:
            raise UserError(
                "the process that starts runs has died, probably while importing torch; to see why: "
                f"{sys.executable} -c 'import {', '.join(PRELOADED)}'"
            ) from error
        self._jobs[process], self._oom_kills[process] = job, oom_kills_before
        self._logged_bytes[process] = logged_bytes

    def flush(self) -> None:
        """Nothing: runs start at once."""

    def ended(self, *, timeout_s: float) -> Iterator[tuple[PlannedRun, Ending]]:
        by_sentinel = {process.sentinel: process for process in self._jobs}
        if not by_sentinel:
            threading.Event().wait(timeout_s / 10)
        for sentinel in wait(list(by_sentinel), timeout_s) if by_sentinel else ():
            process = by_sentinel[sentinel]  # type: ignore[index]
            process.join()
            exit_code = process.exitcode
            job = self._jobs.pop(process)
            short = exit_code == -signal.SIGKILL and self._was_killed_for_memory(process)
            del self._oom_kills[process]
            logged_bytes = self._logged_bytes.pop(process)
            self.gpus.release(job.run_id)
            self._asked.discard(process)
            process.close()
            assert exit_code is not None
            if self._resources(job).processes_per_node > 1 and exit_code > 0:  # torchrun's
                exit_code = record_mistake_of_ranks(job.run, job.run.log_path, since=logged_bytes)
            yield job, Ending(exit_code=exit_code, out_of_memory=short)

    def withdraw(self) -> None:
        """Nothing: what was handed over has begun."""

    def stop(self, received: signal.Signals) -> bool:
        """Once, as a run that is asked twice drops its step."""
        to_ask = self._jobs.keys() - self._asked
        for process in to_ask:
            process.terminate()
        self._asked |= to_ask
        return bool(to_ask)

    def kill(self) -> None:
        for process in self._jobs:
            process.kill()

    def close(self) -> None:
        """Nothing outlives the sweep, however it ends."""
        self.stop(signal.SIGTERM)
        for process in self._jobs:
            process.join()

    def _resources(self, job: PlannedRun) -> Resources:
        return resources_of(job.config, self.options.resources)

    def _was_killed_for_memory(self, process: ForkServerProcess) -> bool:
        """Takes one of the system's kills since its start for the process's; it is no other's then."""
        if oom_kills() <= self._oom_kills[process]:
            return False
        for each in self._oom_kills:
            self._oom_kills[each] += 1
        return True

    def _number_of_gpus(self, job: PlannedRun) -> int:
        return number_of_gpus(self._resources(job))

    def _memory(self, job: PlannedRun) -> int:
        """What the run is predicted to take of each GPU; asked only where several share one."""
        if self.gpus.runs_per_gpu == 1:
            return 0
        run_id = job.run_id
        if run_id not in self._memory_bytes:
            self._memory_bytes[run_id] = price(job, None).memory.peak_bytes
        return self._memory_bytes[run_id]

    def _limit_memory(self, job: PlannedRun, memory_bytes: int | None) -> None:
        """Let a run that shares its GPU count on its share only, or on what it needs if that is more."""
        if self.options.runs_per_gpu == 1 or memory_bytes is None or job.config.execution.memory_limit_gib is not None:
            return
        share = max(memory_bytes / self.options.runs_per_gpu, self._memory(job) / 0.75)
        set_execution(job.run, {"memory_limit_gib": round(min(share, memory_bytes) / 2**30, 3)})

    def _refuse_what_will_never_fit(self, needs: Resources) -> None:
        if needs.nodes > 1:
            raise UserError(f"resources: {needs.nodes} nodes are for --executor slurm; this is one machine")
        if self.gpus.gpus and (number := number_of_gpus(needs)) > len(self.gpus.gpus):
            raise UserError(f"resources: {number} GPUs for a run, and this machine shows {len(self.gpus.gpus)}")


def number_of_gpus(needs: Resources) -> int:
    """One for each process, unless something else was asked for."""
    return needs.processes_per_node if needs.whole_gpus is None else needs.whole_gpus


@contextmanager
def _surroundings_of_a_child() -> Iterator[None]:
    """What has to hold in this process while it starts another."""
    with _STARTING:
        main, policy = sys.modules["__main__"], os.environ.get("OMP_WAIT_POLICY")
        # What stops the sweep may reach the server, too, which would die of it while it imports torch. Blocked signals
        # are inherited; runs unblock them. The tracker, which the server starts first, would unblock them here.
        resource_tracker.ensure_running()
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
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
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


def _child(path: str, environment: dict[str, str], threads: int, retry_failed: bool, processes: int = 1) -> None:
    """The life of one run's process; its last words are its exit code and status.json."""
    run = RunDirectory(Path(path))
    os.setpgid(0, 0)  # Ctrl-C in the terminal reaches the sweep alone, which asks each run once
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    _write_everything_to(run.log_path)
    _stop_if_the_sweep_dies()
    if sys.platform == "linux":
        # Else loaders are forked from a server of their own, which this one's death would not end, nor them.
        multiprocessing.set_start_method("fork", force=True)
    os.environ.clear()  # the server's is that of the first sweep
    os.environ.update(environment)  # before CUDA is touched in this process
    if processes > 1:
        die_with_the_parent()
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads // processes)))
        command = train_command(run.path, processes=processes)
        os.execv(command[0], command)
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


def gpu_memory_bytes(names: Sequence[str], runs_per_gpu: int) -> dict[str, int | None]:
    """Name of each GPU -> its memory; asked for only if several runs may share one, None where it is not told."""
    if runs_per_gpu == 1 or not names:
        return dict.fromkeys(names)
    sizes: dict[str, int | None] = {}
    for name in names:
        question = ["nvidia-smi", "-i", name, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        try:
            told = subprocess.run(question, capture_output=True, text=True, check=True, timeout=30).stdout
            sizes[name] = int(float(told.strip()) * 2**20)
        except (OSError, ValueError, subprocess.SubprocessError):
            sizes[name] = None
    return sizes


def oom_kills(root: Path = Path("/")) -> int:
    """Processes that the system has killed for want of memory so far; 0 where it does not tell.

    Of this process's control group, in which its runs are, too; else of the whole machine. Linux: `oom_kill` of
    memory.events (cgroup v2), which counts kills of members by any killer, and of /proc/vmstat.
    """
    for counts in (_own_memory_events(root), root / "proc/vmstat"):
        with suppress(OSError, ValueError):
            for line in counts.read_text(encoding="utf-8").splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


def _own_memory_events(root: Path) -> Path:
    group = ""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            if line.startswith("0::"):
                group = line.removeprefix("0::")
    return root / "sys/fs/cgroup" / group.strip("/") / "memory.events"
