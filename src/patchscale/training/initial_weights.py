"""A run that starts from trained weights: `training.init_from` (a file) or `training.init_run` (a former run)."""

from dataclasses import replace
from pathlib import Path

from patchscale.config import RunConfig
from patchscale.errors import UserError
from patchscale.files import content_sha256
from patchscale.models.checkpoints import LoadReport, load_into
from patchscale.models.weights import read_weights
from patchscale.runs.record import RunDirectory
from patchscale.runs.stages import finished_former_run
from patchscale.tasks import Task
from patchscale.training.checkpoint import EMA_WEIGHTS, RAW_WEIGHTS, WEIGHTS, TrainingState


def load_initial_weights(run: RunDirectory, config: RunConfig, state: TrainingState) -> LoadReport:
    """Load the file into the task, and its moving average, at step 0; other patch and image sizes are carried over.

    A head is taken if the file's has the same task and as many classes, else it stays as it was drawn. Raises
    `UserError` if the file has changed since the run was made, or holds the weights of another model, or if the former
    run is not finished.
    """
    task = state.task
    assert isinstance(task, Task)
    weights = read_weights(_file_of_former_run(run, config) or _file(config))
    quirk = "positions_one_row_off" in config.training.quirks
    report = load_into(task.backbone, weights, resize=True, head="auto", quirk=quirk)
    own = {name: tensor.shape for name, tensor in task.state_dict().items() if not name.startswith("backbone.")}
    found = {name: tensor.shape for name, tensor in weights.task_head.items()}
    if own and found == own and weights.header.get("task") == config.task:
        task.load_state_dict(weights.task_head, strict=False)
        report = replace(
            report,
            loaded=(*report.loaded, *found),
            left_out=tuple(name for name in report.left_out if name not in found),
        )
    else:
        report = replace(report, kept=(*report.kept, *sorted(own)))
    if state.ema is not None:
        state.ema.set(task)
    return report


def _file(config: RunConfig) -> Path:
    assert config.training.init_from is not None
    path = Path(config.training.init_from)
    if not path.is_file() or content_sha256(path) != config.training.init_sha256:
        raise UserError(
            f"training.init_from={path}: not the file this run was made with (SHA-256 "
            f"{str(config.training.init_sha256)[:12]}...); put it back, or start a new run"
        )
    return path


def _file_of_former_run(run: RunDirectory, config: RunConfig) -> Path | None:
    """None if there is no former run; of two kinds of its weights, the evaluated ones have no kind in their name."""
    former = finished_former_run(run, config)
    if former is None:
        return None
    wanted, before = config.training.init_weights, former.config().training
    if wanted == "final" or (before.ema_decay is not None and wanted == before.eval_weights):
        name = WEIGHTS
    elif wanted == "ema" and before.ema_decay is None:
        raise UserError(f"training.init_weights='ema': {former.path} kept no moving average; set it to final")
    else:
        name = {"raw": WEIGHTS if before.ema_decay is None else RAW_WEIGHTS, "ema": EMA_WEIGHTS}[wanted]
    path = former.checkpoint_dir / name
    if not path.is_file():
        raise UserError(f"{path}: the final weights to start from are gone; put them back, or run {former.path} again")
    return path
