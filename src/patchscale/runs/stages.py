"""Runs that go on from the final weights of another run of the same study: `training.init_run`. No torch.

The former run is named by its identity, so that a stage has its own identity before anything has been trained.
"""

from typing import Any

from patchscale.config import RunConfig
from patchscale.errors import UserError
from patchscale.runs.record import RunDirectory


def former_run(run: RunDirectory, config: RunConfig) -> RunDirectory | None:
    """The directory beside `run` from whose weights it starts, or None if it starts from none; it need not exist."""
    identity = config.training.init_run
    if identity is None:
        return None
    found = sorted(path for path in run.path.resolve().parent.glob(f"*-{identity}") if path.is_dir())
    return RunDirectory(found[0] if found else run.path.parent / f"...-{identity}")


def finished_former_run(run: RunDirectory, config: RunConfig) -> RunDirectory | None:
    """`former_run`; raises `UserError` if it is not there or not finished."""
    former = former_run(run, config)
    if former is not None and former.result() is None:
        known = former.path.is_dir()
        do = f"run it first: patchscale train --run-dir {former.path}" if known else "run its study first"
        raise UserError(f"training.init_run={config.training.init_run}: {former.path} is not finished; {do}")
    return former


def blocked_by(run: RunDirectory, config: RunConfig) -> RunDirectory | None:
    """The earlier stage whose failure keeps this one from starting, or None."""
    former = former_run(run, config)
    if former is None:
        return None
    try:
        if former.result() is not None:
            return None
        if former.status()["state"] == "failed":
            return former
        return blocked_by(former, former.config()) if former.config_path.exists() else None
    except UserError:
        return former


def stage_number(run: RunDirectory, config: RunConfig) -> int:
    """1 for a run that starts from no other, 2 for one that starts from such a run; one that is gone counts as 1."""
    former = former_run(run, config)
    if former is None:
        return 1
    return 1 + (stage_number(former, former.config()) if former.config_path.exists() else 1)


def stage_columns(run: RunDirectory, config: RunConfig, flops_train_total: int) -> dict[str, Any]:
    """For the row of results: which stage it is, which run it started from, and what all stages up to it have cost."""
    former = finished_former_run(run, config)
    columns = {"stage": stage_number(run, config), "init_run": config.training.init_run}
    if former is None:
        return columns | {"flops_train_stages": flops_train_total}
    result = former.result()
    assert result is not None
    before = result.get("flops_train_stages", result["flops_train_total"])
    return columns | {"flops_train_stages": before + flops_train_total}
