"""How a folder of runs is getting on: states, speed, time left, cost so far and to come. No torch."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from patchscale.costs.counts import count
from patchscale.costs.workload import workload
from patchscale.errors import UserError
from patchscale.runs.claim import claimed_since_s, last_beat_age_s
from patchscale.runs.record import RunDirectory
from patchscale.runs.store import UNREADABLE, find_runs, progress, row_of
from patchscale.sweeps.budget import Ledger
from patchscale.sweeps.plan import PlannedRun


@dataclass(frozen=True, kw_only=True)
class LiveRun:
    """A run that is being carried out."""

    item: PlannedRun
    owner: str
    """Host and process."""
    beat_age_s: float | None
    """Seconds since its last sign of life."""
    share: float
    """Of its steps."""
    images_per_s: float | None
    left_s: float | None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All runs of a folder at one moment."""

    states: Counter[str]
    running: Sequence[LiveRun]
    spent_hours: float
    """Device hours by the files of all runs."""
    left_hours: float | None
    """Predicted, of all that is not done; None if nothing tells."""
    share: float
    """Of the work of all runs."""
    unreadable: Sequence[str] = ()
    """What is wrong with runs whose files are damaged, one line each."""
    finished: int = field(default=0)
    """Runs that will not go on: done, failed, blocked by an earlier stage that has failed, or unreadable."""

    @property
    def total(self) -> int:
        """Number of runs."""
        return sum(self.states.values())


def snapshot(folder: Path, *, device: str | None = None) -> Snapshot:
    """Look at every run below `folder`. Raises `UserError` if there is none."""
    seen = [_planned(RunDirectory(path)) for path in find_runs(folder)]
    planned = [item for item in seen if isinstance(item, PlannedRun)]
    unreadable = [item for item in seen if isinstance(item, str)]
    if not seen:
        raise UserError(f"{folder}: no runs below this folder")
    ledger = Ledger(planned, device=device)
    open_runs = [item for item in planned if item.state in ("queued", "running", "interrupted")]
    left = [ledger.left_hours(item) for item in open_runs]
    work = sum(item.work for item in planned)
    return Snapshot(
        states=Counter([*(item.state for item in planned), *[UNREADABLE] * len(unreadable)]),
        running=[_live(item, ledger) for item in planned if item.state == "running"],
        spent_hours=ledger.spent_hours,
        left_hours=None if None in left else sum(each for each in left if each is not None),
        share=sum(ledger.shares[item.run_id] * item.work for item in planned) / (work or 1),
        unreadable=unreadable,
        finished=len(seen) - len(open_runs),
    )


def _planned(run: RunDirectory) -> PlannedRun | str:
    """The run and its state; what is wrong with it, if a file is damaged."""
    row = row_of(run)
    if row["status"] == UNREADABLE:
        return str(row["message"])
    try:
        config = run.config()
        state = "done" if run.result() is not None else row["status"]
    except UserError as error:
        return str(error)
    images = workload(config)
    counts = _count(
        config.model.name,
        patch_size=config.model.patch_size,
        img_size=config.model.img_size,
        num_classes=images.num_classes or 0,
        task=config.task,
        head=config.head,
        pos_embed=config.model.pos_embed,
    )
    return PlannedRun(config=config, run=run, counts=counts, workload=images, state=state)


_count = lru_cache(maxsize=4096)(count)


def _live(item: PlannedRun, ledger: Ledger) -> LiveRun:
    run = item.run
    status: dict[str, Any] = {}
    with suppress(UserError):
        status = item.run.read_json("status.json") or {}
    owner = run.owner()
    share = progress(run, status)
    first_step, elapsed_s = _first_step(run), claimed_since_s(run.claims_path)
    rate = left = None
    if first_step is not None and elapsed_s:
        first = first_step / max(1, status.get("steps") or 1)
        if share > first and elapsed_s > 0:
            per_s = (share - first) / elapsed_s
            left = (1 - share) / per_s
            rate = None if item.workload.images_seen is None else per_s * item.workload.images_seen
    return LiveRun(
        item=item,
        owner="" if owner is None else f"{owner.host} {owner.pid}",
        beat_age_s=last_beat_age_s(run.claims_path),
        share=share,
        images_per_s=rate,
        left_s=left,
    )


def _first_step(run: RunDirectory) -> int | None:
    """Where the attempt under way began; None while it is being set up."""
    with suppress(UserError, KeyError, ValueError, IndexError, TypeError, OSError):
        claim = run.claims_path / f"{run.attempt():06d}.json"
        if (run.path / "environment.json").stat().st_mtime >= claim.stat().st_mtime:
            return int((run.read_json("environment.json") or {})["attempts"][-1]["first_step"])
    return None
