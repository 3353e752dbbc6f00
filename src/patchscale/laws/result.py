"""What a fit gives back: numbers with intervals, a sentence, a table, a figure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from patchscale.errors import UserError
from patchscale.laws.checks import Check, HoldOut
from patchscale.laws.table import plain
from patchscale.laws.uncertainty import Interval, Profile


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


@dataclass(frozen=True, eq=False)
class Fit:
    """One law fitted to one curve. `str(fit)` says in words what it means."""

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
    """Sum of squared residuals."""
    dof: int
    """Points minus parameters."""
    conventions: dict[str, str]
    holdout: HoldOut | None
    correlation: pd.DataFrame
    profile: Profile = field(repr=False)

    def predict(self, patch_sizes: Sequence[float]) -> pd.DataFrame:
        """The law at `patch_sizes` (px): predicted, low, high, extrapolated (outside the measured range).

        The interval is that of the law's value; a single run scatters around it. It is right only as far as the law
        holds, which nothing tells outside the measured range. Raises `UserError` for a patch size that is not positive.
        """
        measured = self.profile.problem.axes["patch_size"]
        rows = []
        for patch_size in patch_sizes:
            if not (math.isfinite(patch_size) and patch_size > 0):
                raise UserError(f"patch_size={patch_size} cannot be predicted; give a positive number of pixels")
            axes = {"patch_size": np.array([float(patch_size)])}
            interval = self.profile.prediction_interval(axes)
            outside = not measured.min() <= patch_size <= measured.max()
            rows.append((patch_size, self.profile.predict(axes), interval.low, interval.high, outside))
        return pd.DataFrame(rows, columns=["patch_size", "predicted", "low", "high", "extrapolated"])

    def frame(self) -> pd.DataFrame:
        """One row per parameter."""
        meanings = self.profile.problem.law.meanings
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
        """One row per fitted row: patch_size, measured, fitted, residual (measured - fitted)."""
        problem = self.profile.problem
        fitted = problem.model(self.profile.solution.exponents, self.profile.solution.amplitudes)
        return pd.DataFrame(
            {
                "patch_size": problem.axes["patch_size"],
                "measured": problem.measured,
                "fitted": fitted,
                "residual": problem.measured - fitted,
            }
        )

    def plot(self, ax: Any = None) -> Any:
        """Points, law and interval band on a matplotlib axis, finer patches to the right; returns the axis."""
        import matplotlib.pyplot as plt
        from matplotlib.ticker import NullLocator, ScalarFormatter

        if ax is None:
            _, ax = plt.subplots()
        points = self.points()
        curve = self.predict(np.geomspace(points["patch_size"].min(), points["patch_size"].max(), 60).tolist())
        (line,) = ax.plot(curve["patch_size"], curve["predicted"], label=self.label)
        ax.fill_between(
            curve["patch_size"], curve["low"], curve["high"], color=line.get_color(), alpha=0.2, linewidth=0
        )
        ax.plot(points["patch_size"], points["measured"], "o", color=line.get_color())
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(sorted(set(points["patch_size"])))
        if not ax.xaxis_inverted():
            ax.invert_xaxis()
        ax.set_xlabel("patch size (px)")
        ax.set_ylabel(self.quantity)
        return ax

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
        return f"{self.label}: {self._main_sentence()}{self._caveats()}"

    def _main_sentence(self) -> str:
        if self.check("trend").state == "fail":
            return f"the {self.quantity} does not fall with the patch size; the law has nothing to say here."
        large, small = self._step_worth_naming()
        table = self.predict([large, small])
        before, after = table["predicted"]
        interval = f"[{self.show(table['low'][1])}, {self.show(table['high'][1])}]"
        change = f"halving the patch from {large:g} to" if large == 2 * small else f"going from a patch of {large:g} to"
        course = f"from {self.show(before)} to {self.show(after)} {interval}"
        if table["extrapolated"][1]:
            says = f"{change} {small:g} px, outside the measured range, takes the {self.quantity} {course} by the law"
        else:
            says = f"in the fitted law {change} {small:g} px (both measured) takes the {self.quantity} {course}"
        floor, exponent = self.parameters["E"], self.parameters["alpha"]
        return (
            f"{says}; the floor E is {self.show(floor.value)} "
            f"[{self.show(floor.low)}, {self.show(floor.high)}], exponent alpha {exponent} "
            f"({len(self.rows)} points, {self.level:.0%} profile intervals)."
        )

    def _step_worth_naming(self) -> tuple[float, float]:
        """The next halving below the smallest patch, or the last measured step where it cannot be halved."""
        sizes = sorted(set(self.profile.problem.axes["patch_size"]))
        return (sizes[0], sizes[0] / 2) if sizes[0] % 2 == 0 else (sizes[1], sizes[0])

    def _caveats(self) -> str:
        told = [self.check(code) for code in ("trend", "mixed", "weak-exponent", "at-bound", "lack-of-fit", "holdout")]
        return "".join(
            f" {check.message[0].upper()}{check.message[1:]}." for check in told if check.state in ("warn", "fail")
        )

    def show(self, value: float) -> str:
        """A value of the target as it is printed: errors in per cent."""
        if not math.isfinite(value):
            return "unbounded"
        return f"{100 * value:.2f} %" if self.target == "error" else f"{value:.4g}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON; open ends are infinite (null in JSON) with the text beside them."""
        return {
            "label": self.label,
            "curve": self.curve,
            "form": self.form,
            "formula": self.formula,
            "target": self.target,
            "sentence": str(self),
            "parameters": {
                name: {
                    "value": estimate.value,
                    "low": estimate.low,
                    "high": estimate.high,
                    "low_open": estimate.low_open,
                    "high_open": estimate.high_open,
                    "text": str(estimate),
                }
                for name, estimate in self.parameters.items()
            },
            "correlation": {row: dict(values) for row, values in self.correlation.to_dict("index").items()},
            "level": self.level,
            "objective": self.objective,
            "dof": self.dof,
            "starts_agreeing": self.starts_agreeing,
            "holdout": None if self.holdout is None else vars(self.holdout),
            "checks": [vars(check) for check in self.checks],
            "conventions": self.conventions,
            "points": self.points().to_dict("records"),
            "dropped": _plain_records(self.dropped),
        }


def _plain_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    names = [
        name for name in ("run_id", "model", "img_size", "patch_size", "seed", "status", "reason") if name in table
    ]
    return [{name: plain(row[name]) for name in names} for row in table.to_dict("records")]
