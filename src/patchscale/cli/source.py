"""Where verbs take their rows from: a folder of runs, a published table, or a CSV file; and which of them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def load_table(source: str) -> "pd.DataFrame":
    """The rows that `source` names; raises `UserError` if there are none."""
    from pathlib import Path

    import pandas as pd

    from patchscale.errors import UserError

    if source.startswith("published:"):
        from patchscale.published_tables.tables import published

        return published(source.removeprefix("published:"))
    path = Path(source)
    if path.is_dir():
        from patchscale.runs.store import load_runs

        runs = load_runs(path)
        if not len(runs):
            raise UserError(
                f"{path}: no runs below this folder; start some with `patchscale sweep` or `patchscale train`"
            )
        return runs
    if not path.exists():
        raise UserError(f"{path}: no such folder or file (a published table is written published:NAME)")
    try:
        return pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV table with a header line ({error})") from None


def select_rows(table: "pd.DataFrame", where: list[str]) -> "pd.DataFrame":
    """Rows in which every named column holds the given value, compared as a number where it is one.

    Of runs in stages only the last ones count, unless a condition is about `stage` or `last_stage`.
    Raises `UserError` for a condition that is not column=value, an unknown column, and if no row is left.
    """
    from difflib import get_close_matches

    from patchscale.errors import UserError
    from patchscale.laws.table import shorten

    about = {condition.partition("=")[0].strip() for condition in where}
    if "last_stage" in table and not about & {"stage", "last_stage"}:
        table = table[table["last_stage"].astype(bool)]
    for condition in where:
        name, equals, value = (part.strip() for part in condition.partition("="))
        if not equals:
            raise UserError(f"--where {condition!r} is not of the form column=value, such as img_size=224")
        if name not in table.columns:
            close = get_close_matches(name, table.columns, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"--where: no column {name!r}{hint} (columns: {', '.join(table.columns)})")
        kept = table[[_equal(cell, value) for cell in table[name]]]
        if not len(kept):
            raise UserError(f"--where {condition}: no such row; {name} is {shorten(table[name], 12)}")
        table = kept
    return table


def _equal(cell: Any, value: str) -> bool:
    from patchscale.laws.table import plain

    cell = plain(cell)
    if cell is None:
        return value == ""
    try:
        return float(cell) == float(value)
    except (TypeError, ValueError):
        return str(cell) == value
