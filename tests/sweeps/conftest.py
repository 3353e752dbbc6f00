import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.pausing import go_on, is_paused, pause

from patchscale.runs.record import RunDirectory
from patchscale.sweeps.plan import plan_study
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


def study_asking(resources, *overrides):
    """Two runs that need `resources`."""
    values = {
        "study": "asks",
        "base": {"model": {"name": "vit_test", "img_size": 16}, "data": {"name": "scenes"}},
        "grid": {"patch_size": [16, 8]},
        "resources": resources,
    }
    return build_study(values, overrides)


@pytest.fixture
def planned(tmp_path):
    """Two runs that have their directories."""
    jobs = plan_study(study_asking([]), tmp_path / "runs")
    for job in jobs:
        RunDirectory.create(tmp_path / "runs", "asks", job.config)
    return jobs


class Recorder(SweepWatcher):
    """Keeps what it is told; `when_running` is called with every running job once it has reached a step.

    The run waits there meanwhile, so that it cannot end before; it goes on afterwards, unless `when_running` says True.
    """

    def __init__(self, when_running: Callable | None = None, *, at_step: int = 1) -> None:
        self.started_runs: list[str] = []
        self.ended_runs: dict[str, tuple[str, str]] = {}
        self.left: list[str] = []
        self.messages: list[str] = []
        self.when_running, self.at_step = when_running, at_step
        self._met: list[Path] = []
        self._paused: list[Path] = []

    def planned(self, runs, todo):
        if self.when_running is not None:
            self._paused = [job.run.path for job in todo]
            for path in self._paused:
                pause(path, after_step=self.at_step)

    def let_go(self):
        """Let another sweep carry out the runs that this one has left."""
        for path in self._paused:
            go_on(path)

    def handed_over(self, job, workers):
        self.started_runs.append(job.config.run_id)

    def looked(self, running):
        if self.when_running is None:
            return
        while self._met:  # a look later, when signals to the sweep have been passed on
            go_on(self._met.pop())
        for job in running:
            if is_paused(job.run.path) and not self.when_running(job):
                self._met.append(job.run.path)

    def ended(self, job, state, message):
        self.ended_runs[job.config.run_id] = (state, message)

    def left_alone(self, job):
        self.left.append(job.config.run_id)

    def message(self, text):
        self.messages.append(text)


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
