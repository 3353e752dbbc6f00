"""`patchscale bench`: speed and memory of models on this machine, and where the scan overtakes attention."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from patchscale.errors import UserError

if TYPE_CHECKING:
    from patchscale.measurements.crossover import Crossover, Trial
    from patchscale.measurements.step import StepConfig

Value = TypeVar("Value")
Tell = Callable[[str], None]

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
    FLOPs are 2 x MACs, training 3 x forward, recomputation not counted; MFU is against the device's stated bf16 peak.
    Ctrl-C prints what was measured.
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
    patch_sizes = _numbers("--patch-size", patch_size or ("1" if crossover else "16"))
    batch_sizes = _numbers("--batch-size", batch_size)
    setting = _setting(device, ssd_backend, num_threads, precision)
    timing = {"warm_up": warm_up, "repetitions": repetitions, "num_threads": num_threads}
    if crossover:
        first, second = _pair(names, patch_sizes, batch_sizes, common)
        limits = {"max_tokens": max_tokens or MAX_TOKENS, "time_limit_s": time_limit_s or SEARCH_TIME_S}
        setting |= timing | limits | {"num_threads": setting["num_threads"]}
        _crossover(first, second, setting, timing, limits, output=output, json=json)
    else:
        img_sizes = _listed("--img-size", img_size or "224", _size, "224,128x256")
        configs = _grid(names, patch_sizes, img_sizes, batch_sizes, common)
        setting |= timing | {"num_threads": setting["num_threads"]}
        _measure(configs, setting, {**timing, "time_limit_s": time_limit_s}, output=output, json=json)


def _measure(
    configs: list["StepConfig"], setting: dict[str, Any], options: dict[str, Any], *, output: Path | None, json: bool
) -> None:
    """Measure one after another; print rows, also after Ctrl-C."""
    from patchscale.cli.output import print_json, print_table
    from patchscale.files import write_json
    from patchscale.measurements.step import measure_step

    rows: list[dict[str, Any]] = []
    interrupted = False
    with _progress(len(configs)) as tell:
        for config in configs:
            tell(_label(config))
            try:
                rows.append(measure_step(config, **options))
            except KeyboardInterrupt:
                interrupted = True
                break
    found = {"setting": setting, "rows": rows}
    if json:
        print_json(found)
    elif rows:
        print_table([_readable(row) for row in rows])
    if output is not None:
        write_json(output, found)
    _say_conditions(setting, rows)
    for row in rows:
        if row["status"] != "ok":
            _say(f"{row['status']}: {row['model']} patch {row['patch_size']}: {row['message']}")
    if interrupted:
        _say(f"interrupted: {len(rows)} of {len(configs)} measured")
        raise typer.Exit(130)
    if any(row["status"] == "failed" for row in rows):
        raise typer.Exit(1)


def _crossover(
    first: "StepConfig",
    second: "StepConfig",
    setting: dict[str, Any],
    timing: dict[str, Any],
    limits: dict[str, Any],
    *,
    output: Path | None,
    json: bool,
) -> None:
    """Search, print the sizes tried and the answer in words."""
    from patchscale.cli.output import print_json, print_table
    from patchscale.files import write_json
    from patchscale.measurements.crossover import at_side, compare_models, find_crossover

    with _progress(None) as tell:

        def compare(side: int, seconds_left: float) -> "Trial":
            tell(f"{side * side:,} tokens")
            return compare_models(at_side(first, side), at_side(second, side), timeout_s=seconds_left, **timing)

        found: Crossover = find_crossover(compare, **limits)
    step = "training step" if first.train else "forward pass"
    answer = found.sentence(first.model, second.model, step)
    record = {"setting": setting, "models": [first.model, second.model], **found.record(), "answer": answer}
    if json:
        print_json(record)
    else:
        print_table(
            [
                {
                    "tokens": f"{trial.tokens:,}",
                    "img_size": trial.img_size,
                    f"{first.model}, ms": f"{1e3 * trial.first_s:.4g}",
                    f"{second.model}, ms": f"{1e3 * trial.second_s:.4g}",
                    "ratio": f"{trial.ratio:.2f}",
                    "25-75 %": f"{trial.ratio_25:.2f}-{trial.ratio_75:.2f}",
                }
                for trial in found.trials
            ]
        )
        print(answer)
    if output is not None:
        write_json(output, record)
    _say_conditions(setting, [])
    if found.interrupted:
        raise typer.Exit(130)
    if not found.trials:
        raise typer.Exit(1)


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


def _setting(device: str, ssd_backend: str, num_threads: int | None, precision: str) -> dict[str, Any]:
    """Where and how; refuses a device or scan that is not there."""
    from patchscale.measurements.environment import environment
    from patchscale.models.ssd.selection import resolve_backend
    from patchscale.training.device import resolve_device

    torch_device = resolve_device(device, option="--device ")
    resolve_backend(ssd_backend, torch_device)
    found = environment(torch_device) | {"precision": precision}
    return found if num_threads is None else found | {"num_threads": num_threads}


def _say_conditions(setting: dict[str, Any], rows: list[dict[str, Any]]) -> None:
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
    _say("; ".join(words))


def _label(config: "StepConfig") -> str:
    return f"{config.model} patch {config.patch_size} at {_side(config.img_size)} px, batch {config.batch_size}"


def _readable(row: dict[str, Any]) -> dict[str, str]:
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


def _numbers(option: str, text: str) -> list[int]:
    return _listed(option, text, _positive, "16,8,4")


def _listed(option: str, text: str, parse: Callable[[str], Value], example: str) -> list[Value]:
    """The values of a comma list, each once; raises `UserError` naming the bad one."""
    values: list[Value] = []
    for part in text.split(","):
        try:
            value = parse(part.strip())
        except ValueError:
            raise UserError(
                f"{option} {text!r}: {part.strip()!r} is not a positive whole number; give a list such as {example}"
            ) from None
        if value not in values:
            values.append(value)
    return values


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _size(text: str) -> int | tuple[int, int]:
    height, by, width = text.lower().partition("x")
    return (_positive(height), _positive(width)) if by else _positive(height)


def _one_of(option: str, given: str, allowed: tuple[str, ...]) -> str:
    if given not in allowed:
        raise UserError(f"{option} {given!r} is unknown; choose one of {', '.join(allowed)}")
    return given


def _say(text: str) -> None:
    import sys

    print(text, file=sys.stderr, flush=True)


@contextmanager
def _progress(total: int | None) -> Iterator[Tell]:
    """Call the result with what is being measured now: a bar (if a total is known) on a terminal, a line elsewhere."""
    import sys

    if not sys.stderr.isatty():
        done = 0

        def tell_line(what: str) -> None:
            nonlocal done
            done += 1
            _say(f"[{done}/{total}] {what}" if total else what)

        yield tell_line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    counted = (BarColumn(), MofNCompleteColumn()) if total else ()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), *counted, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("starting", total=total, completed=-1)

        def tell_bar(what: str) -> None:
            progress.update(bar, description=what, advance=1)

        yield tell_bar
