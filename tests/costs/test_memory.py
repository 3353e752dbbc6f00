"""Predicted peaks against what processes really take, kept activations against traced ones, and the paper's table."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from patchscale.costs import activations as formulas
from patchscale.costs.activations import activations
from patchscale.costs.counts import count
from patchscale.costs.memory import infer_memory, train_memory
from patchscale.costs.traced import StorageTracker, fake_copy, trace_model, traced_activations
from patchscale.errors import UserError
from patchscale.models import create_model, mamba2
from patchscale.models.ssd import chunked
from patchscale.models.vit import create_vit
from patchscale.shapes import SHAPES, ViTShape
from patchscale.tasks.segmentation import SegmentationTask

MIB, GIB = 2**20, 2**30
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from cost_memory import Setting, memory_rows, settings_for  # noqa: E402

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
    assert all(0.9 < row["ratio"] < 1.1 for row in memory_rows(settings_for("cpu")))


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
    check_same(traced, formula)


def check_same(traced, formula):
    """All bytes of a model, to 5 %; the depth exactly."""
    for name, number in asdict(formula).items():
        assert getattr(traced, name) == pytest.approx(number, rel=0 if name == "depth" else 0.05), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "kind",
    [{"mlp": "swiglu", "registers": 4}, {"registers": 4, "class_token": False}, {"class_token": False}],
)
def test_tracing_finds_what_the_formula_says_for_every_kind_of_vit(kind, precision):
    shape = ViTShape(embed_dim=192, depth=3, num_heads=3, mlp_dim=512, **kind)
    with torch.device("meta"):
        model = create_vit(
            shape, patch_size=8, img_size=(64, 96), num_classes=0, pos_embed="learned", drop_path_rate=0.0
        )
    traced = trace_model(model, sides=(64, 96), precision=precision).at(24)
    check_same(traced, activations(shape, images=24, tokens=96, pixels=64 * 96, precision=precision, cpu_threads=None))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_models_of_timm_take_what_the_formula_says(device, precision):
    ours, timms = (count(model, patch_size=8, img_size=224) for model in ("vit_small", "vit_small_patch16_224"))
    how = {"batch_size": 4, "precision": precision, "device": device}
    for lean in (False, True):
        formula = train_memory(ours, activation_checkpointing=lean, **how)
        traced = train_memory(timms, activation_checkpointing=lean, **how)
        assert traced.peak_at == formula.peak_at
        assert traced.peak_bytes == pytest.approx(formula.peak_bytes, rel=0.02)
    assert infer_memory(timms, **how).peak_bytes == pytest.approx(infer_memory(ours, **how).peak_bytes, rel=0.03)


def test_score_matrices_are_counted_where_attention_writes_them():
    """One matrix for each head in BEiT, which nothing else of it grows like; none in DeiT."""

    def block(model, img_size):
        return traced_activations(model, patch_size=16, img_size=img_size, images=1, precision="fp32").block

    tokens, more, heads = 197, 785, 12
    fewer_patches, more_patches = (block("beit_base_patch16_224", img_size) for img_size in (224, 448))
    matrices = more_patches * tokens / more - fewer_patches  # the rest is linear in tokens
    assert matrices == pytest.approx(4 * heads * tokens * (more - tokens), rel=0.01)
    assert more_patches > 5.5 * fewer_patches
    assert block("deit_base_patch16_224", 448) < 4.2 * block("deit_base_patch16_224", 224)


def test_the_paper_at_one_pixel_patches_needs_checkpointing():
    """Adventurer-Base, 50,176 tokens, bf16 on a GPU."""
    counts = count("adventurer_base", patch_size=1, img_size=224)
    whole, lean = (
        train_memory(counts, batch_size=1, precision="bf16", activation_checkpointing=again) for again in (False, True)
    )
    assert 20 * GIB < whole.activations < 45 * GIB
    assert lean.activations < 0.2 * whole.activations


@pytest.mark.parametrize("patch_size", [8, 1])
def test_the_dense_linear_head_keeps_what_is_counted(patch_size):
    """With so many classes that the head keeps more than the backbone."""
    size, images, classes = 16, 4, 3000
    backbone = create_model("vit_test", patch_size=patch_size, img_size=size, num_classes=0)
    counts = count("vit_test", patch_size=patch_size, img_size=size, num_classes=classes, task="segmentation")
    task = SegmentationTask(backbone, classes, num_features=backbone.num_features)
    batch = torch.randn(images, 3, size, size), torch.randint(classes, (images, size, size))
    tracker = StorageTracker([*task.parameters(), *task.buffers(), *batch])
    with tracker:
        loss = task(*batch)["loss"]
        kept = tracker.live
        end = tracker.peak
        tracker.peak = kept
        loss.backward()
    head = counts.head_counts
    backbone_kept = activations(
        counts.shape, images=images, tokens=counts.tokens, pixels=size**2, precision="fp32", cpu_threads=None
    )
    outside = backbone_kept.depth * backbone_kept.block + backbone_kept.ends
    of_head = 4 * images * (head.kept_numbers + head.logits_numbers)
    assert of_head > outside
    assert outside + of_head == pytest.approx(kept, rel=0.01)
    memory = train_memory(counts, batch_size=images)
    always = memory.weights + memory.optimizer + memory.batch
    assert memory.moments["end of forward"] - always == pytest.approx(end, rel=0.01)
    head_gradients = 4 * sum(head.params.values())
    assert memory.moments["head"] - always - head_gradients == pytest.approx(tracker.peak, rel=0.03)


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
