"""What a run tells: metrics.jsonl for programs, log.txt for people, trackers, and whoever watches."""

import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

from patchscale.files import write_text
from patchscale.runs.record import RunDirectory, append_jsonl
from patchscale.training.trackers import Tracker, numbers, open_trackers


class Watcher:
    """Gets told how a run goes; this one keeps quiet."""

    def step_done(self, step: int, total_steps: int, loss: float) -> None:
        """Optimizer step number `step` of `total_steps` (counted from 1) is done, with this training loss."""

    def message(self, text: str) -> None:
        """One line for people."""


class Journal:
    """Writes the rows and lines of one run."""

    def __init__(self, run: RunDirectory, watcher: Watcher) -> None:
        self.run = run
        self.watcher = watcher
        self.trackers: list[Tracker] = []

    def track(self, first_step: int) -> None:
        """Let the trackers that the config names have the rows after `first_step`; `close` ends it."""
        self.trackers = open_trackers(self.run.config().execution.trackers, self.run, first_step)

    def close(self) -> None:
        """Close the trackers."""
        while self.trackers:
            self.trackers.pop().close()

    def row(self, kind: str, step: int, **values: Any) -> None:
        """One row of metrics.jsonl; `kind` is "train" or "val". Lists are left to the result."""
        plain = {name: value for name, value in values.items() if not isinstance(value, list)}
        append_jsonl(self.run.metrics_path, {"kind": kind, "step": step, **plain})
        self._tell_trackers(kind, step, plain)

    def result(self, row: dict[str, Any]) -> None:
        """The finished run's row of results, of which trackers get the numbers of the test split."""
        self._tell_trackers("test", row["steps"], {"loss": row["test_loss"], row["metric_name"]: row["metric"]})

    def _tell_trackers(self, kind: str, step: int, values: dict[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.row(kind, step, numbers(values))

    def say(self, text: str) -> None:
        """One line for log.txt and for the watcher."""
        self.keep(text)
        self.watcher.message(text)

    def keep(self, text: str) -> None:
        """Text for log.txt alone."""
        with self.run.log_path.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {text.rstrip()}\n")


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the rows after `step`, and a torn last line, so that a resumed run does not write them twice."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
        write_text(path, "".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
