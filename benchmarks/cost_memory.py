"""Peak memory of training steps and forward passes, predicted and measured, for `cost_accuracy.py`.

Every setting runs in a process of its own. On CUDA measured is the most memory allocated for tensors, on a CPU how
far resident memory rises above that of a process which did a small step before, with freed tensors going back to
the system at once (MALLOC_MMAP_THRESHOLD_). Steps are the second of two, so that the optimizer has its moments.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from patchscale.costs.counts import count
from patchscale.costs.memory import Memory, infer_memory, train_memory


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One configuration; `train=False` is a forward pass without gradients."""

    model: str
    patch_size: int
    img_size: int
    batch: int
    micro_batch: int | None = None
    precision: str = "fp32"
    checkpointing: bool = False
    task: str = "classification"
    num_classes: int = 1000
    train: bool = True
    device: str = "cpu"


def settings_for(device: str) -> list[Setting]:
    """Large enough to outweigh what a process takes anyhow, small enough for seconds each."""
    if device != "cpu":
        sizes = [("vit_base", 16, 32), ("vit_base", 8, 8), ("adventurer_base", 16, 32), ("adventurer_base", 4, 2)]
        return [
            Setting(model=model, patch_size=p, img_size=224, batch=batch, device=device, **how)  # type: ignore[arg-type]
            for model, p, batch in sizes
            for how in (
                {},
                {"precision": "bf16"},
                {"precision": "bf16", "checkpointing": True},
                {"precision": "bf16", "train": False},
            )
        ]
    rows: list[tuple[str, int, int, int, dict[str, Any]]] = [
        ("vit_tiny", 16, 224, 32, {}),
        ("vit_tiny", 8, 224, 4, {"precision": "bf16"}),
        ("vit_small", 16, 224, 4, {}),
        ("vit_small", 16, 224, 8, {"precision": "bf16", "checkpointing": True}),
        ("vit_nano", 2, 96, 8, {"checkpointing": True}),
        ("vit_nano", 4, 128, 16, {"task": "segmentation", "num_classes": 19}),
        ("vit_tiny", 16, 224, 32, {"micro_batch": 8}),
        ("adventurer_tiny", 16, 224, 8, {}),
        ("adventurer_tiny", 16, 224, 16, {"precision": "bf16"}),
        ("adventurer_nano", 8, 224, 8, {}),
        ("adventurer_nano", 4, 128, 32, {"checkpointing": True}),
        ("adventurer_nano", 2, 96, 16, {}),
        ("adventurer_nano", 2, 128, 1, {}),
        ("adventurer_nano", 4, 128, 16, {"task": "segmentation", "num_classes": 19, "precision": "bf16"}),
        ("adventurer_small", 16, 224, 4, {"micro_batch": 2, "checkpointing": True}),
        ("eva02_tiny_patch14_224", 16, 224, 8, {}),
        ("vit_small_patch16_dinov3", 16, 224, 4, {}),
        ("beit_base_patch16_224", 16, 224, 2, {}),
        ("beit_base_patch16_224", 16, 448, 2, {}),
        ("cait_xxs24_224", 16, 224, 4, {}),
        ("xcit_nano_12_p16_224", 16, 224, 16, {}),
        ("xcit_nano_12_p16_224", 16, 224, 16, {"precision": "bf16"}),
        ("vit_nano", 4, 128, 16, {"task": "segmentation", "num_classes": 150}),
        ("vit_tiny", 16, 224, 128, {"train": False}),
        ("eva02_tiny_patch14_224", 16, 224, 64, {"train": False}),
        ("vit_nano", 4, 128, 64, {"train": False, "precision": "bf16"}),
        ("adventurer_tiny", 16, 224, 64, {"train": False}),
        ("adventurer_nano", 4, 128, 64, {"train": False}),
        ("adventurer_nano", 2, 64, 16, {"train": False, "precision": "bf16"}),
    ]
    return [
        Setting(model=model, patch_size=p, img_size=size, batch=batch, **how) for model, p, size, batch, how in rows
    ]


def predicted(setting: Setting) -> Memory:
    """By the formulas."""
    counts = count(
        setting.model,
        patch_size=setting.patch_size,
        img_size=setting.img_size,
        num_classes=setting.num_classes,
        task=setting.task,
    )
    how: dict[str, Any] = {"batch_size": setting.batch, "precision": setting.precision, "device": setting.device}
    if not setting.train:
        return infer_memory(counts, **how)
    return train_memory(
        counts, micro_batch_size=setting.micro_batch, activation_checkpointing=setting.checkpointing, **how
    )


def run_steps(setting: Setting) -> None:
    """Two training steps, as a run does them, or two forward passes."""
    from patchscale.models import create_model
    from patchscale.tasks.classification import ClassificationTask
    from patchscale.tasks.segmentation import SegmentationTask
    from patchscale.training.device import autocast

    dense, device = setting.task == "segmentation", torch.device(setting.device)
    backbone = create_model(
        setting.model,
        patch_size=setting.patch_size,
        img_size=setting.img_size,
        num_classes=0 if dense else setting.num_classes,
    )
    if dense:
        task: Any = SegmentationTask(backbone, setting.num_classes, num_features=int(backbone.num_features))  # type: ignore[arg-type]
    else:
        task = ClassificationTask(backbone, setting.num_classes)
    task.to(device).train(setting.train)
    backbone.set_grad_checkpointing(setting.checkpointing)  # type: ignore[operator]
    side = setting.img_size
    images = torch.randn(setting.batch, 3, side, side, device=device)
    shape = (setting.batch, side, side) if dense else (setting.batch,)
    labels = torch.randint(setting.num_classes, shape, device=device)
    if not setting.train:
        for _ in range(2):
            with torch.no_grad(), autocast(device, setting.precision):  # type: ignore[arg-type]
                backbone(images)
        return
    optimizer = torch.optim.AdamW(task.parameters())
    size = setting.micro_batch or setting.batch
    for _ in range(2):
        for part_images, part_labels in zip(images.split(size), labels.split(size), strict=True):
            with autocast(device, setting.precision):  # type: ignore[arg-type]
                loss = task(part_images, part_labels)["loss"]
            loss.backward()
            del loss
        optimizer.step()
        optimizer.zero_grad()


def measured_bytes(setting: Setting) -> int:
    """In a process of its own, which is this file; raises RuntimeError if it breaks."""
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(asdict(setting)),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return int(done.stdout.split()[-1])


def memory_rows(settings: Iterable[Setting]) -> Iterator[dict[str, Any]]:
    """One row per setting: what it is, status, measured_bytes, predicted_bytes, ratio, and the moment of the peak."""
    for setting in settings:
        row = asdict(setting)
        memory = predicted(setting)
        try:
            measured = measured_bytes(setting)
        except RuntimeError as error:
            yield row | {"status": "error", "message": str(error)}
            continue
        yield row | {
            "status": "ok",
            "measured_bytes": measured,
            "predicted_bytes": memory.peak_bytes,
            "ratio": memory.peak_bytes / measured,
            "peak_at": memory.peak_at,
        }


def words(row: dict[str, Any]) -> str:
    """A row for people."""
    kind = "train" if row["train"] else "infer"
    parts = f" in {row['micro_batch']}s" if row["micro_batch"] else ""
    lean = ", checkpointing" if row["checkpointing"] else ""
    where = (
        f"{row['model']} patch {row['patch_size']} at {row['img_size']} px, batch {row['batch']}{parts}, "
        f"{row['precision']}, {kind}, {row['task']}{lean}"
    )
    if row["status"] != "ok":
        return f"{where}: {row['status']}: {row['message']}"
    return (
        f"{where}: measured {row['measured_bytes'] / 2**20:.0f} MiB, predicted "
        f"{row['predicted_bytes'] / 2**20:.0f} MiB, ratio {row['ratio']:.3f} ({row['peak_at']})"
    )


def _measure_here(setting: Setting) -> int:
    torch.set_num_threads(1)
    small: dict[str, Any] = asdict(setting) | {"batch": 2, "micro_batch": None}
    for family in ("vit", "adventurer"):  # what the first step of a process takes: libraries, kernels
        run_steps(Setting(**(small | {"model": f"{family}_test", "patch_size": 4, "img_size": 32})))
    if setting.device == "cpu":
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        run_steps(setting)
        return _status("VmHWM") - before
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run_steps(setting)
    return torch.cuda.max_memory_allocated() - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    print(_measure_here(Setting(**json.loads(sys.stdin.read()))))
