"""TensorBoard: event files in the run's folder `tensorboard/`; `tensorboard --logdir runs` shows all runs below."""

from patchscale.errors import UserError
from patchscale.runs.record import RunDirectory


class TensorBoardTracker:
    """Rows as scalars "<kind>/<name>"; steps that a resumed run repeats replace those of the attempt before."""

    def __init__(self, run: RunDirectory, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "execution.trackers names tensorboard, which is not installed; pip install 'patchscale[track]', "
                "or leave it out"
            ) from None
        self._writer = SummaryWriter(run.path / "tensorboard", purge_step=first_step + 1)

    def row(self, kind: str, step: int, values: dict[str, float]) -> None:
        """One scalar for every number."""
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()
