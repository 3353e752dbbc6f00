"""What a study will do: every run with its cost and its state, before anything starts. No torch for built-in models."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchscale.config import RunConfig
from patchscale.costs.counts import Counts, count
from patchscale.costs.workload import Workload, workload
from patchscale.errors import UserError
from patchscale.runs.record import RunDirectory
from patchscale.runs.store import UNREADABLE, require_result
from patchscale.shapes import image_height_width
from patchscale.sweeps.order import in_order
from patchscale.sweeps.study import Study

NOT_RETRIED = ("non_finite",)
"""Kinds of failure that would happen again: the run is a function of its config."""
OVERHEAD_FLOPS_PER_IMAGE = 2e7
"""Reading and augmenting an image, as FLOPs, so that runs with few tokens are not guessed to take no time."""
NOT_STARTABLE = ("failed", UNREADABLE, "blocked")
"""States of a run that keep the stage after it from starting."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedRun:
    """One run of a study, priced. Equal to itself only: looking for one among thousands should cost nothing."""

    config: RunConfig
    run: RunDirectory
    """Its directory, which need not exist yet."""
    counts: Counts
    workload: Workload
    state: str
    """As in `patchscale.runs.record.STATES`, "unreadable" or "blocked"; queued if it has no directory yet."""
    failure_kind: str | None = None
    message: str | None = None
    former: "PlannedRun | None" = None
    """The stage before, whose final weights it starts from."""

    @property
    def run_id(self) -> str:
        """The name of its directory."""
        return self.run.path.name

    @property
    def stage(self) -> int:
        """Counted from 1."""
        return 1 if self.former is None else self.former.stage + 1

    @property
    def flops_train_stages(self) -> int | None:
        """`flops_train_total` of all stages up to this one."""
        before = 0 if self.former is None else self.former.flops_train_stages
        return None if before is None or self.flops_train_total is None else before + self.flops_train_total

    @property
    def flops_train_total(self) -> int | None:
        """Forward and backward passes x images seen, 2 FLOPs a MAC; None if the number of images is unknown."""
        images = self.workload.images_seen
        return None if images is None else self.counts.flops_train * images

    @property
    def work(self) -> float:
        """What its time is about proportional to, in FLOPs."""
        return (self.workload.images_seen or 1) * (self.counts.flops_train + OVERHEAD_FLOPS_PER_IMAGE)

    def is_open(self, *, retry_failed: bool) -> bool:
        """Whether the run is still to be done."""
        if self.state == "blocked":
            return self.former is not None and self.former.is_open(retry_failed=retry_failed)
        if self.state == "failed":
            return retry_failed and self.failure_kind not in NOT_RETRIED
        return self.state in ("queued", "interrupted", "running")

    def row(self) -> dict[str, Any]:
        """Plain values, named as in the table of runs."""
        height, width = image_height_width(self.config.model.img_size)
        return {
            "run_id": self.run_id,
            "model": self.config.model.name,
            "head": self.counts.head,
            "img_size": height if height == width else f"{height}x{width}",
            "patch_size": self.config.model.patch_size,
            "seed": self.config.seed,
            "tokens": self.counts.tokens,
            "params_total": self.counts.params_total,
            "params_backbone": self.counts.params_backbone,
            "flops_forward_per_image": self.counts.flops_forward,
            "images_seen": self.workload.images_seen,
            "flops_train_total": self.flops_train_total,
            "stage": self.stage,
            "flops_train_stages": self.flops_train_stages,
            "state": self.state,
            "failure_kind": self.failure_kind,
            "message": self.message,
        }


def plan_study(study: Study, runs_root: Path) -> list[PlannedRun]:
    """Every run of the study in the order in which they will start; nothing is written.

    A head for a number of classes that only the data can tell is not counted.
    """
    folder = runs_root / study.name
    for path in (runs_root, folder):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: is a file, not a folder of runs; choose another runs root or study name")
    planned: dict[str, PlannedRun] = {}
    for config in study.configs:
        run = RunDirectory(folder / config.run_id)
        planned[config.identity] = _plan(config, run, planned.get(config.training.init_run or ""))
    return in_order(list(planned.values()), study.order)


def totals(planned: Sequence[PlannedRun]) -> dict[str, Any]:
    """Number of runs by state, and training FLOPs in all and not yet done; None where a number of images is unknown."""
    states = [item.state for item in planned]
    todo = [item for item in planned if item.state != "done"]
    return {
        "runs": len(planned),
        "states": {state: states.count(state) for state in dict.fromkeys(states)},
        "flops_train_total": _sum(planned),
        "flops_train_to_do": _sum(todo),
    }


def _sum(planned: Sequence[PlannedRun]) -> int | None:
    flops = [item.flops_train_total for item in planned]
    return None if None in flops else sum(item for item in flops if item is not None)


def _plan(config: RunConfig, run: RunDirectory, former: PlannedRun | None) -> PlannedRun:
    images = workload(config)
    counts = count(
        config.model.name,
        patch_size=config.model.patch_size,
        img_size=config.model.img_size,
        num_classes=images.num_classes or 0,
        task=config.task,
        head=config.head,
        pos_embed=config.model.pos_embed,
    )
    state, kind, message = _state(run, config)
    if former is not None and state in ("queued", "interrupted") and former.state in NOT_STARTABLE:
        state, message = "blocked", f"waits for {former.run_id}, an earlier stage, which is {former.state}"
    return PlannedRun(
        config=config,
        run=run,
        counts=counts,
        workload=images,
        state=state,
        failure_kind=kind,
        message=message,
        former=former,
    )


def _state(run: RunDirectory, config: RunConfig) -> tuple[str, str | None, str | None]:
    """(state, kind of failure, message) from the directory."""
    try:
        if run.config_path.exists() and run.config().identity != config.identity:
            raise UserError(
                f"{run.config_path}: was changed, it is another run than its folder says; restore or remove it"
            )
        if run.result() is not None:
            return "done", None, None
        status = run.status()
        require_result(run, status["state"])
    except UserError as error:
        return UNREADABLE, None, str(error)
    return status["state"], status.get("kind"), status.get("message")
