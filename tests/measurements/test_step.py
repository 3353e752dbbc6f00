"""One configuration measured: the numbers hang together, memory is what was used, and failures are rows."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from patchscale.costs.estimate import estimate_cost
from patchscale.costs.hardware import peak_bf16_flops_per_s
from patchscale.costs.tokens import num_tokens
from patchscale.errors import UserError
from patchscale.measurements import step as step_module
from patchscale.measurements.child import ChildDied, ChildFailed, in_fresh_process
from patchscale.measurements.memory import PeakMemory
from patchscale.measurements.paired import alternate, spread
from patchscale.measurements.step import StepConfig, build_step, measure_step, measure_step_here

CPU = torch.device("cpu")
TINY = partial(StepConfig, patch_size=8, img_size=32, batch_size=2, device="cpu", num_classes=10)
MiB = 2**20


@pytest.fixture(scope="module")
def row():
    return measure_step(TINY(model="adventurer_test"), warm_up=1, repetitions=4, num_threads=1)


def test_the_numbers_hang_together(row):
    cost = estimate_cost("adventurer_test", patch_size=8, img_size=32, num_classes=10)
    assert (row["status"], row["tokens"], row["repetitions"], row["num_threads"]) == ("ok", 16, 4, 1)
    assert row["step_time_25_s"] <= row["step_time_s"] <= row["step_time_75_s"]
    assert row["step_time_25_s"] > 0
    assert row["images_per_s"] == pytest.approx(2 / row["step_time_s"])
    assert row["tokens_per_s"] == pytest.approx(16 * row["images_per_s"])
    assert row["flops_per_s"] == pytest.approx(cost.flops_train * row["images_per_s"])
    assert row["mfu"] is row["peak_flops_per_s"] is None  # no peak is stated for a CPU
    assert row["ssd_backend"] == "chunked"  # the one that ran, not "auto"
    assert row["weights_bytes"] >= 4 * cost.params_total
    assert 0 < row["loss"] < 10


def test_memory_is_the_rise_of_the_first_step(row):
    assert row["peak_memory_kind"] == "resident_above_start"
    assert 0 < row["peak_memory_bytes"] < row["process_peak_bytes"]


def test_inference_counts_the_forward_pass_alone_and_needs_no_gradients():
    config = TINY(model="vit_test", train=False, precision="bf16")
    row = measure_step_here(config, warm_up=0, repetitions=1)
    assert row["flops_per_image"] == config.cost().flops_forward
    assert row["step_time_25_s"] == row["step_time_s"] == row["step_time_75_s"]
    assert row["ssd_backend"] is None
    model, step = build_step(config, CPU)
    step()
    assert not model.training
    assert all(weight.grad is None for weight in model.parameters())


def test_a_training_step_moves_the_weights():
    model, step = build_step(TINY(model="vit_test", checkpointing=True), CPU)
    before = [weight.detach().clone() for weight in model.parameters()]
    losses = [step().item() for _ in range(5)]
    assert losses[-1] < losses[0]
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_checkpointing_needs_less_memory():
    config = partial(TINY, model="vit_tiny", img_size=128, batch_size=4)  # 256 tokens: activations of 12 blocks
    plain, checkpointed = (
        measure_step(config(checkpointing=checkpointing), warm_up=0, repetitions=1)["peak_memory_bytes"]
        for checkpointing in (False, True)
    )
    assert checkpointed < plain


def test_a_time_limit_ends_the_repetitions():
    row = measure_step_here(TINY(model="vit_test"), warm_up=1, repetitions=1000, time_limit_s=0.05)
    assert 1 <= row["repetitions"] < 1000


def test_out_of_memory_is_a_row():
    row = measure_step(TINY(model="vit_test", batch_size=2**45))
    assert row["status"] == "out_of_memory"
    assert "memory" in row["message"]
    assert (row["model"], row["tokens"], row["batch_size"]) == ("vit_test", 16, 2**45)
    assert "step_time_s" not in row


@pytest.mark.parametrize(
    ("happens", "status", "words"),
    [
        (partial(in_fresh_process, signal.raise_signal, signal.SIGKILL), "out_of_memory", "SIGKILL"),
        (partial(in_fresh_process, signal.raise_signal, signal.SIGSEGV), "failed", "SIGSEGV"),
        (partial(in_fresh_process, int, "not a number"), "failed", "ValueError: invalid literal"),
    ],
    ids=["killed", "crashed", "raised"],
)
def test_a_process_that_ends_badly_is_a_row(happens, status, words, monkeypatch):
    monkeypatch.setattr(step_module, "in_fresh_process", lambda *_, **__: happens())
    row = measure_step(TINY(model="vit_test"))
    assert row["status"] == status
    assert words in row["message"]


def test_impossible_configurations_are_refused_at_once():
    with pytest.raises(UserError, match="does not divide"):
        measure_step(StepConfig(model="vit_test", patch_size=5, img_size=32))
    with pytest.raises(UserError, match="vit_tiny"):
        measure_step(StepConfig(model="vit_tinny", patch_size=8, img_size=32))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can reset the mark")
def test_peak_memory_is_what_was_allocated_and_freed():
    kept = torch.ones(20 * MiB)  # there before: not counted
    with PeakMemory(CPU) as peak:
        torch.ones(200 * MiB, dtype=torch.uint8)  # freed at once
    assert peak.kind == "resident_above_start"
    assert 150 * MiB < peak.bytes < 300 * MiB  # a busy system may take pages away, libraries may add some
    assert peak.process_bytes > 200 * MiB + kept.nbytes


def test_a_function_in_a_process_of_its_own():
    assert in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(UserError, match="does not divide"):
        in_fresh_process(num_tokens, 32, 5)
    with pytest.raises(ChildFailed, match="not done within"):
        in_fresh_process(time.sleep, 60, timeout_s=0.3)
    with pytest.raises(ChildDied, match="exit code 3") as died:
        in_fresh_process(os._exit, 3)
    assert not died.value.is_out_of_memory


def test_candidates_take_turns_and_ratios_are_paired():
    calls = []
    times = alternate(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, device=CPU, warm_up=2, repetitions=3
    )
    assert "".join(calls) == "ab" * 5
    assert {name: len(series) for name, series in times.times_s.items()} == {"a": 3, "b": 3}
    # A machine that becomes ten times slower leaves the ratio of every pair alone.
    slowing = type(times)({"a": [2.0, 20.0, 200.0], "b": [1.0, 10.0, 100.0]})
    assert slowing.ratio("a", "b") == (2, 2, 2)
    assert slowing.time_s("a").median == 20


def test_quartiles():
    assert spread([5.0]) == (5, 5, 5)
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == (3, 2, 4)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Intel(R) Xeon(R) Processor", None),
    ],
)
def test_the_stated_peak_of_a_device(name, peak):
    assert peak_bf16_flops_per_s(name) == peak


def test_mfu_is_our_flops_over_the_stated_peak(monkeypatch):
    monkeypatch.setattr(step_module, "device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    row = measure_step_here(TINY(model="vit_test", precision="bf16"), warm_up=0, repetitions=2)
    assert row["mfu"] == pytest.approx(row["flops_per_s"] / 312e12)
    assert measure_step_here(TINY(model="vit_test"), warm_up=0, repetitions=1)["mfu"] is None  # the peak is bf16's


@pytest.mark.gpu
def test_cuda_memory_is_what_the_allocator_counts():
    row = measure_step(TINY(model="adventurer_test", device="cuda", precision="bf16"), repetitions=3)
    assert row["status"] == "ok", row["message"]
    assert row["peak_memory_kind"] == "cuda_allocated"
    assert row["peak_memory_bytes"] > 3 * row["weights_bytes"]  # weights and both moments of AdamW
    assert row["ssd_backend"] == "triton"
