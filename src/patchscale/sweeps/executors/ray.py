"""Runs as tasks of Ray core, on a cluster that is there or on this machine. A task is one run on one node.

Ray's own retries are off: what is tried again, the sweep decides. Runs that wait are handed to Ray, so that an
autoscaler sees what they need. Tasks end with the sweep that started them, and their runs save.
"""

import logging
import math
import os
import re
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from patchscale.errors import UserError
from patchscale.sweeps.executors.base import Ending, Options
from patchscale.sweeps.executors.command import RunProcess, train_command
from patchscale.sweeps.packing import CONTEXT_BYTES
from patchscale.sweeps.plan import PlannedRun
from patchscale.sweeps.price import price
from patchscale.sweeps.resources import Resources, resources_of

MOST_TASKS = 1000
"""Handed to Ray at a time."""
GPU_FRACTIONS = 20
"""A GPU is shared in twentieths."""


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
        self._has_gpus = self._ray.cluster_resources().get("GPU", 0) > 0
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
        needs = self.needs[job.run_id]
        environment = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
        task = self._task.options(
            num_cpus=needs.cpus or 1,
            num_gpus=self._gpus(job, needs),
            memory=None if needs.memory_gib is None else int(needs.memory_gib * 2**30),
            name=job.run_id,
        ).remote(str(job.run.path.resolve()), needs.processes_per_node, environment)
        self._tasks[task] = job

    def flush(self) -> None:
        """Nothing: Ray has the tasks already."""

    def ended(self, *, timeout_s: float) -> Iterator[tuple[PlannedRun, Ending]]:
        if not self._tasks:
            time.sleep(timeout_s / 10)
            return
        done, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=timeout_s)
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
        for task in self._tasks:
            self._ray.cancel(task, force=True)

    def close(self) -> None:
        self._ray.shutdown()

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
    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False, configure_logging=False)
    except ConnectionError as error:
        raise UserError(f"no Ray cluster at {address or os.environ.get('RAY_ADDRESS')}: {_first_line(error)}") from None
    except Exception as error:  # Ray's own, bare: a node did not start in 30 s, on a machine with much else to do
        raise UserError(f"Ray does not start here: {_first_line(error)}; try again, or give --ray-address") from None
    return ray


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _carry_out(path: str, processes: int, environment: dict[str, str]) -> int | None:
    """On a worker: the run's process, from its start to its end. Cancelled, it lets the run save."""
    os.environ.update(environment)
    process = RunProcess(Path(path), train_command(Path(path), processes=processes))
    try:
        exit_code = process.wait()
    except BaseException:  # Ray cancels a task with KeyboardInterrupt
        process.stop()
        raise
    return exit_code if processes == 1 or exit_code < 0 else None
