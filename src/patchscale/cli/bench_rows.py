"""The rows of `patchscale bench`: one configuration after another, each kept as soon as it is measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from patchscale.cli.bench_output import label, readable, say_conditions
from patchscale.cli.measuring import progress, say
from patchscale.cli.output import print_json, print_table
from patchscale.files import write_json

if TYPE_CHECKING:
    from patchscale.measurements.step import StepConfig


def measure_rows(
    configs: Sequence["StepConfig"],
    setting: dict[str, Any],
    options: dict[str, Any],
    *,
    output: Path | None,
    json: bool,
) -> None:
    """Measure, and print what was measured, also after Ctrl-C; `output` holds every row from the moment it exists."""
    from patchscale.measurements.step import measure_step

    rows: list[dict[str, Any]] = []
    found = {"setting": setting, "rows": rows}

    def keep() -> None:
        if output is not None and rows:
            write_json(output, found)

    interrupted = False
    try:
        with progress(len(configs)) as tell:
            for config in configs:
                tell(label(config))
                rows.append(measure_step(config, **options))
                keep()
    except KeyboardInterrupt:
        interrupted = True
        keep()  # it may have come before the last row was written
    if json:
        print_json(found)
    elif rows:
        print_table([readable(row) for row in rows])
    say_conditions(setting, rows)
    for row in rows:
        if row["status"] != "ok":
            say(f"{row['status']}: {row['model']} patch {row['patch_size']}: {row['message']}")
    if interrupted:
        where = f"; kept in {output}" if output is not None and rows else ""
        say(f"interrupted: {len(rows)} of {len(configs)} measured{where}")
        raise typer.Exit(130)
    if any(row["status"] == "failed" for row in rows):
        raise typer.Exit(1)
