"""Compiling a backbone in place: bench measures what training runs."""

import shutil

import pytest
import torch

from patchscale.measurements.step import StepConfig, build_step


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler for CPUs needs g++")
def test_a_compiled_step_is_the_same_step():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    options = {"model": "vit_test", "patch_size": 8, "img_size": 32, "batch_size": 2, "num_classes": 10}
    losses, names = [], []
    for compile in (False, True):
        model, step = build_step(StepConfig(**options, device="cpu", compile=compile), torch.device("cpu"))
        losses.append([step().item() for _ in range(3)])
        names.append([name for name, _ in model.named_parameters()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert names[1] == names[0]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
