"""A loss that stops being finite: the run fails, or goes back to its last checkpoint, once, with a smaller step.

Which of the two, `training.on_non_finite` says. That a run has gone back is part of its totals, and so of every later
checkpoint; killed before the next one, it meets the same loss again and goes back again. Nothing is skipped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from patchscale.config import RunConfig
from patchscale.errors import RunFailed
from patchscale.training.checkpoint import Totals
from patchscale.training.journal import Journal

FACTOR = 0.5
"""What every later learning rate is multiplied by."""


class NonFinite(RunFailed):
    """A loss or gradient that is not finite in step `step`, counted from 1; all ranks of a run raise it alike."""

    def __init__(self, message: str, step: int, totals: Totals) -> None:
        super().__init__("non_finite", message)
        self.step = step
        self.went_back_before = totals.learning_rate_factor != 1


@dataclass(frozen=True)
class Rollback:
    """What made a run go back."""

    failure: NonFinite

    def begin(self, totals: Totals, journal: Journal) -> None:
        """Note it in the totals that were just loaded, in the log, and in metrics.jsonl under the next step."""
        totals.learning_rate_factor *= FACTOR
        factor = totals.learning_rate_factor
        journal.say(f"{self.failure}; gone back to step {totals.step}, on with {factor:g} times the learning rate")
        journal.row("rollback", totals.step + 1, failed_step=self.failure.step, learning_rate_factor=factor)


def with_rollback(
    train: Callable[[Rollback | None], dict[str, Any]], config: RunConfig, journal: Journal
) -> dict[str, Any]:
    """What `train` returns, which begins at the last checkpoint; called again if it may go back, never a third time."""
    try:
        return train(None)
    except NonFinite as failure:
        if config.training.on_non_finite == "fail" or failure.went_back_before:
            raise
        rollback = Rollback(failure)
    # Out of the handler, so that the failure no longer holds on to the model and its state.
    rollback.failure.__traceback__ = None
    journal.close()
    return train(rollback)
