"""What each process does in `test_distributed.py`; a module of its own, as new processes import it."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from patchscale.errors import UserError
from patchscale.runs.record import RunDirectory
from patchscale.training import loop, setup
from patchscale.training.distributed import connected
from patchscale.training.interrupt import Interrupted
from patchscale.training.journal import Watcher
from patchscale.training.loop import run_training


def on_ranks(rank: int, size: int, port: int, jobs: list[tuple[str, str]]) -> None:
    """Do each of `jobs` (name of a function here, path of a run) as one of `size` processes that know of each other."""
    variables = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(1)
    with connected():
        for name, path in jobs:
            globals()[name](Path(path))


def train(path: Path) -> None:
    run_training(RunDirectory(path))


def train_in_float64(path: Path) -> None:
    """The same run with twice the digits: weights are made in float64, images brought to it."""
    set_up = loop.set_up

    def as_float64(module, inputs):
        return inputs[0].double(), *inputs[1:]

    def set_up_in_float64(config, device, ranks):
        setup = set_up(config, device, ranks)
        for task in {setup.state.task, setup.state.evaluated}:
            task.register_forward_pre_hook(as_float64, prepend=True)
        return setup

    torch.set_default_dtype(torch.float64)
    loop.set_up = set_up_in_float64
    try:
        run_training(RunDirectory(path))
    finally:
        loop.set_up = set_up
        torch.set_default_dtype(torch.float32)


class AskedToStop(Watcher):
    """On rank 0 alone."""

    def step_done(self, step: int, total_steps: int, loss: float) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGTERM)


def stop_and_go_on(path: Path) -> None:
    with pytest.raises(Interrupted, match="stopped at step 3 of") as stopped:
        run_training(RunDirectory(path), progress=AskedToStop())
    assert stopped.value.exit_code == 143
    run_training(RunDirectory(path))


def train_after(path: Path, prepare) -> None:
    """Train; `prepare` is called on rank 1 before it loads its data, which rank 0 has at once."""
    load_splits = setup.load_splits

    def load_later(config):
        if os.environ["RANK"] == "1":
            prepare()
        return load_splits(config)

    setup.load_splits = load_later
    try:
        run_training(RunDirectory(path))
    finally:
        setup.load_splits = load_splits


def train_with_another_folder(path: Path) -> None:
    """Rank 1 sees other pictures, of more classes, under the same name."""
    load_splits = setup.load_splits

    def load_other(config):
        root = f"{config.data.root}-{os.environ['RANK']}"
        return load_splits(replace(config, data=replace(config.data, root=root)))

    setup.load_splits = load_other
    run_training(RunDirectory(path))


def train_after_6_s(path: Path) -> None:
    train_after(path, lambda: time.sleep(6))


def fail_before_data(path: Path) -> None:
    def fail():
        time.sleep(3)
        raise UserError("no such folder here")

    train_after(path, fail)


def stop_before_data(path: Path) -> None:
    train_after(path, lambda: os.kill(os.getpid(), signal.SIGSTOP))
