"""`patchscale runs`: the table of runs, or one run in full."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchscale.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

TELLING = ("study", "model", "head", "img_size", "patch_size", "tokens", "seed", "stage")
"""Columns that mostly tell runs apart; where they do not, the table begins with the run's id."""
SHOWN = (
    "study",
    "model",
    "head",
    "img_size",
    "patch_size",
    "tokens",
    "seed",
    "status",
    "metric",
    "test_loss",
    "params_total",
    "flops_train_total",
    "wall_time_s",
)
"""Columns of the table when none are asked for; `head` only where one is more than linear."""


OF_THE_TABLE = ("--where", "--status", "--columns", "--sort", "--csv", "--json")
HEARD = {
    "--watch": ("--every", "--device", "--early-fit", "--json"),
    "--verify": ("--where", "--status", "--json"),
    "--archive": ("--where", "--status"),
    "--delete-failed": ("--where", "--status", "--yes"),
    "--show": ("--json",),
}
"""Options that have a say in the table of runs, and in what else can be asked for."""


def runs(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="Folder with runs at any depth.")] = Path("runs"),
    where: Annotated[
        list[str] | None, typer.Option(help="Only rows with column=value (or column!=value); may be repeated.")
    ] = None,
    status: Annotated[str | None, typer.Option(help="Only rows with this status, such as done or failed.")] = None,
    columns: Annotated[str | None, typer.Option(help="Columns to print, separated by commas.")] = None,
    sort: Annotated[str | None, typer.Option(help="Sort by this column; -column for descending.")] = None,
    show: Annotated[str | None, typer.Option(metavar="RUN_ID", help="Everything about one run.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print all columns as CSV, in plain units.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print all columns as JSON, in plain units.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show how they get on, until all have ended or Ctrl-C is pressed.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="With --watch: seconds between looks.")] = 5.0,
    device: Annotated[
        str | None, typer.Option(help="With --watch: predict hours on this device, not from the runs so far.")
    ] = None,
    early_fit: Annotated[
        bool, typer.Option("--early-fit", help="With --watch: fit the law again as runs finish, at most once a minute.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the files of finished runs with their checksums.")
    ] = False,
    archive: Annotated[
        Path | None, typer.Option(metavar="FILE.tar.gz", help="Write these runs into a file, and read it back.")
    ] = None,
    delete_failed: Annotated[
        bool, typer.Option("--delete-failed", help="Remove the directories of those that failed; asks for --yes.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them.")] = False,
) -> None:
    """List runs, finished or not, with their results; watch, verify, archive or delete them.

    FLOPs are 2 x MACs, training forward and backward; the metric is the test split's, a fraction in CSV and JSON.
    """
    import sys

    from patchscale.cli.ignored import refuse_ignored, typed
    from patchscale.cli.output import print_json, print_table
    from patchscale.runs.record import STATES
    from patchscale.runs.store import UNREADABLE, load_runs

    if csv and json:
        raise UserError("--csv and --json: give one of them")
    asked = [name for name, given in typed(context, *HEARD).items() if given]
    if len(asked) > 1:
        raise UserError("give one of --watch, --verify, --archive, --delete-failed and --show")
    heard = HEARD[asked[0]] if asked else OF_THE_TABLE
    others = sorted({*OF_THE_TABLE, *(name for names in HEARD.values() for name in names)} - {*heard})
    refuse_ignored(f"of no effect {'with ' + asked[0] if asked else 'on the table'}", typed(context, *others))
    if watch:
        from patchscale.cli.runs_watch import watch_runs

        watch_runs(path, every_s=every, device=device, early_fit=early_fit, json=json)
        return
    table = load_runs(path)
    if show is not None:
        _show(table, show, json=json)
        return
    if status is not None and status not in (known := (*STATES, "blocked", UNREADABLE)):
        raise UserError(f"--status {status}: no such state; choose from {', '.join(known)}")
    conditions = [*(where or []), *([f"status={status}"] if status else [])]
    for condition in conditions:
        table = _keep(table, condition)
    if verify or archive is not None or delete_failed:
        from patchscale.cli.runs_care import archive_runs, delete_failed_runs, verify_runs

        if verify:
            verify_runs(table, json=json)
        elif archive is not None:
            archive_runs(table, archive)
        else:
            delete_failed_runs(table, really=yes)
        return
    if sort is not None:
        table = _sorted(table, sort)
    names = _columns(table, columns) if columns else None
    records = as_records(table)
    if json:
        print_json([{name: row[name] for name in names or row} for row in records])
    elif csv:
        _print_csv(records, names or list(table.columns))
    else:
        # A column that is the same for all, such as the only study, is kept: it answers "which?".
        if not names:
            headed = any(row["head"] not in (None, "linear") for row in records)
            names = [name for name in SHOWN if name != "head" or headed]
            if table.duplicated([name for name in names if name in TELLING]).any():
                names = ["run_id", *names]
        print_table([_readable(row, names) for row in records], columns=names)
        if not records:
            print(f"no runs in {path}{' with ' + ', '.join(conditions) if conditions else ''}", file=sys.stderr)
    for row in records:
        if row["status"] == UNREADABLE:
            print(f"unreadable: {row['message']}", file=sys.stderr)


def _keep(table: "pd.DataFrame", condition: str) -> "pd.DataFrame":
    name, equals, wanted = condition.partition("=")
    unequal = name.endswith("!")
    name = name.removesuffix("!").strip()
    if not equals or not name:
        raise UserError(f"--where {condition!r} is not of the form column=value, such as --where model=vit_nano")
    column = table[_known(table, name)]
    try:
        number = float(wanted)
    except ValueError:
        number = None
    same = column.map(lambda cell: _equal(cell, wanted, number)).astype(bool)
    return table[~same if unequal else same]


def _equal(cell: Any, wanted: str, number: float | None) -> bool:
    if number is not None and isinstance(cell, int | float):
        return cell == number
    return str(cell) == wanted


def _sorted(table: "pd.DataFrame", sort: str) -> "pd.DataFrame":
    name = _known(table, sort.removeprefix("-"))
    ascending = not sort.startswith("-")
    try:
        return table.sort_values(name, ascending=ascending, kind="stable")
    except TypeError:  # 32 and "32x48" in one column
        return table.sort_values(name, ascending=ascending, kind="stable", key=lambda column: column.map(str))


def _columns(table: "pd.DataFrame", columns: str) -> list[str]:
    return [_known(table, name.strip()) for name in columns.split(",") if name.strip()]


def _known(table: "pd.DataFrame", name: str) -> str:
    """`name` if the table has it; else `UserError` with what is meant, perhaps."""
    from difflib import get_close_matches

    if name in table.columns:
        return name
    close = get_close_matches(name, list(table.columns), n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    raise UserError(f"column {name!r}: no such column; {meant}columns: {', '.join(table.columns)}")


def as_records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Rows of plain values: None where nothing is known, whole numbers without a fraction."""
    from patchscale.reports.words import missing

    records: list[dict[str, Any]] = [{} for _ in range(len(table))]
    for name in table.columns:
        cells = [None if missing(cell) else cell for cell in table[name].tolist()]
        # Gaps turn a column of integers into floats.
        whole = all(float(cell).is_integer() for cell in cells if isinstance(cell, float))
        for record, cell in zip(records, cells, strict=True):
            record[str(name)] = int(cell) if whole and isinstance(cell, float) else cell
    return records


def _print_csv(records: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    import csv
    import json
    import sys

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    for row in records:
        cells = [row[name] for name in names]
        writer.writerow([json.dumps(cell) if isinstance(cell, dict | list) else cell for cell in cells])


def _readable(row: dict[str, Any], names: Sequence[str]) -> dict[str, str]:
    return {name: readable(name, row.get(name), row) for name in names}


def readable(name: str, value: Any, row: dict[str, Any]) -> str:
    """A cell of the table of runs as people want it, with its unit."""
    from patchscale.reports import words

    if value is None:
        return ""
    if name == "status" and row.get("failure_kind"):
        return f"{value} ({row['failure_kind']})"
    if name == "status" and value in ("running", "interrupted"):
        return f"{value} {words.percent(row.get('progress'), 0)}"
    if name in ("metric", "val_metric"):
        return f"{words.percent(value)} {row.get('metric_name') or ''}".strip()
    if name == "progress":
        return words.percent(value, 0)
    if name.endswith("_bytes"):
        return words.size_bytes(value)
    if name.endswith("_time_s"):
        return words.duration(value)
    if name.startswith("params_"):
        return words.integer(value)
    if name.startswith("flops_"):
        return words.scientific(value)
    return words.plain(value)


def _show(table: "pd.DataFrame", run_id: str, *, json: bool) -> None:
    """One run: its row, its settings, where it is."""
    from patchscale.cli.output import print_json, print_table
    from patchscale.runs.record import RunDirectory

    found = table[table["run_id"] == run_id]
    if found.empty:
        found = table[[run_id in name for name in table["run_id"]]]
    if len(found) != 1:
        some = ", ".join((found if len(found) else table)["run_id"].head(10))
        what = f"{len(found)} runs match" if len(found) else "no such run"
        raise UserError(f"--show {run_id}: {what}; " + (f"runs here: {some}" if some else "there are no runs here"))
    row = as_records(found)[0]
    try:
        config = RunDirectory(Path(row["path"])).config().to_dict()
    except UserError:
        config = None  # the row says what is wrong
    if json:
        print_json({**row, "config": config})
        return
    known = [(name, readable(name, value, row)) for name, value in row.items() if value is not None]
    known += [(f"config.{name}", str(value)) for name, value in _flat(config or {})]
    print_table([{"field": name, "value": value} for name, value in known])


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return pairs
