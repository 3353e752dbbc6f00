"""Tiny runs on composed scenes: a second or two each on one core."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from patchscale.config import build_config
from patchscale.runs.record import RunDirectory
from patchscale.sweeps.executors.local import PRELOADED, _child, _surroundings_of_a_child

TINY = {
    "task": "classification",
    "model": {"name": "vit_test", "patch_size": 8, "img_size": 16},
    "data": {"name": "scenes", "train_images": 50, "val_images": 12, "test_images": 12},
    "training": {"steps": 12, "batch_size": 8, "num_validations": 2},
    "execution": {"device": "cpu", "num_threads": 1},
}

# Differs between two runs of the same computation.
MEASURED = ("wall_time_s", "train_time_s", "images_per_s", "train_images_per_s", "peak_memory_bytes")


@pytest.fixture
def make_run(tmp_path) -> Callable[..., RunDirectory]:
    """Make a run directory from `TINY` and overrides; `study` keeps runs of one config apart."""

    def make(*overrides: str, study: str = "s") -> RunDirectory:
        return RunDirectory.create(tmp_path, study, build_config(TINY, overrides))

    return make


def metrics(run: RunDirectory) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]


def outcome(run: RunDirectory) -> dict[str, Any]:
    """All that two runs of the same computation have in common, bit for bit."""
    result = run.result()
    assert result is not None
    return {
        "metrics": metrics(run),
        "result": {name: value for name, value in result.items() if name not in MEASURED},
        "weights": (run.checkpoint_dir / "model.safetensors").read_bytes(),
        "files": sorted(path.name for path in run.path.rglob("*") if path.is_file() and path.parent != run.claims_path),
    }


def start(run: RunDirectory) -> multiprocessing.Process:
    """Train in a process of its own, started as sweeps start theirs."""
    return start_process(_child, str(run.path), dict(os.environ), 1, True)


def start_process(target: Callable[..., None], *arguments: Any) -> multiprocessing.Process:
    """Call a function of a module in a process of its own, one that has imported what sweeps import.

    Not forked from this process: once it has compiled a backward pass, torch refuses backward in children of it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=target, args=arguments)
    with _surroundings_of_a_child():
        process.start()
    return process  # type: ignore[return-value]


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    """Poll closely until `condition` holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.0005)
