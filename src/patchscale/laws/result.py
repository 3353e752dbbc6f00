"""What a fit gives back: parameters and predictions with intervals, as numbers; its words are in `words.py`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from patchscale.errors import UserError
from patchscale.laws import words
from patchscale.laws.bootstrap import Bootstrap, noise_draws, percentiles
from patchscale.laws.checks import HoldOut
from patchscale.laws.findings import Check
from patchscale.laws.forms import Array, Axes
from patchscale.laws.table import listed, refuse_extremes
from patchscale.laws.uncertainty import Interval, Profile
from patchscale.laws.varpro import Problem, Solution

if TYPE_CHECKING:
    from patchscale.laws.design import Design
    from patchscale.laws.joint_checks import AxisHoldOut

PROFILE_DRAWS = 1000
ROWS_AT_ONCE = 1 << 15
"""Rows that are predicted at a time: what a law computes on the way fits into a cache."""


@dataclass(frozen=True)
class Estimate:
    """A parameter and its interval; an open end is 0 or infinite."""

    value: float
    low: float
    high: float
    interval: Interval = field(repr=False)
    """The same ends, and how far an open one was sought."""

    @property
    def low_open(self) -> bool:
        """Whether the search, not the data, ends the interval below."""
        return self.interval.low_open

    @property
    def high_open(self) -> bool:
        """Whether the search, not the data, ends the interval above."""
        return self.interval.high_open

    def __str__(self) -> str:
        return f"{self.value:.3g} {self.interval}"


def estimates_of(
    names: Sequence[str], values: Sequence[float] | Array, intervals: Mapping[str, Interval]
) -> dict[str, Estimate]:
    """Parameters by name, each with its interval."""
    return {
        name: Estimate(float(value), intervals[name].low, intervals[name].high, intervals[name])
        for name, value in zip(names, values, strict=True)
    }


@dataclass(frozen=True, eq=False)
class Fit:
    """One law fitted to one curve, or to many at once. `str(fit)` says in words what it means."""

    label: str
    curve: dict[str, Any]
    """The values that tell this curve from others."""
    form: str
    target: str
    """loss or error."""
    formula: str
    parameters: dict[str, Estimate]
    level: float
    rows: pd.DataFrame
    """The rows that were fitted."""
    dropped: pd.DataFrame
    """Rows that were not, each with its `reason`."""
    checks: tuple[Check, ...]
    starts_agreeing: float
    objective: float
    """Sum of squared residuals; with `huber`, of twice Huber's losses, which are squares up to there."""
    dof: int
    """Points minus parameters."""
    conventions: dict[str, str]
    holdout: HoldOut | None
    correlation: pd.DataFrame
    profile: Profile | None = field(repr=False)
    """What profile intervals follow from; None if the intervals are a bootstrap's."""
    problem: Problem = field(repr=False)
    solution: Solution = field(repr=False)
    bootstrap: Bootstrap | None = field(default=None, repr=False)
    """The refits to disturbed data, with their seed; None if the intervals are profiles."""
    design: "Design | None" = field(default=None, repr=False)
    """How a table becomes axes, groups and factors; None for a single curve."""
    holdouts: "tuple[AxisHoldOut, ...]" = ()
    """The end of each axis predicted from the rest (joint fits)."""
    huber: float | None = None
    """Residual beyond which a row counts linearly; None for least squares."""

    @property
    def interval_method(self) -> str:
        """profile or bootstrap."""
        return "profile" if self.bootstrap is None else "bootstrap"

    @property
    def aicc(self) -> float:
        """Akaike's criterion for few points; lower is better, and only fits of the same rows and residuals compare.

        The noise variance counts as a parameter. Infinite if the parameters leave too few points; not-a-number for
        Huber's loss, of which the criterion knows nothing.
        """
        if self.huber is not None:
            return math.nan
        points, parameters = self.problem.num_points, self.problem.num_parameters + 1
        if points <= parameters + 1:
            return math.inf
        spread = points * math.log(max(self.objective, 1e-300) / points)
        return spread + 2 * parameters + 2 * parameters * (parameters + 1) / (points - parameters - 1)

    def predict(self, points: Sequence[float] | pd.DataFrame) -> pd.DataFrame:
        """The law at patch sizes (px), or at the rows of a table with the law's axes (and groups and factors).

        Gives the same rows with predicted, low, high and extrapolated (outside the measured range); for a table also
        outside, the axes that leave it, in a fit with groups that of the row's own group. The interval is that of the
        law's value; a single run scatters around it. It is right only as far as the law holds, which nothing tells
        outside the measured range. Raises `UserError` for missing columns, unknown groups and numbers
        that are not positive.
        """
        table = self._as_table(points)
        axes, outside = self._axes(table), self._outside(table)
        low, high = self._ends(axes)
        answers: dict[str, Any] = {"predicted": self._values(axes), "low": low, "high": high}
        answers["extrapolated"] = [bool(names) for names in outside]
        if isinstance(points, pd.DataFrame):
            answers["outside"] = outside
        return table.assign(**answers)

    def values(self, points: Sequence[float] | pd.DataFrame) -> Array:
        """What `predict` predicts, without the intervals, which take most of its time: for many rows. [rows]."""
        return self._values(self._axes(self._as_table(points)))

    def draws(self, points: Sequence[float] | pd.DataFrame) -> Array:
        """The predictions of every bootstrap draw: [draws, rows].

        A profile fit has no draws of its own: here it is fitted again to the law with normal noise. The intervals of
        `predict` are the profile's still.
        """
        axes = self._axes(self._as_table(points))
        if self.bootstrap is not None:
            return self._from_scale(self.bootstrap.draws(axes))
        exponents, amplitudes = self._noise_draws()
        return self._from_scale(np.einsum("bmk,bk->bm", self.problem.law.basis(exponents, axes), amplitudes))

    def parameter_draws(self) -> pd.DataFrame:
        """Every parameter, in stated units, of every draw: one row per draw."""
        if self.bootstrap is not None:
            values = self.bootstrap.parameters()
        else:
            exponents, amplitudes = self._noise_draws()
            exponents, amplitudes = self.problem.stated(exponents, amplitudes)
            values = np.concatenate([amplitudes, exponents], axis=1)
        return pd.DataFrame(values, columns=list(self.parameters))

    def derived(self, function: Callable[[Mapping[str, Any]], Any]) -> Estimate:
        """A function of the parameters, such as `lambda p: p["alpha"] / p["beta"]`, with the interval of the draws."""
        value = float(function({name: estimate.value for name, estimate in self.parameters.items()}))
        table = self.parameter_draws()
        drawn = np.array([float(function(dict(zip(table.columns, row, strict=True)))) for row in table.to_numpy()])
        low, high = percentiles(drawn[np.isfinite(drawn)], self.level)
        interval = Interval(float(low), float(high))
        return Estimate(value, interval.low, interval.high, interval)

    def _noise_draws(self) -> tuple[Array, Array]:
        assert self.profile is not None
        noise = self.profile.noise
        return noise_draws(self.problem, self.solution, variance=noise.variance, dof=noise.dof, draws=PROFILE_DRAWS)

    def _as_table(self, points: Sequence[float] | pd.DataFrame) -> pd.DataFrame:
        if not isinstance(points, pd.DataFrame):
            columns = [axis.column for axis in self.problem.law.axes]
            if columns != ["patch_size"]:
                raise UserError(f"form {self.form!r} predicts the rows of a table with {listed(columns)}, not a list")
            points = pd.DataFrame({"patch_size": list(points)})
        elif self.design is None and "patch_size" not in points.columns:
            raise UserError("the points have no column 'patch_size'")
        return points

    def _axes(self, table: pd.DataFrame) -> Axes:
        if self.design is not None:
            return self.design.axes(table)
        sizes = pd.to_numeric(table["patch_size"], errors="coerce").to_numpy(float)
        wrong = table["patch_size"][~(np.isfinite(sizes) & (sizes > 0))]
        if len(wrong):
            raise UserError(f"patch_size={wrong.iloc[0]} cannot be predicted; give a positive number of pixels")
        refuse_extremes(table, "patch_size")
        return {"patch_size": sizes}

    def _outside(self, table: pd.DataFrame) -> list[str]:
        if self.design is not None:
            return self.design.outside(table)
        measured = self.problem.axes["patch_size"]
        inside = table["patch_size"].astype(float).between(measured.min(), measured.max())
        return ["" if within else "patch_size" for within in inside]

    def _ends(self, axes: Axes) -> tuple[Array, Array]:
        """Low and high end of the interval at every place."""
        if self.bootstrap is not None:
            low, high = percentiles(self.bootstrap.draws(axes), self.level)
        else:
            assert self.profile is not None
            count = len(next(iter(axes.values())))
            places = [{name: values[i : i + 1] for name, values in axes.items()} for i in range(count)]
            found = [self.profile.prediction_interval(place) for place in places]
            low, high = np.array([one.low for one in found]), np.array([one.high for one in found])
        return self._from_scale(low), self._from_scale(high)

    def _values(self, axes: Axes) -> Array:
        law, (exponents, amplitudes) = self.problem.law, (self.solution.exponents[None], self.solution.amplitudes)
        count = len(next(iter(axes.values())))
        values = np.empty(count)
        for first in range(0, count, ROWS_AT_ONCE):
            block = slice(first, first + ROWS_AT_ONCE)
            places = {name: column[block] for name, column in axes.items()}
            values[block] = law.basis(exponents, places)[0] @ amplitudes
        return self._from_scale(values)

    def _from_scale(self, values: Array) -> Array:
        """Back from the logit, where the law describes that."""
        return 1 / (1 + np.exp(-values)) if self.problem.scale == "logit" else values

    def frame(self) -> pd.DataFrame:
        """One row per parameter."""
        meanings = self.problem.law.meanings
        return pd.DataFrame(
            {
                "parameter": name,
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "low_open": estimate.low_open,
                "high_open": estimate.high_open,
                "meaning": meanings[name],
            }
            for name, estimate in self.parameters.items()
        )

    def points(self) -> pd.DataFrame:
        """One row per fitted row: the axes (and groups, factors), measured, fitted, residual (measured - fitted)."""
        problem = self.problem
        fitted = self._from_scale(problem.model(self.solution.exponents, self.solution.amplitudes))
        measured = self._from_scale(problem.measured)
        columns = ["patch_size"] if self.design is None else self.design.columns
        table = {name: self.rows[name].to_numpy() for name in columns if name in self.rows.columns}
        if self.design is None:
            table = {"patch_size": problem.axes["patch_size"]}
        return pd.DataFrame({**table, "measured": measured, "fitted": fitted, "residual": measured - fitted})

    def plot(self, ax: Any = None, axis: str | None = None) -> Any:
        """Points, law and interval band on a matplotlib axis, finer patches to the right; returns the axis.

        A joint fit is drawn along `axis` (the one with most levels, if not given), one curve per combination of the
        other axes, groups and factors, at most eight: those with most points, and the title says of how many. A
        combination measured at one value only is dashed. `points()` has the numbers. Raises `UserError` for an
        axis that the law does not have.
        """
        from patchscale.laws.figure import draw_fit

        return draw_fit(self, ax, axis)

    @property
    def quantity(self) -> str:
        """What the law describes, in words."""
        metric = self.curve.get("metric_name")
        if self.target == "loss":
            return "test loss"
        return f"error (1 - {metric})" if metric else "error"

    def check(self, code: str) -> Check:
        """The check with this code."""
        return next(check for check in self.checks if check.code == code)

    def __str__(self) -> str:
        return words.sentence(self)

    def show(self, value: float) -> str:
        """A value of the target as it is printed: errors in per cent."""
        if not math.isfinite(value):
            return "unbounded"
        return f"{100 * value:.2f} %" if self.target != "loss" else f"{value:.4g}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON; open ends are infinite (null in JSON) with the text beside them."""
        return words.as_plain(self)
