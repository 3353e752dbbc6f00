"""Progress of a sweep on stderr: a bar for every running run on a terminal, a line per event elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from patchscale.cli.early_fit import EarlyFit
from patchscale.config_differences import differing_values
from patchscale.errors import UserError
from patchscale.reports.words import duration, percent, plural
from patchscale.runs.record import RunDirectory
from patchscale.runs.store import progress as progress_of
from patchscale.shapes import image_height_width
from patchscale.sweeps.plan import PlannedRun
from patchscale.sweeps.watch import SweepWatcher

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


MOST_SETTINGS = 3
"""So many are in the label of a run."""
MOST_BARS = 20
"""Further runs are in the line of all runs only."""


@contextmanager
def watch_sweep(*, fit_in: Path | None = None) -> Iterator[SweepWatcher]:
    """A watcher that suits stderr; it fits the law to the runs in `fit_in` as they finish."""
    if not sys.stderr.isatty():
        lines = _Lines(fit_in)
        yield lines
        lines.fit(last=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as progress:
        bars = _Bars(progress, fit_in)
        yield bars
        bars.fit(last=True)


class _Events(SweepWatcher):
    """Counts, and a line for each event."""

    def __init__(self, fit_in: Path | None = None) -> None:
        self.early_fit = None if fit_in is None else EarlyFit(fit_in)
        self.unfitted = False
        """Whether runs have finished since the last fit."""
        self.total = self.ended_count = self.failed_count = 0
        self.clock = _TimeLeft()
        self.labels: dict[str, str] = {}

    def planned(self, runs: Sequence[PlannedRun], todo: Sequence[PlannedRun]) -> None:
        self.total = len(todo)
        self.labels = labels(runs)
        self.clock.plan(todo)
        states = [item.state for item in runs if item not in todo]
        skipped = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        self.message(f"{plural(len(runs), 'run')}: {len(todo)} to do" + (f", skipped: {skipped}" if skipped else ""))
        if todo:
            self.message("starting (torch is imported once, for all runs)")

    def started(self, job: PlannedRun) -> None:
        self.clock.start()

    def ended(self, job: PlannedRun, state: str, message: str) -> None:
        self.ended_count += 1
        self.failed_count += state not in ("done", "interrupted")
        self.clock.end(job)
        outcome = _result_words(job.run) if state == "done" else message
        self.message(f"[{self.ended_count}/{self.total}] {state}: {self.label(job)}{': ' if outcome else ''}{outcome}")
        self.unfitted |= state == "done"
        self.fit()

    def fit(self, *, last: bool = False) -> None:
        """Tell of a fit of all that has finished, unless there was one a moment ago."""
        if self.early_fit is not None and self.unfitted and (lines := self.early_fit.again(last=last)) is not None:
            self.unfitted = False
            for line in lines:
                self.message(line)

    def left_alone(self, job: PlannedRun) -> None:
        self.message(f"left alone: {self.label(job)} is being carried out by another process")

    def label(self, job: PlannedRun) -> str:
        """A run in a few words, unlike those of all others."""
        return self.labels.get(job.run_id) or label(job)


class _Lines(_Events):
    def started(self, job: PlannedRun) -> None:
        super().started(job)
        self.message(f"started: {self.label(job)} -> {job.run.log_path}")

    def message(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _Bars(_Events):
    def __init__(self, progress: "Progress", fit_in: Path | None = None) -> None:
        super().__init__(fit_in)
        self.progress = progress
        self.bars: dict[str, TaskID] = {}
        self.overall: TaskID | None = None

    def planned(self, runs: Sequence[PlannedRun], todo: Sequence[PlannedRun]) -> None:
        super().planned(runs, todo)
        if todo:
            self.overall = self.progress.add_task("all runs", total=1.0, note="")

    def looked(self, running: Sequence[PlannedRun]) -> None:
        shares = {job.run_id: share_done(job.run) for job in running}
        for run_id in self.bars.keys() - shares.keys():
            self.progress.remove_task(self.bars.pop(run_id))
        for job in running:
            bar = self.bars.get(job.run_id)
            if bar is None:
                if len(self.bars) == MOST_BARS:
                    continue
                bar = self.progress.add_task(self.label(job), total=1.0, note="")
                self.bars[job.run_id] = bar
            share = shares[job.run_id]
            self.progress.update(bar, completed=share, note=percent(share, 0) if share else "starting")
        if self.overall is not None:
            failed = f", {self.failed_count} failed" if self.failed_count else ""
            left = self.clock.seconds_left(running, shares)
            self.progress.update(
                self.overall,
                completed=self.clock.share(running, shares),
                note=f"{self.ended_count} of {self.total} ended{failed}"
                + (f", about {duration(left)} left" if left is not None else ""),
            )

    def message(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


class _TimeLeft:
    """Guesses the time left from the training FLOPs done since the start."""

    def __init__(self) -> None:
        self.work: dict[str, float] = {}
        self.already: dict[str, float] = {}
        self.finished = 0.0
        self.started_at: float | None = None

    def plan(self, todo: Sequence[PlannedRun]) -> None:
        for job in todo:
            self.work[job.run_id] = job.work
            self.already[job.run_id] = share_done(job.run)

    def start(self) -> None:
        self.started_at = self.started_at or time.monotonic()

    def end(self, job: PlannedRun) -> None:
        self.finished += self._part(job, 1.0)

    def _part(self, job: PlannedRun, share: float) -> float:
        run_id = job.run_id
        return self.work[run_id] * max(0.0, share - self.already[run_id])

    def _done(self, running: Sequence[PlannedRun], shares: dict[str, float]) -> float:
        return self.finished + sum(self._part(job, shares[job.run_id]) for job in running)

    def _all(self) -> float:
        return sum(work * (1 - self.already[run_id]) for run_id, work in self.work.items())

    def share(self, running: Sequence[PlannedRun], shares: dict[str, float]) -> float:
        """Part of the work of this sweep that is done."""
        return min(1.0, self._done(running, shares) / max(self._all(), 1.0))

    def seconds_left(self, running: Sequence[PlannedRun], shares: dict[str, float]) -> float | None:
        """None in the first seconds, when any guess would be wild."""
        done = self._done(running, shares)
        if self.started_at is None or not done:
            return None
        elapsed = time.monotonic() - self.started_at
        return None if elapsed < 5 else elapsed * max(0.0, self._all() / done - 1)


def share_done(run: RunDirectory) -> float:
    """Share of its steps that a run has done, without asking for its lock."""
    with suppress(UserError):
        return progress_of(run, run.read_json("status.json") or {})
    return 0.0


def labels(runs: Sequence[PlannedRun]) -> dict[str, str]:
    """A label for each run, by its id: `label`, and the settings in which others of that label differ from it."""
    alike: dict[str, list[PlannedRun]] = {}
    for job in runs:
        alike.setdefault(label(job), []).append(job)
    found = {}
    for text, jobs in alike.items():
        differing = differing_values([job.config for job in jobs]).items() if len(jobs) > 1 else ()
        # what a stage goes on from is no setting of anybody's
        named = [(name.rpartition(".")[2], values) for name, values in differing if ".init_" not in name]
        for place, job in enumerate(jobs):
            found[job.run_id] = ", ".join(
                [text, *(f"{name} {values[place]}" for name, values in named[:MOST_SETTINGS])]
            )
    return found


def label(job: PlannedRun) -> str:
    """A run in a few words."""
    model = job.config.model
    height, width = image_height_width(model.img_size)
    size = f"{height}" if height == width else f"{height}x{width}"
    return f"{model.name} patch {model.patch_size} at {size} px, seed {job.config.seed}"


def _result_words(run: RunDirectory) -> str:
    with suppress(UserError):
        row = run.result() or {}
        if {"metric", "metric_name", "wall_time_s"} <= row.keys():
            return f"{row['metric_name']} {percent(row['metric'])} in {duration(row['wall_time_s'])}"
    return ""
