"""What is written about a run: where it ran (environment.json) and what came out (result.json)."""

import os
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from patchscale.config import RunConfig
from patchscale.head_shapes import default_head
from patchscale.models.adventurer import Adventurer
from patchscale.models.parameters import count_parameters
from patchscale.models.ssd.selection import resolve_backend
from patchscale.provenance import code_version, git_commit, versions
from patchscale.runs.record import RunDirectory
from patchscale.shapes import SHAPES, format_img_size
from patchscale.training.checkpoint import EMA_WEIGHTS, RAW_WEIGHTS, WEIGHTS
from patchscale.training.collective import on_every_rank
from patchscale.training.device import cpu_name, device_name, peak_memory_kind
from patchscale.training.distributed import ALONE, Ranks
from patchscale.training.memory import MemoryPlan
from patchscale.training.setup import Setup

CODE = code_version()
"""Of what was imported, whatever is edited while a process lives."""


def record_environment(
    run: RunDirectory,
    config: RunConfig,
    device: torch.device,
    first_step: int,
    memory: MemoryPlan,
    ranks: Ranks = ALONE,
) -> None:
    """Write environment.json: this attempt in full, earlier ones (before a resume) in short; collective."""
    earlier = run.read_json("environment.json") or {}
    attempt = {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "first_step": first_step,
        "device": device.type,
        "device_name": device_name(device),
        "num_threads": torch.get_num_threads(),
        "memory": asdict(memory),
        "code": CODE,
    }
    if ranks.size > 1:
        own = {"host": platform.node(), "device_name": device_name(device), "pid": os.getpid()}
        attempt["parallel"] = config.execution.parallel
        attempt["ranks"] = on_every_rank(lambda: own)
    run.write_json(
        "environment.json",
        {
            **attempt,
            "versions": versions(),
            "cuda": torch.version.cuda if device.type == "cuda" else None,
            "platform": platform.platform(),
            "cpu": cpu_name(),
            "git_commit": git_commit(),
            "seed": config.seed,
            "argv": sys.argv,
            "attempts": [*earlier.get("attempts", []), attempt],
        },
    )


def record_memory(run: RunDirectory, memory: MemoryPlan) -> None:
    """Put a changed plan into environment.json, so that a resume and `patchscale eval` go on with it."""
    environment = run.read_json("environment.json")
    assert environment is not None  # written when the attempt began
    environment["memory"] = environment["attempts"][-1]["memory"] = asdict(memory)
    run.write_json("environment.json", environment)


def threads_of_first_attempt(run: RunDirectory) -> int | None:
    """CPU threads with which the run began, or None if it has not: sums depend on them in their last bits."""
    attempts = (run.read_json("environment.json") or {}).get("attempts", [])
    return attempts[0]["num_threads"] if attempts else None


def memory_of_last_attempt(run: RunDirectory, device: torch.device) -> dict[str, Any] | None:
    """The plan with which the last attempt went on, or None if there is none on this kind of device."""
    attempts = (run.read_json("environment.json") or {}).get("attempts", [])
    return attempts[-1].get("memory") if attempts and attempts[-1]["device"] == device.type else None


def weights_metadata(config: RunConfig, name: str = WEIGHTS) -> dict[str, Any]:
    """What the header of the final weights `name` says: whose they are, and whether they are a moving average."""
    shape = SHAPES.get(config.model.name)
    is_adventurer = shape is not None and shape.architecture == "adventurer"
    return {
        "version": version("patchscale"),
        "run_id": config.run_id,
        "weights": {RAW_WEIGHTS: "raw", EMA_WEIGHTS: "ema"}.get(name, weights_kind(config)),
        "task": config.task,
        "head": config.head or default_head(config.task),
        "model": config.model.name,
        "patch_size": config.model.patch_size,
        "img_size": format_img_size(config.model.img_size),
        "pos_embed": config.model.pos_embed,
        **({"flip_schedule": config.model.flip_schedule} if is_adventurer else {}),
    }


def weights_kind(config: RunConfig) -> str:
    """Which weights are evaluated and saved: "ema" (the moving average) or "raw"."""
    return "raw" if config.training.ema_decay is None else config.training.eval_weights


def _ssd_backend(setup: Setup) -> str | None:
    """The implementation of the scan that ran; None for models without one."""
    backbone = setup.task.backbone
    return resolve_backend(backbone.ssd_backend, setup.device) if isinstance(backbone, Adventurer) else None


def result_row(setup: Setup, test: dict[str, Any]) -> dict[str, Any]:
    """The one flat row of a finished run.

    Losses are plain cross-entropy except `train_loss`, the mean training loss of the last tenth of the steps, with
    whatever augmentation, smoothing and mixing the config asks for. FLOPs are 2 x MACs; training counts three forward
    passes per image seen. `metric` and `test_*` are the test split, `val_*` the validation split after the last step.
    """
    config, splits, task, cost, totals = setup.config, setup.splits, setup.task, setup.cost, setup.state.totals
    model, training = config.model, config.training
    params = count_parameters(task.backbone)
    images_seen = totals.step * training.batch_size
    train_images = len(splits.train)
    return {
        "run_id": config.run_id,
        "status": "done",
        "task": config.task,
        "head": config.head or default_head(config.task),
        "dataset": config.data.name,
        "model": model.name,
        "architecture": task.backbone.architecture,
        "img_size": format_img_size(model.img_size),
        "patch_size": model.patch_size,
        "tokens": cost.tokens,
        "seed": config.seed,
        "params_total": sum(parameter.numel() for parameter in task.parameters()),
        "params_backbone": params["backbone"],
        "params_pos_embed": params["pos_embed"],
        "flops_forward_per_image": cost.flops_forward,
        "flops_train_total": cost.flops_train * images_seen,
        "epochs": images_seen / train_images,
        "steps": totals.step,
        "images_seen": images_seen,
        "train_images": train_images,
        "val_images": len(splits.val),
        "test_images": len(splits.test),
        "num_classes": splits.num_classes,
        "train_loss": totals.final_loss / totals.final_steps,
        "val_loss": totals.validation["loss"],
        "val_metric": totals.validation["metric"],
        "test_loss": test["loss"],
        "metric_name": task.metric_name,
        "metric": test["metric"],
        **{f"test_{name}": value for name, value in test.items() if name not in ("loss", "metric")},
        "wall_time_s": totals.wall_time_s,
        "train_time_s": totals.train_time_s,
        "learning_rate_factor": totals.learning_rate_factor,
        "train_images_per_s": images_seen / totals.train_time_s,
        "peak_memory_bytes": totals.peak_memory_bytes,
        "peak_memory_kind": peak_memory_kind(setup.device),
        "device": setup.device.type,
        "device_name": device_name(setup.device),
        "precision": training.precision,
        "world_size": setup.ranks.size,
        "parallel": config.execution.parallel if setup.ranks.size > 1 else None,
        "ssd_backend": _ssd_backend(setup),
        "pos_embed": model.pos_embed,
        "weights": weights_kind(config),
        "recipe": config.recipe,
        "settings": config.settings,
        "eval_protocol": task.eval_protocol,
        "versions": versions(),
    }
