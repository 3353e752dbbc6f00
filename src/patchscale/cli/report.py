"""`patchscale report`: one HTML page with the answer, the curves, the law and the runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from patchscale.reports.curves import TargetName


def report(
    source: Annotated[
        str, typer.Argument(help="A folder of runs, `published:NAME`, or a CSV file with a row per run.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="File to write. Default: report.html in the folder; report-NAME.html here for a table."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="What the law describes: loss (`test_loss`) or error (1 - `metric`). Default: loss if known."
        ),
    ] = None,
    where: Annotated[list[str] | None, typer.Option(help="Keep rows with `column=value`; may be repeated.")] = None,
    by: Annotated[
        str,
        typer.Option(
            help="Columns, comma-separated, that tell curves apart; default: those that vary, to which `+column` adds "
            "one."
        ),
    ] = "",
    mix_protocols: Annotated[
        bool,
        typer.Option(
            "--mix-protocols",
            help="Draw runs as one curve that were measured differently, or trained longer or with other settings; a "
            "notice says so.",
        ),
    ] = False,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write every figure there, as PNG, SVG and CSV.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the files written as JSON.")] = False,
) -> None:
    """Write a report that opens offline: the answer in words, curves with their laws, every run, where it came from.

    Curves that cannot be fitted are drawn all the same, and the report says why. Prints the path of the page.
    """
    import sys

    from patchscale.cli.advice import BY, in_options
    from patchscale.cli.output import print_json
    from patchscale.cli.source import load_table, select_rows
    from patchscale.laws.fit import fit_curves
    from patchscale.reports.figures import report_charts
    from patchscale.reports.html import write_report

    table = select_rows(load_table(source), where or [])
    chosen = _target(table, target, source)
    page = output or _default_page(source)
    _refuse_unwritable(page, export)
    apart: dict[str, Any] = {"by": [name.strip() for name in by.split(",") if name.strip()] or None}
    apart["mix_protocols"] = mix_protocols
    with in_options(BY):
        fits = fit_curves(table, target=chosen, **apart)
    for refused in fits.refused:
        print(f"not fitted: {refused.reason}", file=sys.stderr)
    if not fits and not fits.refused:
        print(f"not fitted: {fits.why_empty()}", file=sys.stderr)
    options = {"--output": output, "--target": target, "--by": by or None, "--title": title, "--export": export}
    command = _command(source, options, where or [], mix_protocols=mix_protocols)
    with in_options(BY):
        write_report(
            table,
            fits,
            page,
            title=title or _default_title(source, table),
            provenance={"source": source, "command": command},
            target=chosen,
            **apart,
        )
    figures = []
    if export is not None:
        for chart in report_charts(table, fits, target=chosen, **apart):
            figures += [chart.save(export / f"{chart.name}{suffix}") for suffix in (".png", ".svg", ".csv")]
        print(f"{len(figures)} files of figures in {export}", file=sys.stderr)
    if json:
        print_json({"report": str(page), "laws": len(fits), "figures": [str(path) for path in figures]})
    else:
        print(page)


def _target(table: "pd.DataFrame", asked: str | None, source: str) -> "TargetName":
    """The quantity to report on; raises `UserError` if the table cannot show it against the patch size."""
    from patchscale.errors import UserError
    from patchscale.laws.table import target_named
    from patchscale.reports.figures import main_target

    if "patch_size" not in table.columns or not {"test_loss", "metric"} & set(table.columns):
        raise UserError(
            f"{source}: no curve to report on; a table needs the columns patch_size and test_loss or metric "
            f"(columns: {', '.join(map(str, table.columns))})"
        )
    if asked is None:
        return main_target(table)
    goal = target_named(asked)
    if goal.column not in table.columns:
        other = "error" if asked == "loss" else "loss"
        raise UserError(f"{source}: --target {asked} needs the column {goal.column}; use --target {other}")
    return "error" if goal.is_error else "loss"


def _default_page(source: str) -> Path:
    if source.startswith("published:"):
        return Path(f"report-{source.removeprefix('published:').replace('/', '-')}.html")
    path = Path(source)
    return path / "report.html" if path.is_dir() else Path(f"report-{path.stem}.html")


def _default_title(source: str, table: "pd.DataFrame") -> str:
    if source.startswith("published:"):
        from patchscale.published_tables.tables import entry

        return entry(source.removeprefix("published:")).description
    studies = sorted(table["study"].dropna().unique()) if "study" in table else []
    name = studies[0] if len(studies) == 1 else Path(source).resolve().name
    return f"Patch size and quality in {name}"


def _refuse_unwritable(page: Path, export: Path | None) -> None:
    """Before anything is computed: `UserError` for a page that is a folder, or a folder that is a file."""
    from patchscale.errors import UserError

    if page.is_dir():
        raise UserError(f"--output {page}: this is a folder; give the name of a file, such as {page / 'report.html'}")
    for folder in [page.parent, *([export] if export is not None else [])]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be used as a folder ({error.strerror}); choose another place") from None


def _command(source: str, options: dict[str, Any], where: list[str], *, mix_protocols: bool) -> str:
    """The command line that repeats this report."""
    import shlex

    words = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    words += [word for condition in where for word in ("--where", condition)]
    words += ["--mix-protocols"] if mix_protocols else []
    return shlex.join(["patchscale", "report", source, *words])
