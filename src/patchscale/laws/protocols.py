"""Runs that would be one curve but for how they were measured, or for how long they were trained."""

import shlex
from collections.abc import Sequence
from typing import Any

import pandas as pd

from patchscale.errors import UserError
from patchscale.laws.table import PROTOCOL_COLUMNS, listed, plain, varying

MAX_VALUES = 4
"""So many values of a column are named."""


class UnlikeProtocols(UserError):
    """Runs of unlike protocols would be one curve, and nobody said that they may."""


def unlike(rows: pd.DataFrame, columns: Sequence[str] = PROTOCOL_COLUMNS) -> list[str]:
    """Those of `columns` in which the runs of a curve differ, without those that only follow from ones before them.

    Twice the steps are twice the epochs, and other settings: `steps` says it all.
    """
    found: list[str] = []
    for name in varying(rows, columns):
        parts = [part for _, part in rows.groupby(found, dropna=False)] if found else [rows]
        if any(varying(part, [name]) for part in parts):
            found.append(name)
    return found


def difference(rows: pd.DataFrame, columns: Sequence[str]) -> str:
    """`steps (100 in 4 runs, 200 in 1 run)`, for every one of `columns`."""
    return listed([f"{name} ({_counts(rows[name])})" for name in columns])


def refuse_unlike(rows: pd.DataFrame, columns: Sequence[str], label: str, *, apart: str) -> None:
    """Raise `UnlikeProtocols` if the runs of the curve `label` differ in any of `columns`.

    `apart` is the option that keeps them apart, with a column's name at the place of {}.
    """
    found = unlike(rows, columns)
    if not found:
        return
    first = found[0]
    commonest = rows[first].value_counts(dropna=False, sort=True).index[0]
    keep = shlex.quote(f"{first}={_text(commonest, empty='')}")
    raise UnlikeProtocols(
        f"{label}: unlike protocols would be one curve, the runs differ in {difference(rows, found)}; keep one with "
        f"--where {keep}, tell them apart with {apart.format(first)}, or take them together with --mix-protocols"
    )


def _counts(cells: pd.Series) -> str:
    counts = cells.value_counts(dropna=False, sort=False)
    shown = [f"{_text(value)} in {count} run{'s' * (count > 1)}" for value, count in counts.items()]
    return ", ".join(shown[:MAX_VALUES]) + (f", {len(shown) - MAX_VALUES} more values" if shown[MAX_VALUES:] else "")


def _text(cell: Any, *, empty: str = "none") -> str:
    value = plain(cell)
    if value is None:
        return empty
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
