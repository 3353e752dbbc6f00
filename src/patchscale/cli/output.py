"""How verbs print: tables for people, JSON for scripts; data on stdout."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """Print `value` as JSON; not-a-number and infinities become null."""
    print(json.dumps(_finite(value), indent=2, default=str))


def print_table(
    rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str] | None = None, title: str | None = None
) -> None:
    """Print rows as a table that fits the terminal; whole cells, tab-separated, when stdout is not a terminal."""
    columns = list(columns or (rows[0] if rows else []))
    cells = [["" if row.get(name) is None else str(row[name]) for name in columns] for row in rows]
    if not sys.stdout.isatty():
        for line in [columns, *cells]:
            print("\t".join(line))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", header_style="bold", show_edge=False, pad_edge=False)
    for name in columns:
        table.add_column(name)
    for line in cells:
        table.add_row(*(Text(cell) for cell in line))
    Console().print(table)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):  # a NumPy scalar
        return _finite(value.item())
    return value
