"""A job of Slurm's: what it asks for, and what it does on each of its nodes; submitit carries it there."""

import os
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from patchscale.runs.record import RunDirectory
from patchscale.sweeps.executors.command import RunProcess, train_command
from patchscale.sweeps.resources import Resources
from patchscale.sweeps.retries import gets_on

SIGNAL_BEFORE_END_S = 90
DEFAULT_TIME_H = 4.0
"""A run that takes longer is queued again, and goes on."""
PORTS = range(20_000, 30_000)
"""Where the nodes of a job meet; each job has its own."""


def parameters_of(needs: Resources, workers: int) -> Mapping[str, Any]:
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


class RunAsJob:
    """What every task of a job does, one on each node: start the run's processes, and see them to their end."""

    def __init__(self, nodes: int, processes: int) -> None:
        self.nodes, self.processes = nodes, processes
        self.process: RunProcess | None = None

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
        self.process = RunProcess(Path(path), command)
        exit_code = self.process.wait()
        if exit_code < 0:  # of a signal; its word is not in status.json, so tell the sweep
            RunDirectory(Path(path)).write_json("exit.json", {"number": _own_number(), "exit_code": exit_code})
        return exit_code

    def checkpoint(self, path: str) -> Any:
        """Called by submitit when the job is preempted or its time is nearly over: save, then be queued again.

        None, with which the job ends, if the run did not get on for so many times.
        """
        import submitit

        if self.process is not None:
            self.process.stop()
        if not gets_on(RunDirectory(Path(path))):
            return None
        return submitit.helpers.DelayedSubmission(RunAsJob(self.nodes, self.processes), path)


def _own_number() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _first_host() -> str:
    nodes = os.environ["SLURM_JOB_NODELIST"]
    return subprocess.run(
        ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
    ).stdout.split()[0]
