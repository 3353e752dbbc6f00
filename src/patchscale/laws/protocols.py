"""Runs that would be one curve but for how they were measured, or how long or with what settings they were trained."""

import shlex
from collections.abc import Sequence
from typing import Any

import pandas as pd

from patchscale.errors import UserError
from patchscale.laws.settings import differing_settings
from patchscale.laws.table import PROTOCOL_COLUMNS, listed, plain, varying

MAX_VALUES = 4
"""So many values of a column are named."""


GROUPS = "give each its own floor with groups=['{}']"
BY = "tell them apart with by=['+{}']"
"""What a function has to tell runs apart, with a column's name at the place of {}."""


class UnlikeProtocols(UserError):
    """Runs of unlike protocols would be one curve, and nobody said that they may.

    The message advises `apart`, `GROUPS` (`fit_law`, `compare_laws`) or `BY` (`fit_curves`, `write_report`);
    `in_options` has the words of a command.
    """

    def __init__(self, found: str, column: str, value: str, apart: str) -> None:
        super().__init__(found, column, value, apart)
        self.found, self.column, self.value, self.apart = found, column, value, apart

    def __str__(self) -> str:
        apart = self.apart.replace("{}", self.column)
        return f"{self.found}; keep one, {apart}, or take them together with mix_protocols=True"

    def advising(self, apart: str) -> "UnlikeProtocols":
        """The same for the caller of another function."""
        return UnlikeProtocols(self.found, self.column, self.value, apart)

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
    """A hash tells nothing, so with what it is of, as the config.yaml of the runs has it, or at least their places."""
    if names := differing_settings(rows):
        shown = [f"{name} {', '.join(values[:MAX_VALUES])}" for name, values in list(names.items())[:MAX_VALUES]]
        shown += [f"{len(names) - MAX_VALUES} more"] if len(names) > MAX_VALUES else []
        return f"settings ({_counts(rows['settings'])}: {'; '.join(shown)})"
    text = f"what the hash `settings` is of, such as the learning rate ({_counts(rows['settings'])}"
    if "path" in rows.columns:
        firsts = rows.drop_duplicates("settings")["path"].dropna().astype(str).tolist()[:2]
        text += f"; compare config.yaml of {listed(firsts)}" if len(firsts) == 2 else ""
    return f"{text})"


def refuse_unlike(rows: pd.DataFrame, columns: Sequence[str], label: str, *, apart: str = GROUPS) -> None:
    """Raise `UnlikeProtocols`, which advises `apart`, if the runs of the curve `label` differ in any of `columns`."""
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
        apart,
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
