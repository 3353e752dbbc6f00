"""Weights & Biases: one of its runs for each of ours, by the same name, in the project of the study.

Its own environment variables hold: WANDB_MODE=offline needs no account and no network (`wandb sync` sends the files in
the run's folder `wandb/` later), WANDB_PROJECT and WANDB_ENTITY say where runs go.
"""

import os

from patchscale.errors import UserError
from patchscale.runs.record import RunDirectory


class WandbTracker:
    """Rows as "<kind>/<name>" by optimizer step; a resumed run goes on under its id."""

    def __init__(self, run: RunDirectory, first_step: int) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                "execution.trackers names wandb, which is not installed; pip install 'patchscale[track]', "
                "or leave it out"
            ) from None
        study = run.path.resolve().parent.name
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", study),
                group=study,
                id=run.path.name,
                name=run.path.name,
                dir=run.path,
                config=run.config().to_dict(),
                resume="allow",
                settings=wandb.Settings(silent=True, console="off"),
            )
        except Exception as error:  # it raises errors of its own for a missing account, network or folder
            words = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"wandb cannot start ({words}); run `wandb login`, or set WANDB_MODE=offline") from error

    def row(self, kind: str, step: int, values: dict[str, float]) -> None:
        """One entry with every number."""
        self._run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Write or send what is left."""
        self._run.finish()
