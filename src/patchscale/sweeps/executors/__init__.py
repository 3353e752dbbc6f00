"""Where the runs of a study are carried out. To add a place: a class like those here (`base.Executor` says what it
does) in a file of its own, and an entry in `EXECUTORS`.
"""

from collections.abc import Callable, Sequence

from patchscale.sweeps.executors.base import Executor, Options
from patchscale.sweeps.plan import PlannedRun


def _local(jobs: Sequence[PlannedRun], options: Options) -> Executor:
    from patchscale.sweeps.executors.local import LocalExecutor

    return LocalExecutor(jobs, options)


def _slurm(jobs: Sequence[PlannedRun], options: Options) -> Executor:
    from patchscale.sweeps.executors.slurm import SlurmExecutor

    return SlurmExecutor(jobs, options)


def _ray(jobs: Sequence[PlannedRun], options: Options) -> Executor:
    from patchscale.sweeps.executors.ray import RayExecutor

    return RayExecutor(jobs, options)


EXECUTORS: dict[str, Callable[[Sequence[PlannedRun], Options], Executor]] = {
    "local": _local,
    "slurm": _slurm,
    "ray": _ray,
}
"""Name -> executor for the jobs of a study; imported on use. Raises `UserError` for what is missing."""
