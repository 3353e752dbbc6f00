"""What the training loop costs beside the bare step: forward, backward and AdamW on the same batches.

    python benchmarks/training.py [--models vit_tiny,adventurer_tiny] [--steps 40] [--output FILE]

A run (`run_training`) and a bare step on a twin of its model, optimizer and batches take turns: between two steps of
the run the twin makes one. The run's step is all that the loop does for it: fetching the batch, learning rate, gradient
norm, the check for non-finite numbers, logging. One loader process makes its batches; the twin finds them in memory.
The aim is an overhead below 3 % where a step takes about 100 ms. It is for the loop alone; clipping, which most recipes
ask for and the bare step does not do, is measured beside it.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from common import begin, finish, numbers, options_parser, words
from patchscale.config import RunConfig, build_config
from patchscale.measurements.paired import PairedTimes, wait_for
from patchscale.runs.record import RunDirectory
from patchscale.training.journal import Watcher
from patchscale.training.loop import run_training
from patchscale.training.setup import set_up

TARGET = 0.03
BATCH_SIZES = {"vit_tiny": 6, "adventurer_tiny": 2}
"""Images of 64 px in patches of 8 px, for a step of about 100 ms on one CPU core."""


class TwinSteps(Watcher):
    """Makes a bare step after every step of the run, and keeps the times of both."""

    def __init__(self, config: RunConfig, device: torch.device, warm_up: int) -> None:
        self.device, self.warm_up = device, warm_up
        setup = set_up(config, device)
        self.task, self.optimizer = setup.task, setup.state.optimizer
        self.batches = list(setup.batches(range(8), num_workers=0))
        self.loop_s: list[float] = []
        self.bare_s: list[float] = []
        self.ended = time.perf_counter()

    def step_done(self, step: int, total_steps: int, loss: float) -> None:
        wait_for(self.device)
        loop_s = time.perf_counter() - self.ended
        images, targets = self.batches[step % len(self.batches)]
        started = time.perf_counter()
        self.task(images, targets)["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        wait_for(self.device)
        if step > self.warm_up:
            self.loop_s.append(loop_s)
            self.bare_s.append(time.perf_counter() - started)
        self.ended = time.perf_counter()


def measure(model: str, clip_grad_norm: float | None, options: Any, device: torch.device) -> dict[str, Any]:
    """One row: times of the run's and the bare steps, and their ratio step by step."""
    config = build_config(
        {
            "model": {"name": model, "patch_size": 8, "img_size": 64},
            "data": {"name": "scenes", "train_images": 256, "val_images": 8, "test_images": 8},
            "training": {
                "steps": options.warm_up + options.steps,
                "batch_size": options.batch_size or BATCH_SIZES[model],
                "num_validations": 1,
                "clip_grad_norm": clip_grad_norm,
            },
            "execution": {"device": device.type, "num_workers": 1, "num_threads": options.threads},
        }
    )
    twin = TwinSteps(config, device, options.warm_up)
    with tempfile.TemporaryDirectory() as folder:
        twin.ended = time.perf_counter()
        run_training(RunDirectory.create(Path(folder), "benchmark", config), progress=twin)
    times = PairedTimes({"loop": twin.loop_s[:-1], "bare": twin.bare_s[:-1]})  # the last step saves, too
    ratio = times.ratio("loop", "bare")
    met = ratio.median - 1 < TARGET if clip_grad_norm is None else None
    aim = "" if met is None else f"; the aim, below {1 + TARGET:g}, is {'met' if met else 'missed'}"
    print(
        f"{model}, batch of {config.training.batch_size}, {'clipped' if clip_grad_norm else 'not clipped'}: bare step "
        f"{words(times.time_s('bare'))} s; loop / bare {words(ratio, 4)}{aim}"
    )
    return {
        "model": model,
        "batch_size": config.training.batch_size,
        "clip_grad_norm": clip_grad_norm,
        "time_s": {name: numbers(times.time_s(name)) for name in ("loop", "bare")},
        "time_ratio": {"loop / bare": numbers(ratio)},
        "target": 1 + TARGET if met is not None else None,
        "target_met": met,
    }


def main() -> None:
    """Measure every model, print, write."""
    parser = options_parser(__doc__, warm_up=5, repetitions=1)
    parser.add_argument("--models", default="vit_tiny,adventurer_tiny")
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each model")
    parser.add_argument("--batch-size", type=int, help="images a step; default: for steps of about 100 ms on a CPU")
    options = parser.parse_args()
    device, setting = begin(options)
    rows = [measure(model, clip, options, device) for model in options.models.split(",") for clip in (None, 1.0)]
    finish(options, setting | {"precision": "fp32"}, rows=rows)


if __name__ == "__main__":
    main()
