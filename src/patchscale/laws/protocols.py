"""Runs that would be one curve but for how they were measured, or how long or with what settings they were trained."""

import shlex
from collections.abc import Sequence
from typing import Any

import pandas as pd

from patchscale.errors import UserError
from patchscale.laws.table import PROTOCOL_COLUMNS, listed, plain, varying

MAX_VALUES = 4
"""So many values of a column are named."""


class UnlikeProtocols(UserError):
    """Runs of unlike protocols would be one curve, and nobody said that they may.

    The message advises arguments of `fit_law` and `fit_curves`; `in_options` has the words of a command.
    """

    def __init__(self, found: str, column: str, value: str, *, is_joint: bool) -> None:
        apart = (
            f"give each its own floor with groups=[{column!r}]"
            if is_joint
            else f"tell them apart with by=['+{column}']"
        )
        super().__init__(f"{found}; keep one, {apart}, or take them together with mix_protocols=True")
        self.found, self.column, self.value, self.is_joint = found, column, value, is_joint

    def in_options(self, apart: str) -> str:
        """The message with options; `apart` is what tells the runs apart, with the column's name at the place of {}."""
        keep = shlex.quote(f"{self.column}={self.value}")
        apart = apart.replace("{}", self.column)
        return f"{self.found}; keep one with --where {keep}, {apart}, or take them together with --mix-protocols"


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
    return listed([_of_settings(rows) if name == "settings" else f"{name} ({_counts(rows[name])})" for name in columns])


def _of_settings(rows: pd.DataFrame) -> str:
    """A hash tells nothing, so with two runs whose config.yaml can be compared, if the table knows their places."""
    text = f"what the hash `settings` is of, such as the learning rate ({_counts(rows['settings'])}"
    if "path" in rows.columns:
        firsts = rows.drop_duplicates("settings")["path"].dropna().astype(str).tolist()[:2]
        text += f"; compare config.yaml of {listed(firsts)}" if len(firsts) == 2 else ""
    return f"{text})"


def refuse_unlike(rows: pd.DataFrame, columns: Sequence[str], label: str, *, is_joint: bool = False) -> None:
    """Raise `UnlikeProtocols` if the runs of the curve `label` differ in any of `columns`."""
    found = unlike(rows, columns)
    if not found:
        return
    first = found[0]
    commonest = rows[first].value_counts(dropna=False, sort=True).index[0]
    what = "settings" if found == ["settings"] else "protocols"
    raise UnlikeProtocols(
        f"{label}: unlike {what} would be one curve, the runs differ in {difference(rows, found)}",
        first,
        _text(commonest, empty=""),
        is_joint=is_joint,
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
