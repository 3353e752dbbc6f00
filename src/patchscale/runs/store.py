"""Many run directories as one table. No torch.

The table is built from the files on every call: there is no index that could be stale.
"""

import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchscale.config import RunConfig
from patchscale.errors import UserError
from patchscale.head_shapes import default_head
from patchscale.runs.record import RunDirectory
from patchscale.runs.stages import blocked_by, stage_number
from patchscale.shapes import SHAPES, image_height_width

if TYPE_CHECKING:
    import pandas as pd

UNREADABLE = "unreadable"
"""The `status` of a run directory with a damaged file; `message` names the file."""

RUN_COLUMNS = (
    "run_id",
    "study",
    "status",
    "failure_kind",
    "message",
    "progress",
    "task",
    "head",
    "dataset",
    "model",
    "architecture",
    "img_size",
    "patch_size",
    "tokens",
    "seed",
    "params_total",
    "params_backbone",
    "params_pos_embed",
    "flops_forward_per_image",
    "flops_train_total",
    "stage",
    "flops_train_stages",
    "init_run",
    "last_stage",
    "epochs",
    "steps",
    "images_seen",
    "train_images",
    "test_images",
    "train_loss",
    "val_loss",
    "val_metric",
    "test_loss",
    "metric_name",
    "metric",
    "wall_time_s",
    "peak_memory_bytes",
    "device",
    "ssd_backend",
    "pos_embed",
    "recipe",
    "settings",
    "eval_protocol",
    "versions",
)
"""Columns of every table of runs; what else a result has follows them, and `path` is last."""

TEXT_COLUMNS = (
    *("run_id", "study", "status", "failure_kind", "message", "task", "dataset", "model", "architecture"),
    *("init_run", "metric_name", "device", "ssd_backend", "pos_embed", "recipe", "eval_protocol", "versions"),
)


def load_runs(path: Path | str) -> "pd.DataFrame":
    """One row per run directory at or below `path`, finished or not; cells are empty where a value is not known yet.

    `status` is the run's state, or "unreadable" if one of its files is damaged: `message` then names the file; or
    "blocked" if an earlier stage of it has failed. `last_stage` tells runs that no other one starts from.
    Other folders are passed over. Raises `UserError` if there is no such folder.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; give the folder that runs were made in (--runs-root of train and sweep)"
        )
    return runs_table(find_runs(root))


def runs_table(directories: Iterable[Path]) -> "pd.DataFrame":
    """One row for each of these run directories, as in `load_runs`."""
    import pandas as pd

    table = pd.DataFrame([row_of(RunDirectory(directory)) for directory in directories])
    for name in (*TEXT_COLUMNS, "path"):
        if name not in table or table[name].isna().all():
            table[name] = pd.Series(None, index=table.index, dtype=object)  # else pandas takes it for numbers
    table["last_stage"] = _are_last(table)
    extras = [name for name in table.columns if name not in RUN_COLUMNS and name != "path"]
    return table.reindex(columns=[*RUN_COLUMNS, *extras, "path"])


def _are_last(table: "pd.DataFrame") -> list[bool]:
    """Whether no other run of the table, in the same study, starts from the weights of this one."""
    if "init_run" not in table:
        return [True] * len(table)
    started_from = set(zip(table["study"], table["init_run"], strict=True))
    return [
        (study, run_id.rpartition("-")[2]) not in started_from
        for study, run_id in zip(table["study"], table["run_id"], strict=True)
    ]


def find_runs(root: Path) -> list[Path]:
    """Run directories at or below `root`, in the order of their paths; hidden folders are not searched."""
    found = []
    for folder, folders, files in os.walk(root, onerror=_warn_unsearched):
        if "status.json" in files or {"config.yaml", "result.json"} <= set(files):
            found.append(Path(folder))
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(found)


def _warn_unsearched(error: OSError) -> None:
    warnings.warn(f"runs in {error.filename} are left out: {error.strerror}", stacklevel=2)


def row_of(run: RunDirectory) -> dict[str, Any]:
    """The run's row of the table, as far as its columns are known."""
    place = {"run_id": run.path.name, "study": run.path.resolve().parent.name, "path": str(run.path)}
    try:
        status = run.status()
        result = run.result()
        known = _unfinished(run.config(), run, status) if result is None else {"progress": 1.0, **result}
        require_result(run, status["state"])
    except UserError as error:
        return {**place, "status": UNREADABLE, "message": str(error)}
    state = status["state"]
    if result is not None and state != "running":
        state = "done"  # the process was killed between writing its result and saying so
    if result is None and state in ("queued", "interrupted") and known["init_run"] is not None:
        blocking = blocked_by(run, run.config())
        if blocking is not None:
            state, status = (
                "blocked",
                {"message": f"waits for {blocking.path.name}, an earlier stage, which has failed"},
            )
    failure = {"failure_kind": status.get("kind"), "message": status.get("message")} if state != "done" else {}
    return {**known, **place, "status": state, **failure}


def require_result(run: RunDirectory, state: str) -> None:
    """Raise `UserError` for a run that is done by its status, and whose result is gone."""
    if state == "done" and run.result() is None:
        path = run.path / "result.json"
        raise UserError(f"{path}: missing though the run is done; restore it, or delete the folder to do the run again")


def _unfinished(config: RunConfig, run: RunDirectory, status: dict[str, Any]) -> dict[str, Any]:
    """What the config alone tells, in the columns of a result."""
    model = config.model
    height, width = image_height_width(model.img_size)
    shape = SHAPES.get(model.name)
    return {
        "progress": progress(run, status),
        "task": config.task,
        "head": config.head or default_head(config.task),
        "dataset": config.data.name,
        "model": model.name,
        "architecture": shape.architecture if shape else None,
        "img_size": height if height == width else f"{height}x{width}",
        "patch_size": model.patch_size,
        "tokens": (height // model.patch_size) * (width // model.patch_size),
        "seed": config.seed,
        "stage": stage_number(run, config),
        "init_run": config.training.init_run,
        "pos_embed": model.pos_embed,
        "recipe": config.recipe,
        "settings": config.settings,
    }


def progress(run: RunDirectory, status: dict[str, Any]) -> float:
    """Share of the optimizer steps done, from the last logged row or the last checkpoint, whichever is later."""
    steps = status.get("steps")
    if not steps:
        return 0.0
    step = max(status.get("step") or 0, last_metrics(run.metrics_path).get("step", 0))
    return min(1.0, step / steps)


def last_metrics(path: Path) -> dict[str, Any]:
    """The last whole row of a metrics.jsonl, or {}; only the end of the file is read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a row that is being written, or the cut-off first one
        if isinstance(row, dict):
            return row
    return {}
