"""The search of `patchscale bench --crossover`: sizes tried, and the answer in words."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from patchscale.cli.bench_output import say_conditions
from patchscale.cli.measuring import progress, say
from patchscale.cli.output import print_json, print_table
from patchscale.files import write_json

if TYPE_CHECKING:
    from patchscale.measurements.crossover import Crossover, Trial
    from patchscale.measurements.step import StepConfig


def search_crossover(
    first: "StepConfig",
    second: "StepConfig",
    setting: dict[str, Any],
    timing: dict[str, Any],
    limits: dict[str, Any],
    *,
    output: Path | None,
    json: bool,
) -> None:
    """Search, and print what was found, also after Ctrl-C; `output` holds every size from the moment it is measured."""
    from patchscale.measurements.crossover import at_side, compare_models, find_crossover

    step = "training step" if first.train else "forward pass"

    def record(found: "Crossover") -> dict[str, Any]:
        answer = found.sentence(first.model, second.model, step)
        return {"setting": setting, "models": [first.model, second.model], **found.record(), "answer": answer}

    def keep(found: "Crossover") -> None:
        if output is not None and found.trials:
            write_json(output, record(found))

    with progress(None) as tell:

        def compare(side: int, seconds_left: float) -> "Trial":
            tell(f"{side * side:,} tokens")
            return compare_models(at_side(first, side), at_side(second, side), timeout_s=seconds_left, **timing)

        found = find_crossover(compare, **limits, keep=keep)
    keep(found)
    if json:
        print_json(record(found))
    else:
        print_table([_readable(trial, first.model, second.model) for trial in found.trials])
        print(found.sentence(first.model, second.model, step))
    say_conditions(setting, [])
    if found.interrupted:
        where = f"; kept in {output}" if output is not None and found.trials else ""
        say(f"interrupted: {len(found.trials)} sizes measured{where}")
        raise typer.Exit(130)
    if found.failed:
        say(f"failed: {found.stopped_by}")
    if found.failed or not found.trials:
        raise typer.Exit(1)


def _readable(trial: "Trial", first: str, second: str) -> dict[str, Any]:
    return {
        "tokens": f"{trial.tokens:,}",
        "img_size": trial.img_size,
        f"{first}, ms": f"{1e3 * trial.first_s:.4g}",
        f"{second}, ms": f"{1e3 * trial.second_s:.4g}",
        "ratio": f"{trial.ratio:.2f}",
        "25-75 %": f"{trial.ratio_25:.2f}-{trial.ratio_75:.2f}",
    }
