"""A run that starts from trained weights instead of random ones: `training.init_from`."""

from dataclasses import replace
from pathlib import Path

from patchscale.config import RunConfig
from patchscale.errors import UserError
from patchscale.files import content_sha256
from patchscale.models.checkpoints import LoadReport, load_into
from patchscale.models.weights import read_weights
from patchscale.tasks import Task
from patchscale.training.checkpoint import TrainingState


def load_initial_weights(config: RunConfig, state: TrainingState) -> LoadReport:
    """Load the file into the task, and its moving average, at step 0; other patch and image sizes are carried over.

    A head is taken if the file's has the same task and as many classes, else it stays as it was drawn. Raises
    `UserError` if the file has changed since the run was made, or holds the weights of another model.
    """
    assert config.training.init_from is not None
    path, task = Path(config.training.init_from), state.task
    assert isinstance(task, Task)
    if not path.is_file() or content_sha256(path) != config.training.init_sha256:
        raise UserError(
            f"training.init_from={path}: not the file this run was made with (SHA-256 "
            f"{str(config.training.init_sha256)[:12]}...); put it back, or start a new run"
        )
    weights = read_weights(path)
    report = load_into(task.backbone, weights, resize=True, head="auto")
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
