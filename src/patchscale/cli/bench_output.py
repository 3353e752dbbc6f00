"""What `patchscale bench` shows of what it measured: conditions, readable rows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from patchscale.cli.measuring import say

if TYPE_CHECKING:
    from patchscale.measurements.step import StepConfig


def say_conditions(setting: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Machine, precision, repetitions; the scans that ran, and what memory means in these rows."""
    from patchscale.measurements.environment import environment_words

    backends = sorted({row["ssd_backend"] for row in rows if row.get("ssd_backend")})
    kinds = {
        "cuda_allocated": "most memory allocated on the device",
        "resident_above_start": "rise of resident memory in the first step, weights not counted",
        "process_resident": "resident memory of the whole process",
    }
    memory = {kinds[row["peak_memory_kind"]] for row in rows if "peak_memory_kind" in row}
    words = [
        environment_words(setting),
        setting["precision"],
        f"{setting['warm_up']} warm-up and {setting['repetitions']} timed steps",
    ]
    words += [f"scan: {', '.join(backends)}"] if backends else []
    words += [f"memory: {', '.join(memory)}"] if memory else []
    say("; ".join(words))


def label(config: "StepConfig") -> str:
    """What is being measured, in a few words."""
    return f"{config.model} patch {config.patch_size} at {_side(config.img_size)} px, batch {config.batch_size}"


def readable(row: dict[str, Any]) -> dict[str, str]:
    """A row of the printed table; empty cells where nothing was measured."""
    from patchscale.reports.words import percent, size_bytes

    shown = {
        "model": row["model"],
        "img_size": _side(row["img_size"]),
        "patch_size": str(row["patch_size"]),
        "tokens": f"{row['tokens']:,}",
        "batch": str(row["batch_size"]),
        "status": row["status"],
    }
    names = ("ms/step", "25-75 %", "images/s", "tokens/s", "memory", "TFLOP/s", "MFU")
    if "step_time_s" not in row:
        return shown | dict.fromkeys(names, "")
    cells = (
        f"{1e3 * row['step_time_s']:.4g}",
        f"{1e3 * row['step_time_25_s']:.4g}-{1e3 * row['step_time_75_s']:.4g}",
        f"{row['images_per_s']:.4g}",
        f"{row['tokens_per_s']:,.0f}",
        size_bytes(row["peak_memory_bytes"]),
        f"{row['flops_per_s'] / 1e12:.3g}",
        "" if row["mfu"] is None else percent(row["mfu"]),
    )
    return shown | dict(zip(names, cells, strict=True))


def _side(img_size: int | tuple[int, int]) -> str:
    return str(img_size) if isinstance(img_size, int) else "x".join(map(str, img_size))
