"""Predicted peaks against what processes really take, kept activations against traced ones, and the paper's table."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from patchscale.costs import activations as formulas
from patchscale.costs.activations import activations
from patchscale.costs.counts import count
from patchscale.costs.memory import infer_memory, train_memory
from patchscale.costs.traced import StorageTracker, fake_copy, traced_activations
from patchscale.errors import UserError
from patchscale.models import create_model, mamba2
from patchscale.models.ssd import chunked
from patchscale.shapes import SHAPES

MIB = 2**20
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from cost_memory import NOT_WITHIN, Setting, memory_rows, settings_for  # noqa: E402

FAST = [
    Setting(model="vit_nano", patch_size=2, img_size=96, batch=8, checkpointing=True),
    Setting(model="adventurer_nano", patch_size=8, img_size=224, batch=4),
    Setting(model="vit_nano", patch_size=4, img_size=128, batch=16, train=False, precision="bf16"),
]


def test_steps_take_the_memory_that_is_predicted():
    assert all(0.9 < row["ratio"] < 1.1 for row in memory_rows(FAST))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_settings_take_the_memory_that_is_predicted():
    settings = [each for each in settings_for("cpu") if each.model not in NOT_WITHIN]
    assert all(0.9 < row["ratio"] < 1.1 for row in memory_rows(settings))


# Table 6 of arXiv 2502.03738: memory per image of ViT-Base at 224 px in fp16 with FlashAttention. Its MB are 2^20:
# with 10^6 the formula would be 6 % off at patch 16.
@pytest.mark.parametrize(("patch_size", "printed_mib"), [(16, 62), (8, 252), (4, 1024), (2, 4057), (1, 16118)])
def test_the_paper_prints_the_activations_of_the_formula(patch_size, printed_mib):
    base = activations(
        SHAPES["vit_base"],
        images=1,
        tokens=(224 // patch_size) ** 2,
        pixels=224**2,
        precision="bf16",
        cpu_threads=None,
    )
    assert (base.depth * base.block + base.ends) / MIB == pytest.approx(printed_mib, rel=0.05)


@pytest.mark.parametrize("model", ["vit_small_patch16_224", "deit_small_patch16_224"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_tracing_finds_what_the_formula_says(model, precision):
    traced = traced_activations(model, patch_size=16, img_size=224, images=24, precision=precision)
    formula = activations(SHAPES["vit_small"], images=24, tokens=196, pixels=224**2, precision=precision, cpu_threads=1)
    for name in ("stream", "block", "block_backward", "ends"):
        assert getattr(traced, name) == pytest.approx(getattr(formula, name), rel=0.05), name


@pytest.mark.parametrize("size", [56, 160])
def test_the_scan_on_cuda_keeps_what_the_formula_says(monkeypatch, size):
    """Fake tensors of a CUDA device, which need none; only the check that runs the kernels is left out."""
    monkeypatch.setattr("patchscale.models.ssd.selection._choose", lambda device: ("triton", "fake tensors"))
    with torch.device("meta"):
        model = create_model("adventurer_nano", patch_size=4, img_size=size, num_classes=10)
    with FakeTensorMode():
        model = fake_copy(model, "cuda")
        images = torch.empty(8, 3, size, size, device="cuda")
        tracker = StorageTracker([*model.parameters(), *model.buffers(), images])
        with tracker:
            loss = model(images).sum()
        kept = tracker.live
        assert loss.device.type == "cuda"
    formula = activations(
        SHAPES["adventurer_nano"],
        images=8,
        tokens=(size // 4) ** 2,
        pixels=size**2,
        precision="fp32",
        cpu_threads=None,
    )
    assert formula.depth * formula.block + formula.ends == pytest.approx(kept, rel=0.05)


def test_the_peak_is_one_moment_and_its_parts_add_up():
    for model in ("vit_tiny", "adventurer_tiny"):
        counts = count(model, patch_size=8, img_size=224)
        for device in ("cuda", "cpu"):
            whole = train_memory(counts, batch_size=8, device=device)
            assert whole.peak_bytes == sum(whole.parts().values()) == max(whole.moments.values())
            assert whole.moments[whole.peak_at] == whole.peak_bytes
            assert whole.weights == 4 * counts.params_total == whole.optimizer // 2
            assert train_memory(counts, batch_size=8, device=device, ema=True).peak_bytes == (
                whole.peak_bytes + whole.weights
            )
            split = train_memory(counts, batch_size=8, micro_batch_size=1, device=device)
            lean = train_memory(counts, batch_size=8, activation_checkpointing=True, device=device)
            assert split.activations < whole.activations / 5
            assert lean.activations < whole.activations / 3
            assert infer_memory(counts, batch_size=8, device=device).peak_bytes < lean.peak_bytes


def test_little_activation_leaves_the_peak_to_the_optimizer():
    memory = train_memory(count("vit_base", patch_size=16, img_size=32), batch_size=1)
    assert memory.peak_at == "optimizer step"
    assert memory.peak_bytes == pytest.approx(5 * memory.weights, rel=0.01)


def test_wrong_sizes_are_refused():
    counts = count("vit_tiny", patch_size=16, img_size=224)
    with pytest.raises(UserError, match="batch_size=0"):
        train_memory(counts, batch_size=0)
    with pytest.raises(UserError, match="fp8"):
        infer_memory(counts, batch_size=1, precision="fp8")


def test_the_formulas_follow_the_code_of_the_mixer():
    assert formulas.STRETCHES_FROM_ELEMENTS == mamba2.STRETCHES_FROM_ELEMENTS
    assert formulas.ELEMENTS_PER_STRETCH == mamba2.ELEMENTS_PER_STRETCH
    assert formulas.CHUNK_SIZE == chunked.CHUNK_SIZE
    assert formulas.CHUNKS_PER_SEGMENT == chunked.CHUNKS_PER_SEGMENT


def test_a_built_in_model_is_predicted_without_torch():
    code = """
import sys
from patchscale.costs.counts import count
from patchscale.costs.memory import train_memory
train_memory(count("adventurer_tiny", patch_size=1, img_size=224), batch_size=1)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
