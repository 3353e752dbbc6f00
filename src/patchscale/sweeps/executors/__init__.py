"""Where the runs of a study are carried out. To add a place: a function like `run_local` in a file here, and an entry
in `EXECUTORS`.
"""

from collections.abc import Callable

from patchscale.sweeps.executors.local import run_local

EXECUTORS: dict[str, Callable[..., None]] = {"local": run_local}
"""Name -> function(jobs, *, workers, watcher, retry_failed): carries out the jobs and tells the watcher."""
