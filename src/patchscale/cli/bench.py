"""`patchscale bench`: speed and memory of models on this machine, and where the scan overtakes attention."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchscale.cli.bench_crossover import search_crossover
from patchscale.cli.bench_rows import measure_rows
from patchscale.cli.lists import listed_img_sizes, listed_numbers
from patchscale.errors import UserError
from patchscale.shapes import SHAPES, AdventurerShape

if TYPE_CHECKING:
    from patchscale.measurements.step import StepConfig

DEFAULT_PAIR = ("vit_tiny", "adventurer_tiny")
SEARCH_TIME_S = 600.0
MAX_TOKENS = 50_176


def bench(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Names such as vit_tiny adventurer_tiny.")
    ] = None,
    patch_size: Annotated[
        str | None, typer.Option(help="Pixels, separated by commas: 16,8,4. Default: 16; 1 with --crossover.")
    ] = None,
    img_size: Annotated[
        str | None, typer.Option(help="Pixels, separated by commas: 224, or 224,128x256. Default: 224.")
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Images of a step, separated by commas: 1,8.")] = "1",
    train: Annotated[
        bool, typer.Option("--train/--infer", help="Whole training steps, or forward passes alone.")
    ] = True,
    precision: Annotated[str, typer.Option(help="fp32, or bf16 (autocast).")] = "fp32",
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")] = "auto",
    ssd_backend: Annotated[str, typer.Option(help="Implementation of the state-space scan.")] = "auto",
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute blocks again in the backward pass, to save memory.")
    ] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Run the models through torch.compile.")] = False,
    warm_up: Annotated[int, typer.Option(min=0, help="Steps before the timed ones.")] = 2,
    repetitions: Annotated[int, typer.Option(min=1, help="Timed steps.")] = 10,
    num_threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: torch's own choice.")] = None,
    crossover: Annotated[
        bool, typer.Option("--crossover", help="Search for the tokens from which on the second model is faster.")
    ] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=16, help="With --crossover: no more tokens than these. Default: 50176.")
    ] = None,
    time_limit_s: Annotated[
        float | None,
        typer.Option(
            min=1, help="No step begins after half of these seconds; with --crossover the whole search (600)."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Also write everything to this JSON file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON, in plain units.")] = False,
) -> None:
    """Measure throughput, step time and peak memory of every combination, each in a process of its own.

    A training step is forward, cross-entropy, backward and AdamW on random images. Times are medians with quartiles.
    FLOPs are 2 x MACs; training is forward and backward, recomputation not counted; MFU is against the device's stated
    bf16 peak. Ctrl-C prints what was measured.
    """
    from patchscale.requirements import require_training_half

    require_training_half()
    if output is not None and output.is_dir():
        raise UserError(f"--output {output}: that is a folder; give a file, such as bench.json")
    if output is not None and not os.access(output.parent, os.W_OK):
        raise UserError(f"--output {output}: folder {output.parent} is not there, or may not be written to")
    if max_tokens is not None and not crossover:
        raise UserError("--max-tokens ends a search: give --crossover with it")
    if crossover and img_size is not None:
        raise UserError("--crossover chooses the image sizes itself: leave out --img-size, or give --patch-size")
    names = list(models or (DEFAULT_PAIR if crossover else ()))
    if not names:
        raise UserError(f"name at least one model, such as `patchscale bench {' '.join(DEFAULT_PAIR)}`")
    common = {
        "train": train,
        "precision": _one_of("--precision", precision, ("fp32", "bf16")),
        "device": device,
        "ssd_backend": ssd_backend,
        "checkpointing": checkpointing,
        "compile": compile,
    }
    patch_sizes = listed_numbers("--patch-size", patch_size or ("1" if crossover else "16"))
    batch_sizes = listed_numbers("--batch-size", batch_size)
    timing = {"warm_up": warm_up, "repetitions": repetitions, "num_threads": num_threads}
    if crossover:
        first, second = _pair(names, patch_sizes, batch_sizes, common)
        limits = {"max_tokens": max_tokens or MAX_TOKENS, "time_limit_s": time_limit_s or SEARCH_TIME_S}
        setting = _setting([first, second], timing) | limits
        search_crossover(first, second, setting, timing, limits, output=output, json=json)
    else:
        img_sizes = listed_img_sizes("--img-size", img_size or "224")
        configs = _grid(names, patch_sizes, img_sizes, batch_sizes, common)
        options = {**timing, "time_limit_s": time_limit_s}
        measure_rows(configs, _setting(configs, timing), options, output=output, json=json)


def _pair(
    names: list[str], patch_sizes: list[int], batch_sizes: list[int], common: dict[str, Any]
) -> tuple["StepConfig", "StepConfig"]:
    from patchscale.measurements.crossover import FIRST_SIDE, at_side
    from patchscale.measurements.step import StepConfig

    if len(names) != 2:
        raise UserError(f"--crossover compares two models, {len(names)} given: {', '.join(names)}")
    for option, values in (("--patch-size", patch_sizes), ("--batch-size", batch_sizes)):
        if len(values) != 1:
            raise UserError(f"{option} with --crossover is one number, got {','.join(map(str, values))}")
    first, second = (
        StepConfig(model=name, patch_size=patch_sizes[0], batch_size=batch_sizes[0], **common) for name in names
    )
    for config in (first, second):
        at_side(config, FIRST_SIDE).cost()  # refuses an unknown name before anything is timed
    return first, second


def _grid(
    names: list[str],
    patch_sizes: list[int],
    img_sizes: list[int | tuple[int, int]],
    batch_sizes: list[int],
    common: dict[str, Any],
) -> list["StepConfig"]:
    from patchscale.measurements.step import StepConfig

    configs = [
        StepConfig(model=name, patch_size=patch, img_size=size, batch_size=batch, **common)
        for name in names
        for size in img_sizes
        for patch in patch_sizes
        for batch in batch_sizes
    ]
    for config in configs:
        config.cost()  # refuses unknown names and sizes that do not fit before anything is timed
    return configs


def _setting(configs: Sequence["StepConfig"], timing: dict[str, Any]) -> dict[str, Any]:
    """Where and how; refuses a device that is not there, and a scan that cannot run there if a model has one."""
    from patchscale.measurements.environment import environment
    from patchscale.models.ssd.selection import check_backend_name, resolve_backend
    from patchscale.training.device import resolve_device

    device = resolve_device(configs[0].device, option="--device ")
    check_backend_name(configs[0].ssd_backend, option="--ssd-backend ")
    if any(isinstance(SHAPES.get(config.model), AdventurerShape) for config in configs):
        resolve_backend(configs[0].ssd_backend, device, option="--ssd-backend ")
    here = environment(device)
    num_threads = timing["num_threads"] or here["num_threads"]
    return here | {"precision": configs[0].precision} | timing | {"num_threads": num_threads}


def _one_of(option: str, given: str, allowed: tuple[str, ...]) -> str:
    if given not in allowed:
        raise UserError(f"{option} {given!r} is unknown; choose one of {', '.join(allowed)}")
    return given
