"""Calibrated times beside steps measured here, in settings that calibration did not see, for `cost_accuracy.py`."""

from collections.abc import Callable
from typing import Any

from patchscale.costs.counts import count
from patchscale.costs.profile import DeviceProfile
from patchscale.costs.time import step_time
from patchscale.measurements.calibrate import fastest
from patchscale.measurements.step import StepConfig

# model, img_size, patch_size, batch_size, train, checkpointing: none of them is among the steps of calibration
CPU = (
    ("vit_nano", 32, 2, 16, True, False),
    ("vit_tiny", 128, 8, 4, True, False),
    ("vit_tiny", 64, 4, 2, True, True),
    ("vit_small", 96, 16, 16, True, False),
    ("vit_small", 128, 8, 1, True, True),
    ("adventurer_nano", 64, 4, 8, True, False),
    ("adventurer_tiny", 96, 8, 4, True, False),
    ("adventurer_tiny", 64, 2, 1, True, True),
    ("adventurer_small", 128, 16, 4, True, False),
    ("vit_nano", 128, 4, 4, False, False),
    ("vit_tiny", 80, 2, 1, False, False),
    ("vit_small", 64, 4, 2, False, False),
    ("adventurer_nano", 64, 2, 2, False, False),
    ("adventurer_tiny", 224, 16, 4, False, False),
    ("adventurer_small", 96, 8, 2, False, False),
)
GPU = (
    ("vit_tiny", 224, 16, 64, True, False),
    ("vit_small", 224, 8, 32, True, True),
    ("vit_base", 224, 4, 2, True, False),
    ("adventurer_tiny", 224, 8, 32, True, False),
    ("adventurer_small", 224, 4, 8, True, True),
    ("adventurer_base", 224, 2, 1, True, False),
    ("vit_small", 224, 16, 128, False, False),
    ("vit_base", 224, 8, 16, False, False),
    ("adventurer_small", 224, 16, 64, False, False),
    ("adventurer_base", 224, 4, 4, False, False),
)
TINY = (("vit_test", 32, 8, 2, True, False), ("adventurer_test", 32, 8, 2, False, False))


def time_rows(
    profile: DeviceProfile,
    settings: tuple[tuple[Any, ...], ...] = CPU,
    *,
    repetitions: int = 3,
    tell: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """One row for each setting: measured_s (a median; the faster of two on a CPU), predicted_s and their ratio."""
    columns = ("model", "img_size", "patch_size", "batch_size", "train", "checkpointing")
    configs = [
        StepConfig(**dict(zip(columns, setting, strict=True)), precision=profile.precision, device=profile.device)
        for setting in settings
    ]
    rounds = 2 if profile.device == "cpu" else 1
    rows = []
    for measured in fastest(
        configs, num_threads=profile.num_threads, rounds=rounds, repetitions=repetitions, progress=tell
    ):
        row = {column: measured[column] for column in (*columns, "status", "message")}
        if measured["status"] == "ok":
            counts = count(row["model"], patch_size=row["patch_size"], img_size=row["img_size"])
            predicted_s = step_time(
                counts,
                device=profile,
                train=row["train"],
                batch_size=row["batch_size"],
                activation_checkpointing=row["checkpointing"],
            ).step_time_s
            measured_s = measured["step_time_s"]
            row |= {"measured_s": measured_s, "predicted_s": predicted_s, "ratio": predicted_s / measured_s}
        rows.append(row)
    return rows


def words(row: dict[str, Any]) -> str:
    """A row for people."""
    kind = "training" if row["train"] else "inference"
    what = f"{kind}{', checkpointing' if row['checkpointing'] else ''}"
    where = f"{row['model']} patch {row['patch_size']} at {row['img_size']} px, batch {row['batch_size']}, {what}"
    if row["status"] != "ok":
        return f"{where}: {row['status']}: {row['message']}"
    times = f"measured {row['measured_s']:.4g} s, predicted {row['predicted_s']:.4g} s"
    return f"{where}: {times}, ratio {row['ratio']:.2f}"
