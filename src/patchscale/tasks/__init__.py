"""What models are trained for. To add a task: one file, one line in `TASKS`, its name in `RunConfig.task`."""

from collections.abc import Callable

from patchscale.config import RunConfig
from patchscale.data.datasets import Splits
from patchscale.tasks.base import Meter, Task
from patchscale.tasks.classification import build_classification
from patchscale.tasks.detection import build_detection
from patchscale.tasks.segmentation import build_segmentation

TASKS: dict[str, Callable[[RunConfig, Splits], Task]] = {
    "classification": build_classification,
    "segmentation": build_segmentation,
    "detection": build_detection,
}


def build_task(config: RunConfig, splits: Splits) -> Task:
    """The task of a run with freshly initialised weights, drawn from torch's global generator."""
    return TASKS[config.task](config, splits)


__all__ = ["TASKS", "Meter", "Task", "build_task"]
