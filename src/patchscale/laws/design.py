"""From a table to the axes of a joint law: scaled columns, group numbers, factor indicators."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from patchscale.errors import UserError
from patchscale.laws.forms import Array, Axes, Law, PowerLaw
from patchscale.laws.grouped import GROUP, Grouped
from patchscale.laws.table import distinct, listed, plain, refuse_extremes


@dataclass(frozen=True)
class Factor:
    """A column whose values change the law as a whole; the most frequent value is the baseline."""

    column: str
    baseline: str
    levels: tuple[str, ...]
    """The other values."""
    added: bool
    """Whether each is added to the law; otherwise it multiplies it."""

    def name(self, level: str) -> str:
        """`column=level`, as in parameter names."""
        return f"{self.column}={level}"


@dataclass(frozen=True)
class Design:
    """How rows of a table become points of a law."""

    law: Law
    base: Law
    scales: Mapping[str, float]
    """What each axis is divided by, its geometric mean: amplitudes and exponents then trade off less."""
    ranges: Mapping[str, tuple[float, float]]
    """Smallest and largest measured value of each axis, in stated units."""
    group_columns: tuple[str, ...]
    groups: tuple[str, ...]
    factors: tuple[Factor, ...]
    group_ranges: Mapping[str, Array]
    """`ranges` of each group: axis -> [groups, 2]; empty without groups."""

    @classmethod
    def of(cls, rows: pd.DataFrame, base: Law, groups: Sequence[str], factors: Sequence[str]) -> "Design":
        """The design of a joint fit. A factor written `+column` is added, otherwise it multiplies."""
        raw = base.derive({axis.column: rows[axis.column].to_numpy(float) for axis in base.axes})
        scales = {name: float(np.exp(np.mean(np.log(values)))) for name, values in raw.items()}
        ranges = {axis.column: (raw[axis.column].min(), raw[axis.column].max()) for axis in base.axes}
        labels = labels_of(rows, groups)
        known = tuple(dict.fromkeys(labels))
        if len(known) == 1:
            known = ()
        found = tuple(_factor(rows, text) for text in factors)
        law: Law = base
        if known or found:
            law = Grouped(
                base,
                groups=known,
                own={name: _groups_with(rows, labels, base, name) for name in base.own} if known else None,
                multipliers=[f.name(level) for f in found if not f.added for level in f.levels],
                additions=[f.name(level) for f in found if f.added for level in f.levels],
            )
        in_group = [np.array([label == name for label in labels]) for name in known]
        group_ranges = {
            name: np.array([(raw[name][rows_of].min(), raw[name][rows_of].max()) for rows_of in in_group])
            for name in (ranges if known else ())
        }
        return cls(law, base, scales, ranges, tuple(groups) if known else (), known, found, group_ranges)

    @property
    def columns(self) -> list[str]:
        """Columns of a table that the law reads: axes, groups, factors."""
        return [*(a.column for a in self.base.axes), *self.group_columns, *(f.column for f in self.factors)]

    def axes(self, table: pd.DataFrame) -> Axes:
        """The points of a table, scaled; raises `UserError` for what is missing, unknown or not positive."""
        table = with_tokens(table, self.base)
        raw: dict[str, Array] = {}
        for axis in self.base.axes:
            if axis.column not in table.columns:
                raise UserError(
                    f"the points have no column {axis.column!r}; form {self.base.name!r} needs "
                    f"{listed([a.column for a in self.base.axes])}"
                )
            values = pd.to_numeric(table[axis.column], errors="coerce").to_numpy(float)
            if not (np.isfinite(values) & (values > 0)).all():
                raise UserError(f"{axis.column} must be a positive number in every row that is predicted")
            refuse_extremes(table, axis.column)
            raw[axis.column] = values
        axes = {name: values / self.scales.get(name, 1.0) for name, values in self.base.derive(raw).items()}
        if self.groups:
            axes[GROUP] = self._group_numbers(table)
        for factor in self.factors:
            cells = self._cells(table, factor)
            for level in factor.levels:
                axes[f"factor:{factor.name(level)}"] = (cells == level).astype(float)
        return axes

    def outside(self, table: pd.DataFrame) -> list[str]:
        """For each row, the axes on which it lies outside the measured range, comma-separated; empty if none.

        With groups the range is that of the row's own group: what others measured says little about its floor.
        """
        table = with_tokens(table, self.base)
        found = [[] for _ in range(len(table))]  # type: list[list[str]]
        number = self._group_numbers(table).astype(int) if self.groups else None
        for column, whole in self.ranges.items():
            low, high = whole if number is None else self.group_ranges[column][number].T
            values = pd.to_numeric(table[column]).to_numpy(float)
            for i in np.flatnonzero((values < low * (1 - 1e-9)) | (values > high * (1 + 1e-9))):
                found[i].append(column)
        return [",".join(names) for names in found]

    def _group_numbers(self, table: pd.DataFrame) -> Array:
        missing = [name for name in self.group_columns if name not in table.columns]
        if missing:
            raise UserError(
                f"the points have no column {missing[0]!r}, which tells the groups apart (groups: {_some(self.groups)})"
            )
        first, kind = kinds(table, self.group_columns)
        labels = labels_of(table.iloc[first], self.group_columns)
        unknown = [label for label in labels if label not in self.groups]
        if unknown:
            raise UserError(f"group {unknown[0]!r} was not fitted (groups: {_some(self.groups)})")
        return np.array([self.groups.index(label) for label in labels], float)[kind]

    def _cells(self, table: pd.DataFrame, factor: Factor) -> Array:
        """The factor's value in each row; the baseline where there is no such column."""
        if factor.column not in table.columns:
            return np.full(len(table), factor.baseline, dtype=object)
        first, kind = kinds(table, [factor.column])
        cells = np.array([text_of(value) for value in table[factor.column].iloc[first]], dtype=object)
        known = (factor.baseline, *factor.levels)
        unknown = [cell for cell in cells if cell not in known]
        if unknown:
            raise UserError(f"{factor.column} {unknown[0]!r} was not fitted (fitted: {_some(known)})")
        return cells[kind]


def kinds(table: pd.DataFrame, columns: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(places of the first row of each kind, for every row the number of its kind) by `columns`."""
    numbers = table.groupby(list(columns), sort=False, dropna=False, observed=True).ngroup().to_numpy()
    _, first, kind = np.unique(numbers, return_index=True, return_inverse=True)
    return first, kind


def text_of(value: object) -> str:
    """A cell as the label it gets in names."""
    value = plain(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "none" if value is None else str(value)


def labels_of(rows: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """The group of each row: its cells, joined by a blank."""
    if not columns:
        return [""] * len(rows)
    return [" ".join(text_of(value) for value in row) for row in rows[list(columns)].itertuples(index=False)]


def with_tokens(table: pd.DataFrame, law: Law) -> pd.DataFrame:
    """The table with `tokens` as (img_size / patch_size)^2 where the law needs and the table lacks it."""
    needed = any(axis.column == "tokens" for axis in law.axes)
    if not needed or "tokens" in table.columns or not {"patch_size", "img_size"} <= set(table.columns):
        return table
    sides = [pd.to_numeric(table[name], errors="coerce") for name in ("img_size", "patch_size")]
    return table.assign(tokens=(sides[0] / sides[1]) ** 2)


def _groups_with(rows: pd.DataFrame, labels: Sequence[str], law: Law, amplitude: str) -> list[str]:
    """Groups that can have this amplitude of their own: two values or more on each axis of its term."""
    if amplitude == law.floor:
        return list(dict.fromkeys(labels))
    columns = [axis.column for axis in law.axes]
    if isinstance(law, PowerLaw):
        term = law.terms[law.amplitudes.index(amplitude)]
        columns = [column for column in columns if column in term]
    groups = rows.groupby(np.array(labels, dtype=object), sort=False)
    return [str(label) for label, group in groups if all(len(distinct(group[c])) > 1 for c in columns)]


def _factor(rows: pd.DataFrame, text: str) -> Factor:
    column = text.removeprefix("+")
    cells = pd.Series([text_of(value) for value in rows[column]])
    counts = cells.value_counts(sort=False).sort_index()
    if len(counts) < 2:
        raise UserError(f"factor {column!r} has one value ({counts.index[0]}) in these rows; leave it out")
    baseline = str(counts.idxmax())
    return Factor(column, baseline, tuple(str(v) for v in counts.index if v != baseline), text.startswith("+"))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
