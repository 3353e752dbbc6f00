"""Calibration: a few short steps measured on this device, and the speeds that explain them.

What is measured has to tell the terms of `patchscale.costs.roofline` apart, and be long enough to be typical of the
device: a step with few tokens (layers, parameters), a wide one (linear layers), a narrow one (numbers moved), a long
one of each architecture (attention, scan). On a CPU every step is measured twice, in fresh processes and some time
apart, and the faster median counts: what else the machine does only ever makes a step slower.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import torch

from patchscale.costs.counts import count
from patchscale.costs.profile import DeviceProfile, profile_name
from patchscale.costs.roofline import Speeds, fit_speeds, step_work
from patchscale.errors import RunFailed, UserError
from patchscale.measurements.child import in_fresh_process
from patchscale.measurements.step import StepConfig, measure_step
from patchscale.training.device import Precision, device_name, peak_memory_bytes, resolve_device


class Step(NamedTuple):
    """One step to measure."""

    model: str
    img_size: int
    patch_size: int
    batch_size: int


CPU_TRAIN = (
    Step("vit_tiny", 224, 16, 1),
    Step("vit_nano", 64, 4, 4),
    Step("vit_small", 224, 16, 4),
    Step("vit_tiny", 96, 2, 1),
    Step("adventurer_nano", 64, 4, 4),
    Step("adventurer_small", 224, 16, 1),
)
CPU_INFER = (
    Step("vit_tiny", 224, 16, 1),
    Step("vit_nano", 64, 4, 8),
    Step("vit_small", 224, 16, 4),
    Step("vit_tiny", 96, 2, 1),
    Step("adventurer_nano", 64, 4, 8),
    Step("adventurer_small", 224, 16, 2),
)
GPU_TRAIN = (
    Step("vit_tiny", 64, 16, 8),
    Step("vit_tiny", 224, 8, 32),
    Step("vit_base", 224, 16, 64),
    Step("vit_small", 224, 2, 1),
    Step("adventurer_tiny", 224, 4, 8),
    Step("adventurer_base", 224, 8, 8),
)
GPU_INFER = (
    Step("vit_tiny", 64, 16, 8),
    Step("vit_tiny", 224, 8, 64),
    Step("vit_base", 224, 16, 128),
    Step("vit_small", 224, 2, 2),
    Step("adventurer_tiny", 224, 4, 16),
    Step("adventurer_base", 224, 8, 16),
)
SMALLEST = (Step("vit_test", 16, 8, 1), Step("vit_test", 32, 4, 2), Step("adventurer_test", 32, 4, 1))
"""Says nothing about a device; tests calibrate with it in seconds."""

ROUNDS = {"cpu": 2}
"""Fresh processes for each step; 1 on other devices, where starting them takes longest and little else is going on."""
REPETITIONS = 3
STEP_LIMIT_S = 120.0
"""For one step with its repetitions; a device that needs longer is not calibrated with these."""


def calibrate(
    device: str = "auto",
    *,
    precision: Precision | None = None,
    num_threads: int | None = None,
    name: str | None = None,
    progress: Callable[[str], None] | None = None,
    train_steps: Sequence[Step] | None = None,
    infer_steps: Sequence[Step] | None = None,
) -> DeviceProfile:
    """Measure steps on `device` (auto, cuda, mps, cpu) and fit its profile, which is not saved yet.

    `precision` is bf16 on CUDA and fp32 elsewhere if not given, `num_threads` what torch would use, `name` made of
    all of them. `progress` is called with what is being measured. Steps that do not fit into memory are left out.
    Raises `UserError` for a device that is not here, `RunFailed` if too few steps could be measured.
    """
    torch_device = resolve_device(device, option="--device ")
    kind = torch_device.type
    precision = precision or ("bf16" if kind == "cuda" else "fp32")
    if precision not in ("fp32", "bf16"):
        raise UserError(f"--precision {precision!r} is unknown; choose fp32 or bf16")
    if num_threads is not None and num_threads < 1:
        raise UserError(f"--threads {num_threads}: give at least 1")
    tell = progress or (lambda what: None)
    tell("memory of a process")
    offset_bytes, threads = in_fresh_process(_process_offset, kind, num_threads, timeout_s=STEP_LIMIT_S)
    defaults = (CPU_TRAIN, CPU_INFER) if kind == "cpu" else (GPU_TRAIN, GPU_INFER)
    steps = [(step, True) for step in (defaults[0] if train_steps is None else train_steps)]
    steps += [(step, False) for step in (defaults[1] if infer_steps is None else infer_steps)]
    rows = fastest(
        [
            StepConfig(**step._asdict(), train=train, precision=precision, device=kind, checkpointing=False)
            for step, train in steps
        ],
        num_threads=threads,
        rounds=ROUNDS.get(kind, 1),
        progress=tell,
    )
    measured = [row for row in rows if row["status"] == "ok"]
    speeds = {}
    for train in (True, False):
        of_kind = [row for row in measured if row["train"] == train]
        if len(of_kind) < 3:
            failed = next((row["message"] for row in rows if row["status"] != "ok"), "fewer than 3 were given")
            kind_of_step = "training" if train else "inference"
            raise RunFailed("error", f"too few {kind_of_step} steps could be measured on {kind}: {failed}")
        speeds[train] = _speeds(of_kind, kind)
    found_name = device_name(torch_device)
    return DeviceProfile(
        name=name or profile_name(found_name, precision=precision, num_threads=threads if kind == "cpu" else None),
        device=kind,
        device_name=found_name,
        num_threads=threads,
        precision=precision,
        torch_version=str(torch.__version__),
        date=datetime.now(UTC).date().isoformat(),
        memory_offset_bytes=offset_bytes,
        measurements=tuple({column: row[column] for column in COLUMNS} for row in measured),
        train=speeds[True],
        infer=speeds[False],
    )


COLUMNS = (
    "model",
    "img_size",
    "patch_size",
    "batch_size",
    "train",
    "checkpointing",
    "step_time_s",
    "ssd_backend",
    "repeats",
)


def fastest(
    configs: Sequence[StepConfig],
    *,
    num_threads: int | None,
    rounds: int,
    repetitions: int = REPETITIONS,
    progress: Callable[[str], None] = lambda what: None,
    measure: Callable[..., dict[str, Any]] = measure_step,
) -> list[dict[str, Any]]:
    """Each configuration measured once a round, and of its rows that with the smallest median; failures as rows.

    `repeats` of a row is the largest median of its rounds over the smallest: well above 1 on a machine that is busy.
    """
    best: list[dict[str, Any]] = []
    medians: list[list[float]] = [[] for _ in configs]
    for turn in range(rounds):
        for index, config in enumerate(configs):
            kind = "training" if config.train else "inference"
            what = f"{kind} of {config.model}, patch {config.patch_size} at {config.img_size} px"
            progress(f"{what} ({turn + 1}/{rounds})")
            if turn and best[index]["status"] != "ok":
                continue
            row = measure(
                config,
                warm_up=1 if config.device == "cpu" else 2,
                repetitions=repetitions if config.device == "cpu" else 3 * repetitions,
                time_limit_s=STEP_LIMIT_S,
                num_threads=num_threads,
            )
            medians[index] += [row["step_time_s"]] if row["status"] == "ok" else []
            if not turn:
                best.append(row)
            elif row["status"] == "ok" and row["step_time_s"] < best[index]["step_time_s"]:
                best[index] = row
    return [
        row | ({"repeats": max(times) / min(times)} if times else {}) for row, times in zip(best, medians, strict=True)
    ]


def row_work(row: dict[str, Any]) -> dict[str, float]:
    """What the step of a row of `measure_step` does, term by term."""
    counts = count(row["model"], patch_size=row["patch_size"], img_size=row["img_size"])
    return step_work(
        counts,
        train=row["train"],
        batch_size=row["batch_size"],
        activation_checkpointing=row["checkpointing"],
    )


def _speeds(rows: Sequence[dict[str, Any]], kind: str) -> Speeds:
    return fit_speeds([row_work(row) for row in rows], [row["step_time_s"] for row in rows], device=kind)


def _process_offset(kind: str, num_threads: int | None) -> tuple[int, int]:
    """(bytes beside the tensors, CPU threads) of a process that has done the smallest training step."""
    from patchscale.measurements.step import build_step

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    device = torch.device(kind)
    config = StepConfig(model="vit_test", patch_size=8, img_size=16, device=kind)
    _, step = build_step(config, device)
    step()
    if kind == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free - torch.cuda.memory_reserved(device), torch.get_num_threads()
    return peak_memory_bytes(device), torch.get_num_threads()
