import json
import time
from collections.abc import Callable

import pytest

from patchscale.sweeps.study import build_study
from patchscale.sweeps.watch import SweepWatcher


@pytest.fixture
def tiny():
    """A study of runs that take a second or two; overrides as on the command line."""

    def make(*overrides, steps=8, **grid):
        values = {
            "study": "tiny",
            "base": {
                "model": {"name": "vit_test", "img_size": 16},
                "data": {"name": "scenes", "train_images": 32, "val_images": 8, "test_images": 8},
                "training": {"steps": steps, "batch_size": 4, "num_validations": 1},
                "execution": {"device": "cpu", "log_every_steps": 1, "checkpoint_every_s": 0.2},
            },
            "grid": grid,
        }
        return build_study(values, overrides)

    return make


class Recorder(SweepWatcher):
    """Keeps what it is told; `when_running` is called with every running job once it has reached a step."""

    def __init__(self, when_running: Callable | None = None, *, at_step: int = 1) -> None:
        self.started_runs: list[str] = []
        self.ended_runs: dict[str, tuple[str, str]] = {}
        self.left: list[str] = []
        self.messages: list[str] = []
        self.when_running, self.at_step = when_running, at_step

    def handed_over(self, job, workers):
        self.started_runs.append(job.config.run_id)

    def looked(self, running):
        if self.when_running is None:
            return
        for job in running:
            if reached(job.run, self.at_step):
                self.when_running(job)

    def ended(self, job, state, message):
        self.ended_runs[job.config.run_id] = (state, message)

    def left_alone(self, job):
        self.left.append(job.config.run_id)

    def message(self, text):
        self.messages.append(text)


def reached(run, step):
    """Whether the run has logged this step."""
    if not run.metrics_path.exists():
        return False
    return any(row["step"] >= step for row in whole_rows(run))


def whole_rows(run):
    text = run.metrics_path.read_text()
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def wait_until(condition, *, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def recorder():
    return Recorder
