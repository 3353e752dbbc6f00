"""Carry out a study: plan it, skip what is finished, run the rest, and return the table."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from patchscale.config import FOLDER_DATASETS
from patchscale.errors import UserError
from patchscale.files import write_text
from patchscale.requirements import require_training_half
from patchscale.runs.record import RunBusy, RunDirectory
from patchscale.runs.store import runs_table
from patchscale.sweeps.budget import Budget, Ledger
from patchscale.sweeps.code_versions import refuse_mixed_code
from patchscale.sweeps.executors import EXECUTORS
from patchscale.sweeps.executors.base import Options
from patchscale.sweeps.loop import Rules, carry_out
from patchscale.sweeps.plan import PlannedRun, plan_study
from patchscale.sweeps.resources import resources_of
from patchscale.sweeps.retries import forget, reconsider, with_retries
from patchscale.sweeps.states import Verdict
from patchscale.sweeps.study import Study
from patchscale.sweeps.watch import SweepWatcher

if TYPE_CHECKING:
    import pandas as pd


def run_study(
    study: Study,
    runs_root: Path | str = "runs",
    *,
    executor: str = "local",
    workers: int | None = None,
    runs_per_gpu: int = 1,
    retry_failed: bool = False,
    keep_going: bool = False,
    wait: bool = False,
    mix_code: bool = False,
    budget_hours: float | None = None,
    device: str | None = None,
    ray_address: str | None = None,
    progress: SweepWatcher | None = None,
) -> "pd.DataFrame":
    """Carry out every run of `study` that is not finished; return one row per run, as `load_runs` does.

    Finished runs are skipped, interrupted ones resumed, failures retried by their kind (`sweeps/retries.py`). Those
    that have failed before are left unless `retry_failed`; those that became non-finite are left always, as they would
    again; stages that would go on from them are "blocked". A run that fails does not stop the others, unless they
    would all fail (`keep_going`): see column `status`. Nothing is started that would exceed `budget_hours` of devices;
    what runs cost is then predicted for `device`, else from the runs so far. `wait` waits for runs that other processes
    carry out. Raises `UserError` if torch is missing, a model is unknown, or (without `mix_code`) a curve would mix
    versions of the code, before anything starts, and `patchscale.sweeps.stop.SweepInterrupted` (a KeyboardInterrupt)
    after Ctrl-C.
    """
    if executor not in EXECUTORS:
        raise UserError(f"executor {executor!r}: no such executor; choose one of {', '.join(EXECUTORS)}")
    if workers is not None and workers < 1:
        raise UserError(f"workers={workers}: at least 1 is needed")
    watcher = progress or SweepWatcher()
    runs_root = Path(runs_root)
    planned = plan_study(study, runs_root)
    if [item for item in planned if _reconsidered(item, study)]:  # all of them
        planned = plan_study(study, runs_root)
    todo = [item for item in planned if item.is_open(retry_failed=retry_failed)]
    if not mix_code:
        refuse_mixed_code(planned, todo, runs_root / study.name)
    watcher.planned(planned, todo)
    for item in planned:
        if item.state == "blocked" and item not in todo:  # it has a place, so that the table can tell of it
            _prepare(item, study.name, runs_root)
    if todo:
        require_training_half()
        _refuse_missing_folders(todo)
        for item in todo:
            _prepare(item, study.name, runs_root)
            if retry_failed:
                forget(item.run)
        options = Options(
            workers=workers,
            runs_per_gpu=runs_per_gpu,
            retry_failed=retry_failed,
            resources=study.resources,
            folder=runs_root / study.name,
            ray_address=ray_address,
            say=watcher.message,
        )
        ledger = Ledger(planned, resources=study.resources, device=device) if budget_hours is not None else None
        rules = Rules(
            retry_failed=retry_failed,
            keep_going=keep_going or any(item.state == "done" for item in planned),
            wait=wait,
            budget=None if budget_hours is None or ledger is None else Budget(budget_hours, ledger),
            resources=study.resources,
        )
        carry_out(todo, EXECUTORS[executor](todo, options), watcher=watcher, rules=rules)
    return runs_table(item.run.path for item in planned)


def _reconsidered(item: PlannedRun, study: Study) -> bool:
    if item.state != "failed":
        return False
    needs = resources_of(item.config, study.resources)
    verdict = Verdict(state="failed", kind=item.failure_kind, message=item.message or "")
    return reconsider(item.run, verdict, processes=needs.nodes * needs.processes_per_node)


def _refuse_missing_folders(todo: Sequence[PlannedRun]) -> None:
    for root in dict.fromkeys(item.config.data.root for item in todo if item.config.data.name in FOLDER_DATASETS):
        if root is None or not Path(root).is_dir():
            raise UserError(f"data.root={root}: no such folder; it must name the folder of the data set")


def _prepare(item: PlannedRun, study: str, runs_root: Path) -> None:
    """Make the run's directory; in an existing one the study's `execution` settings and label hold from now on."""
    try:
        is_new = not item.run.config_path.exists()
        run = RunDirectory.create(runs_root, study, item.config)
        if is_new:
            return
        config = with_retries(run, item.config)
        if run.config() != config:
            with suppress(RunBusy), run.lock():
                write_text(run.config_path, config.to_yaml())
    except OSError as error:
        raise UserError(f"{item.run.path}: cannot be written ({error.strerror}); choose another runs root") from None
