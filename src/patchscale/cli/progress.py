"""Progress of a run on stderr: a bar on a terminal, a few plain lines elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from patchscale.training.journal import Watcher

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@contextmanager
def watch() -> Iterator[Watcher]:
    """A watcher that suits stderr."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Bar(progress)


class _Lines(Watcher):
    """Messages only: a start, the validations and the end."""

    def message(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _Bar(Watcher):
    """A bar that moves with every step, messages above it."""

    def __init__(self, progress: "Progress") -> None:
        self.progress = progress
        self.bar: TaskID | None = None

    def step_done(self, step: int, total_steps: int, loss: float) -> None:
        if self.bar is None:
            # Steps of an earlier attempt are not this one's speed.
            self.bar = self.progress.add_task("training", total=total_steps, completed=step - 1, loss="")
        self.progress.update(self.bar, completed=step, loss=f"{loss:.3f}")

    def message(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)
