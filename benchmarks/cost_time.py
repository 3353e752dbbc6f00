"""How right predicted times are: calibrated ones against steps measured here, assumed ones against published hours.

    python benchmarks/cost_time.py [--device cuda] [--threads 1] [--output FILE]

Calibrates this device (nothing is stored), then measures settings that calibration did not see and compares. The aim is
a median absolute relative error of at most 20 %. Then the GPU-hours of one epoch of ImageNet on an A100 (arXiv
2502.03738, Table 6), predicted with one assumed MFU for each architecture; the aim there is 15 % in every cell.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from common import begin, finish, options_parser
from patchscale.costs.counts import count
from patchscale.costs.profile import DeviceProfile
from patchscale.costs.time import run_hours, step_time
from patchscale.measurements.calibrate import SMALLEST, calibrate, fastest
from patchscale.measurements.step import StepConfig
from patchscale.published_tables.tables import published

TARGET_MEDIAN = 0.20
TARGET_TABLE_6 = 0.15
IMAGENET_TRAIN = 1_281_167

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


def time_table(
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


def table6_hours() -> list[dict[str, Any]]:
    """The ten cells of Table 6: GPU-hours of one epoch on an A100, published_h, predicted_h and their ratio."""
    rows = []
    for stated in published("patchification/compute-cost").to_dict("records"):
        for model in ("deit_base", "adventurer_base"):
            size, patch = int(stated["img_size"]), int(stated["patch_size"])
            time = step_time(count(model, patch_size=patch, img_size=size), device="a100", precision="bf16")
            hours = run_hours(time, images=IMAGENET_TRAIN)
            published_h = float(stated[f"gpu_hours_per_epoch_{model}"])
            row = {"model": model, "img_size": size, "patch_size": patch}
            rows.append(row | {"published_h": published_h, "predicted_h": hours, "ratio": hours / published_h})
    return rows


def main() -> None:
    """Calibrate, measure, compare, print, write."""
    parser = options_parser(__doc__, warm_up=1, repetitions=3)
    parser.add_argument("--tiny", action="store_true", help="smallest models, for tests: says nothing about the device")
    options = parser.parse_args()
    device, setting = begin(options)
    settings = TINY if options.tiny else CPU if device.type == "cpu" else GPU
    steps = SMALLEST if options.tiny else None
    profile = calibrate(device.type, num_threads=options.threads, progress=_say, train_steps=steps, infer_steps=steps)
    for name, speeds in (("training", profile.train), ("inference", profile.infer)):
        unsaid = f"; not determined: {', '.join(speeds.undetermined)}" if speeds.undetermined else ""
        print(f"{name}: fit error {speeds.fit_error:.1%}, leave-one-out {speeds.leave_one_out_error:.1%}{unsaid}")
    print(f"the same step took up to {profile.repeats:.2f} times as long when it was measured again")
    rows = time_table(profile, settings, repetitions=options.repetitions, tell=_say)
    for row in rows:
        print(_words(row))
    errors = [abs(row["ratio"] - 1) for row in rows if row["status"] == "ok"]
    median = statistics.median(errors) if errors else float("nan")
    print(f"median error {median:.1%}, largest {max(errors, default=median):.1%} (the aim is {TARGET_MEDIAN:.0%})")
    hours = table6_hours()
    for row in hours:
        print(
            f"{row['model']} patch {row['patch_size']}: {row['predicted_h']:.4g} A100-hours, "
            f"published {row['published_h']:g}, ratio {row['ratio']:.3f}"
        )
    finish(
        options,
        setting,
        profile=asdict(profile),
        rows=rows,
        median_error=median,
        table6=hours,
        targets_met={
            "median_error": median <= TARGET_MEDIAN,
            "table6": all(abs(row["ratio"] - 1) <= TARGET_TABLE_6 for row in hours),
        },
    )


def _words(row: dict[str, Any]) -> str:
    kind = "training" if row["train"] else "inference"
    what = f"{kind}{', checkpointing' if row['checkpointing'] else ''}"
    where = f"{row['model']} patch {row['patch_size']} at {row['img_size']} px, batch {row['batch_size']}, {what}"
    if row["status"] != "ok":
        return f"{where}: {row['status']}: {row['message']}"
    times = f"measured {row['measured_s']:.4g} s, predicted {row['predicted_s']:.4g} s"
    return f"{where}: {times}, ratio {row['ratio']:.2f}"


def _say(what: str) -> None:
    print(what, flush=True)


if __name__ == "__main__":
    main()
