"""Where the rows of a run go besides metrics.jsonl. To add a tracker: one file, one line in `TRACKERS`, its name in
`ExecutionConfig.trackers`.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from patchscale.runs.record import RunDirectory
from patchscale.training.trackers.tensorboard import TensorBoardTracker
from patchscale.training.trackers.wandb import WandbTracker


class Tracker(Protocol):
    """Gets every row of numbers that a run writes."""

    def row(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Numbers of `kind` "train", "val" or "test" after optimizer step `step`."""
        ...

    def close(self) -> None:
        """Nothing follows; what is buffered is written."""
        ...


TRACKERS: dict[str, Callable[[RunDirectory, int], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
}


def open_trackers(names: Iterable[str], run: RunDirectory, first_step: int) -> list[Tracker]:
    """The trackers of these names for an attempt at `run` that goes on after `first_step`.

    Raises `UserError` for one that is not installed or cannot start.
    """
    return [TRACKERS[name](run, first_step) for name in names]


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """Those of the values that are numbers."""
    return {
        name: value for name, value in values.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
