"""What the planner asks of a law: a value, an interval, and draws that disturb all configurations together."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from patchscale.errors import UserError
from patchscale.laws.design import kinds
from patchscale.laws.result import Fit
from patchscale.planner.fitted_to import other_families

Numbers = NDArray[np.float64]
ANSWERS = ["predicted", "low", "high", "extrapolated", "outside"]


@runtime_checkable
class FittedLaw(Protocol):
    """A fit: `patchscale.laws.result.Fit`, or anything like it."""

    def predict(self, points: Any) -> pd.DataFrame:
        """The rows with predicted, low, high, extrapolated, outside."""

    def draws(self, points: Any) -> Numbers:
        """[draws, rows]: what each draw of the fit predicts."""


Law = FittedLaw | Callable[[pd.DataFrame], Any]


@dataclass(frozen=True)
class Quality:
    """A law as the planner uses it. A plain function of the table has no intervals: its values are taken as exact."""

    law: Law

    @property
    def has_draws(self) -> bool:
        """Whether the law knows how uncertain it is."""
        return isinstance(self.law, FittedLaw)

    def values(self, table: pd.DataFrame) -> Numbers:
        """The predicted value of every row; raises `UserError` if there is none for any."""
        if isinstance(self.law, Fit):
            values: Any = self.law.values(table)
        elif isinstance(self.law, FittedLaw):
            values = self.law.predict(table)["predicted"]
        else:
            values = self.law(table)
        array = np.asarray(values, dtype=float)
        if array.shape != (len(table),):
            raise UserError(
                f"the law gives values of shape {array.shape} for {len(table)} configurations; one for each is needed"
            )
        if not np.isfinite(array).any():
            raise UserError("the law predicts no finite value for any configuration; check that it knows their columns")
        return array

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """predicted, low, high, extrapolated, outside for every row."""
        if not isinstance(self.law, FittedLaw):
            unknown = np.full(len(table), np.nan)
            values = self.values(table)
            return pd.DataFrame(
                {"predicted": values, "low": unknown, "high": unknown, "extrapolated": False, "outside": ""}
            )
        first, place = self._distinct(table)  # the ends of a profile interval are a search each
        told = self.law.predict(table.iloc[first])[ANSWERS].iloc[place].reset_index(drop=True)
        if not isinstance(self.law, Fit):
            return told
        families = other_families(self.law, table)
        outside = [",".join(filter(None, names)) for names in zip(told["outside"], families, strict=True)]
        return told.assign(outside=outside, extrapolated=[bool(names) for names in outside])

    def draws(self, table: pd.DataFrame) -> Numbers:
        """[draws, rows]; one exact draw for a plain function."""
        if not isinstance(self.law, FittedLaw):
            return self.values(table)[None, :]
        first, place = self._distinct(table)
        return np.asarray(self.law.draws(table.iloc[first]), dtype=float)[:, place]

    def _distinct(self, table: pd.DataFrame) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        columns = columns_read(self.law) if isinstance(self.law, Fit) else None
        if columns is None or any(name not in table for name in columns):
            return np.arange(len(table)), np.arange(len(table))
        return kinds(table, columns)

    @property
    def quantity(self) -> str:
        """What is predicted, in words."""
        return str(getattr(self.law, "quantity", "value"))

    @property
    def is_error(self) -> bool:
        """Whether values are shares of an error, printed in per cent."""
        return "error" in str(getattr(self.law, "target", ""))

    @property
    def level(self) -> float:
        """Level of the intervals."""
        return float(getattr(self.law, "level", 0.95))

    def show(self, value: float) -> str:
        """A value as it is printed."""
        return f"{100 * value:.2f} %" if self.is_error else f"{value:.4g}"

    def show_gain(self, gain: float) -> str:
        """A difference of values as it is printed."""
        return f"{round(100 * gain, 2) + 0.0:.2f} points" if self.is_error else f"{gain + 0.0:.3g}"  # no -0


def columns_read(fit: Fit) -> list[str]:
    """Columns that the predictions of a fit depend on."""
    return ["patch_size"] if fit.design is None else fit.design.columns
