"""`patchscale published`: the tables that ship with the package."""

from typing import Annotated

import typer


def published(
    name: Annotated[str, typer.Argument(help="A table; leave it out to list them.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print as CSV.")] = False,
) -> None:
    """List published measurements, or print one table; every row names its source."""
    import sys

    from patchscale.cli.output import print_json, print_table
    from patchscale.errors import UserError
    from patchscale.published_tables.tables import entry, list_published
    from patchscale.published_tables.tables import published as load

    if json and csv:
        raise UserError("--json and --csv exclude each other; give one")
    table = load(name) if name else list_published()
    if csv:
        table.to_csv(sys.stdout, index=False)
        return
    # an empty cell of any type becomes None
    cells = table.astype(object).where(table.notna(), None)
    rows = [dict(zip(table.columns, line, strict=True)) for line in cells.itertuples(index=False)]
    if json:
        print_json(rows)
        return
    print_table(rows, columns=list(table.columns), title=name or None)
    if name:
        about = entry(name)
        print(f"source: {about.source}", file=sys.stderr)
        for confound in about.confounds:
            print(f"note: {confound}", file=sys.stderr)
