"""Runs as tasks of Ray core, on a cluster that is there or on this machine. A task is one run on one node.

Ray's own retries are off: what is tried again, the sweep decides. Runs that wait are handed to Ray, so that an
autoscaler sees what they need. Tasks end with the sweep that started them, and their runs save. A node that is lost is
lost to its runs only; the sweep ends when Ray dies on the sweep's own machine, or its head does.
"""

import logging
import math
import os
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from patchscale.errors import UserError
from patchscale.sweeps.executors.base import Ending, Options
from patchscale.sweeps.executors.command import RunProcess, train_command
from patchscale.sweeps.packing import CONTEXT_BYTES
from patchscale.sweeps.plan import PlannedRun
from patchscale.sweeps.price import price
from patchscale.sweeps.resources import Resources, resources_of
from patchscale.sweeps.stop import SweepInterrupted

MOST_TASKS = 1000
"""Handed to Ray at a time."""
GPU_FRACTIONS = 20
"""A GPU is shared in twentieths."""
LOOK_EVERY_S = 1.0
"""Whether Ray still lives."""
HEAD_AWAY_S = 30.0
"""Ray's own processes give up 60 s after they last reached the head, and take the sweep with them."""
ANSWERS_WITHIN_S = 5.0
SAVE_WITHIN_S = 60.0
"""What runs on this machine have for it when Ray has died."""


class RayExecutor:
    """Tasks of the cluster at `Options.ray_address`, else at RAY_ADDRESS, else on this machine."""

    def __init__(self, jobs: Sequence[PlannedRun], options: Options) -> None:
        if find_spec("ray") is None:
            raise UserError("--executor ray needs ray: pip install 'patchscale[cluster]'")
        self.options = options
        self.needs = {job.run_id: resources_of(job.config, options.resources) for job in jobs}
        if any(needs.nodes > 1 for needs in self.needs.values()):
            raise UserError("resources: a task of Ray is on one node; runs of several nodes are for --executor slurm")
        self.workers = min(options.workers or MOST_TASKS, len(jobs))
        self._ray = _connect(options.ray_address)
        self._raylet, self._head = _places(self._ray)
        self._looked = self._head_seen = time.monotonic()
        self._has_died = False
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self._has_gpus = any(node.get("GPU") for node in nodes)
        self._asks_for = {job.run_id: self._resources(job, self.needs[job.run_id]) for job in jobs}
        self._tell_what_does_not_fit(nodes)
        self._task = self._ray.remote(max_retries=0, scheduling_strategy="SPREAD")(_carry_out)
        self._tasks: dict[Any, PlannedRun] = {}
        self._asked: set[Any] = set()

    @property
    def running(self) -> Collection[PlannedRun]:
        return self._tasks.values()

    def adopt(self, jobs: Sequence[PlannedRun]) -> dict[PlannedRun, int]:
        return {}  # tasks end with the sweep that started them

    def has_room(self, job: PlannedRun) -> bool:
        return len(self._tasks) < self.workers

    def start(self, job: PlannedRun) -> None:
        asks_for = self._asks_for[job.run_id]
        environment = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
        task = self._task.options(
            num_cpus=asks_for["CPU"], num_gpus=asks_for["GPU"], memory=asks_for["memory"] or None, name=job.run_id
        ).remote(str(job.run.path.resolve()), self.needs[job.run_id].processes_per_node, environment)
        self._tasks[task] = job

    def flush(self) -> None:
        """Nothing: Ray has the tasks already."""

    def ended(self, *, timeout_s: float) -> Iterator[tuple[PlannedRun, Ending]]:
        if not self._tasks:
            time.sleep(timeout_s / 10)
            return
        done, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=timeout_s)
        if self._is_dead(at_once=bool(done)):
            self._end_with_ray()
        for task in done:
            self._asked.discard(task)
            yield self._tasks.pop(task), self._ending(task)

    def withdraw(self) -> None:
        self._cancel({task for task, job in self._tasks.items() if not job.run.is_locked()})

    def stop(self, received: signal.Signals) -> bool:
        return self._cancel(self._tasks.keys())

    def _cancel(self, tasks: Collection[Any]) -> bool:
        """Once each; whether any was left."""
        to_ask = set(tasks) - self._asked
        for task in to_ask:
            self._ray.cancel(task, force=False)
        self._asked |= to_ask
        return bool(to_ask)

    def kill(self) -> None:
        if self._has_died:
            for pid in self._pids_here():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return
        for task in self._tasks:
            self._ray.cancel(task, force=True)

    def close(self) -> None:
        self._ray.shutdown()

    def _is_dead(self, *, at_once: bool) -> bool:
        """Whether Ray does not answer here any more; looks now and then, or `at_once`."""
        now = time.monotonic()
        if not at_once and now - self._looked < LOOK_EVERY_S:
            return False
        self._looked = now
        if _answers(*self._head):
            self._head_seen = now
        return not _answers(*self._raylet) or now - self._head_seen > HEAD_AWAY_S

    def _end_with_ray(self) -> NoReturn:
        """Wait for the runs on this machine, which their workers ask to save; nothing is counted against any run."""
        self._has_died = True
        if self._pids_here():
            self.options.say("Ray has died here: the runs on this machine save and stop")
        self._ray.shutdown()
        end = time.monotonic() + SAVE_WITHIN_S
        while self._pids_here() and time.monotonic() < end:
            time.sleep(0.1)
        raise UserError(
            "Ray has died on this machine, or its head has, and the sweep with it; see the logs in /tmp/ray; "
            "the same command goes on with the study"
        )

    def _pids_here(self) -> list[int]:
        """Processes of runs on this machine."""
        owners = [job.run.owner() for job in self._tasks.values()]
        return [owner.pid for owner in owners if owner is not None and owner.lives_here]

    def _tell_what_does_not_fit(self, nodes: Sequence[Mapping[str, float]]) -> None:
        """Raise `UserError` if no other node can join, else say which runs wait for one."""
        waiting = Counter(
            tuple(asks_for.items())
            for asks_for in self._asks_for.values()
            if not any(all(node.get(name, 0) >= amount for name, amount in asks_for.items()) for node in nodes)
        )
        for asks_for, runs in waiting.items():
            if _is_alone(self._ray):
                self.close()
                there = ", ".join(_amounts(node) for node in nodes)
                raise UserError(
                    f"resources: {_amounts(dict(asks_for))} for a run, but the Ray of this machine has {there}; "
                    "ask for less, or give --ray-address of a cluster"
                )
            them = "this run waits" if runs == 1 else f"{runs} runs wait"
            self.options.say(f"no node of the cluster has {_amounts(dict(asks_for))}: {them} until one joins")

    def _resources(self, job: PlannedRun, needs: Resources) -> dict[str, float]:
        """By Ray's names."""
        memory_bytes = int((needs.memory_gib or 0) * 2**30)
        return {"CPU": needs.cpus or 1, "GPU": self._gpus(job, needs), "memory": memory_bytes}

    def _gpus(self, job: PlannedRun, needs: Resources) -> float:
        """What was asked for; else one if there are any, or the part of one that the run's predicted memory takes."""
        if needs.gpus is not None:
            return needs.gpus
        if not self._has_gpus or job.config.execution.device not in ("auto", "cuda"):
            return 0
        if self.options.runs_per_gpu == 1:
            return 1
        part = 1 / self.options.runs_per_gpu
        if needs.gpu_memory_gib is not None:
            part = max(part, (price(job, None).memory.peak_bytes + CONTEXT_BYTES) / (needs.gpu_memory_gib * 2**30))
        return min(1.0, math.ceil(part * GPU_FRACTIONS) / GPU_FRACTIONS)

    def _ending(self, task: Any) -> Ending:
        errors = self._ray.exceptions
        try:
            exit_code = self._ray.get(task)
        except errors.OutOfMemoryError:
            return Ending(out_of_memory=True)
        except errors.TaskCancelledError:
            return Ending(lost="stopped with its sweep")
        except errors.RayTaskError as error:
            return Ending(lost=f"Ray: {str(error).strip().splitlines()[-1]}")
        except errors.RayError as error:  # the worker's process or its node has died
            return Ending(lost=f"Ray: {type(error).__name__}")
        return Ending(exit_code=exit_code)


PASSED_ON = re.compile(r"PATCHSCALE_\w+|(OMP|MKL)_NUM_THREADS|PYTHONPATH|TORCH_HOME|(HF|WANDB|MLFLOW)_\w+")
"""Variables of the sweep that its runs see; the others are those of Ray's workers."""


def _connect(address: str | None) -> Any:
    import ray

    if ray.is_initialized():
        return ray
    if address in (None, "auto"):
        address = os.environ.get("RAY_ADDRESS") or address  # as Ray does
    if address is not None and "://" in address:
        raise UserError(f"{address}: give host:port of the cluster's head, on a machine of the cluster")
    host, _, port = (address or "").rpartition(":")
    if port.isdecimal() and not _answers(host, int(port)):
        raise UserError(f"no Ray cluster at {address}: nothing answers there; see `ray status` on its head")
    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False, configure_logging=False)
    except KeyboardInterrupt:
        raise SweepInterrupted(signal.SIGINT) from None
    except SystemExit:  # what Ray makes of SIGTERM
        raise SweepInterrupted(signal.SIGTERM) from None
    except Exception as error:  # Ray's own, bare: a node did not start in 30 s, on a machine with much else to do
        if address not in (None, "local"):
            raise UserError(f"no Ray cluster at {address}: {_first_line(error)}") from None
        raise UserError(f"Ray does not start here: {_first_line(error)}; try again, or give --ray-address") from None
    return ray


def _is_alone(ray: Any) -> bool:
    """Whether this process has started its Ray, which no other machine joins."""
    return bool(ray._private.worker.global_worker.node.is_head())


def _places(ray: Any) -> tuple[tuple[str, int], tuple[str, int]]:
    """Host and port of this machine's raylet, and of the cluster's head."""
    here = ray.get_runtime_context()
    node = next(node for node in ray.nodes() if node["NodeID"] == here.get_node_id())
    host, _, port = here.gcs_address.rpartition(":")
    return (node["NodeManagerAddress"], node["NodeManagerPort"]), (host, int(port))


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=ANSWERS_WITHIN_S):
            return True
    except (OSError, OverflowError):  # no such host, nobody there, no such port
        return False


def _amounts(resources: Mapping[str, float]) -> str:
    """Of Ray's resources, in words."""
    words = [
        f"{amount:g} {name}{'' if amount == 1 else 's'}"
        for name in ("CPU", "GPU")
        if (amount := resources.get(name, 0))
    ]
    if memory_bytes := resources.get("memory", 0):
        words.append(f"{memory_bytes / 2**30:.3g} GiB of memory")
    return ", ".join(words)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _carry_out(path: str, processes: int, environment: dict[str, str]) -> int | None:
    """On a worker: the run's process, from its start to its end. Cancelled, it lets the run save."""
    os.environ.update(environment)
    raylet = os.getppid()  # Ray's process on this node
    process = RunProcess(Path(path), train_command(Path(path), processes=processes))
    try:
        while process.process.poll() is None:
            if os.getppid() != raylet:
                raise SystemExit("Ray has died on this node")
            time.sleep(0.1)
        exit_code = process.wait()
    except BaseException:  # Ray cancels a task with KeyboardInterrupt
        process.stop()
        raise
    return exit_code if processes == 1 or exit_code < 0 else None
