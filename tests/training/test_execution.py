"""How a run is carried out: which scan, compiled or not. Neither is part of its identity."""

import shutil

import pytest
import torch
from tests.training.conftest import metrics
from torch._dynamo.utils import counters

from patchscale.errors import UserError
from patchscale.training.journal import Watcher
from patchscale.training.loop import run_training
from patchscale.training.tensor_files import stored_shapes


@pytest.mark.parametrize(("asked", "ran"), [("auto", "chunked"), ("chunked", "chunked"), ("reference", "reference")])
def test_the_scan_that_ran_is_recorded(make_run, asked, ran):
    run = make_run("model.name=adventurer_test", "training.steps=2", f"execution.ssd_backend={asked}")
    assert run_training(run)["ssd_backend"] == ran


def test_scans_agree_and_belong_to_the_same_run(make_run):
    settings = ["model.name=adventurer_test", "training.steps=3", "model.patch_size=4"]
    runs = [make_run(*settings, f"execution.ssd_backend={name}", study=name) for name in ("chunked", "reference")]
    assert len({run.config().identity for run in runs}) == 1
    chunked, reference = (run_training(run) for run in runs)
    assert chunked["test_loss"] == pytest.approx(reference["test_loss"], rel=1e-4)


def test_a_scan_that_cannot_run_here_is_refused(make_run):
    run = make_run("model.name=adventurer_test", "execution.ssd_backend=triton")
    with pytest.raises(UserError, match="ssd_backend triton cannot run here: the Triton kernels are for CUDA devices"):
        run_training(run)


class Stop(Exception):
    pass


class StopAtTwo(Watcher):
    def step_done(self, step, total_steps, loss):
        if step == 2:
            raise Stop


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize(
    ("task", "model"), [("classification", "vit_test"), ("segmentation", "adventurer_test")], ids=["vit", "adventurer"]
)
def test_a_compiled_run_learns_the_same_and_resumes(make_run, task, model):
    settings = [
        f"task={task}",
        f"model.name={model}",
        "model.drop_path_rate=0.3",
        "training.steps=4",
        "training.ema_decay=0.9",
        "execution.log_every_steps=1",
        "execution.checkpoint_every_s=0",
    ]
    eager, compiled = make_run(*settings, study="eager"), make_run(*settings, "execution.compile=true", study="fast")
    row = run_training(eager)
    torch.compiler.reset()
    counters.clear()
    with pytest.raises(RuntimeError):
        run_training(compiled, progress=StopAtTwo())
    # The names in the checkpoint are those of the plain model.
    saved = stored_shapes(compiled.checkpoint_dir / "step-00000001")
    assert not any("_orig_mod" in name for name in saved)
    compiled_row = run_training(compiled)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]

    assert compiled_row["test_loss"] == pytest.approx(row["test_loss"], rel=1e-3)
    for expected, found in zip(metrics(eager), metrics(compiled), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
