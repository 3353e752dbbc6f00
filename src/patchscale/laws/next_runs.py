"""Which runs next? Those that narrow the interval of one decision most per unit of what they cost.

Near the fit all is linear and normal, so the use of a run is known before it is run: seen with noise s^2, it turns the
covariance K of the decision d and all candidates c into K - K[:, c] K[c, :] / (K[c, c] + s^2). Runs are chosen one
after another, each time the one that takes most off the width of d per unit of price (greedy). K comes from

- "draws": the draws of the fit. They know of clusters and of parameters at a bound, so widths agree with the intervals
  of `predict`; correlations that their number could give by chance count as none.
- "linear": the Gauss-Newton information of the fitted rows. Its inverse needs a value in every direction, also those
  the rows say nothing about: a priori no term is larger than what was measured, and exponents lie within their bounds.

m decisions, c candidates, P parameters, B draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as t_distribution

from patchscale.errors import UserError
from patchscale.laws.design import with_tokens
from patchscale.laws.forms import Array
from patchscale.laws.result import Fit
from patchscale.laws.table import constant, listed

PRICES = ("train_gpu_hours", "train_flops", "flops_train_total", "price")
"""Columns that may hold the price of a run; the first that is there is used."""
METHODS = ("linear", "draws")
CHANCE = 4.0
"""Squared correlations of B draws count as far as they exceed this over B, which is two standard errors."""
UNITS = {"train_gpu_hours": "GPU-hours", "train_flops": "FLOPs", "flops_train_total": "FLOPs"}
Decision = str | Mapping[str, Any] | pd.DataFrame
"""A parameter's name, a configuration, or a table of two or more of them."""


@dataclass(frozen=True, eq=False)
class NextRuns:
    """Runs proposed for one decision. `str(proposal)` says what they would buy, `frame()` lists them."""

    decision: str
    """The quantity whose interval is to shrink, in words."""
    runs: pd.DataFrame
    """The proposed runs in order: their axes, price, width_before, width_after, narrowing_per_price, extrapolated."""
    ranking: pd.DataFrame
    """Every candidate as if it were run first, best narrowing per price first; the same columns."""
    width: float
    """Of the decision's interval now; the mean over the differences where options are compared."""
    price: str
    """The column that prices come from."""
    level: float
    method: str
    unit: str
    """What widths are in."""
    caveat: str = ""
    """What the sentence warns of."""

    @property
    def width_after(self) -> float:
        """Of the interval once all proposed runs are done, as far as the law holds."""
        return float(self.runs["width_after"].iloc[-1])

    @property
    def total_price(self) -> float:
        """Of the proposed runs together."""
        return float(self.runs[self.price].sum())

    def frame(self) -> pd.DataFrame:
        """One row per proposed run, in order."""
        return self.runs

    def __str__(self) -> str:
        first = self.runs.iloc[0]
        axes = [name for name in self.runs.columns if name not in (self.price, *COLUMNS)]
        place = ", ".join(f"{name} {_number(first[name])}" for name in axes)
        unit = UNITS.get(self.price, self.price)
        others = len(self.runs) - 1
        more = ""
        if others:
            more = (
                f"; with {'the next one' if others == 1 else f'the next {others}'} "
                f"({_number(self.total_price)} {unit} together) to {self._show(self.width_after)}"
            )
        paid = f"{_number(first[self.price])} {unit.removesuffix('s') if first[self.price] == 1 else unit}"
        course = f"from {self._show(self.width)} to {self._show(float(first['width_after']))}"
        return (
            f"To settle {self.decision}, run {place} next: for {paid} the {self.level:.0%} interval should narrow "
            f"{course}{more}. {METHOD_WORDS[self.method]}{self.caveat}"
        )

    def _show(self, width: float) -> str:
        return f"{width:.3g}{self.unit}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            "sentence": str(self),
            "decision": self.decision,
            "width": self.width,
            "width_after": self.width_after,
            "total_price": self.total_price,
            "unit": self.unit.strip(),
            "price": self.price,
            "level": self.level,
            "method": self.method,
            "runs": self.runs.to_dict("records"),
            "ranking": self.ranking.to_dict("records"),
        }


COLUMNS = ("width_before", "width_after", "narrowing_per_price", "extrapolated")
OUTSIDE = " Some of these runs lie outside the measured range, where the law is a guess."
METHOD_WORDS = {
    "linear": "Widths are Gauss-Newton's: the law linearised about the fit, rows taken as independent.",
    "draws": "Widths follow from the fit's draws, taken as normal.",
}


def propose_runs(
    fit: Fit,
    candidates: pd.DataFrame,
    *,
    decision: Decision,
    runs: int = 3,
    price: str | None = None,
    method: str = "draws",
    repeat: bool = False,
) -> NextRuns:
    """The next `runs` runs of `candidates` that narrow the interval of `decision` most per unit of price.

    `candidates` has a row per run that could be made: the axes of the law (and groups, factors) and the column `price`
    (default: train_gpu_hours, train_flops, flops_train_total or price). `decision` is the name of a parameter (an
    exponent's width is that of its logarithm); one configuration, for the law's prediction there; two, for their
    difference; or more, to find the best of them: then the differences from the one predicted best count together,
    which for the optimum within a budget are the configurations that tie (`plan.ties`). A candidate is run once unless
    `repeat`. `method` is "linear" or "draws", see above.

    Raises `UserError` for missing columns, unknown parameters, and prices that are not positive.
    """
    if method not in METHODS:
        raise UserError(f"method={method!r} is not known; use {' or '.join(METHODS)}")
    if fit.design is None:
        raise UserError("next runs are proposed from joint fits; fit this curve with residuals='log'")
    if not len(candidates):
        raise UserError("there are no candidates; give a table with a row per run that could be made")
    if runs < 1:
        raise UserError(f"runs={runs}: propose at least one")
    candidates = with_tokens(candidates.reset_index(drop=True), fit.design.base)
    price = _price_column(candidates, price)
    prices = pd.to_numeric(candidates[price], errors="coerce").to_numpy(float)
    if not (np.isfinite(prices) & (prices > 0)).all():
        raise UserError(f"{price} must be a positive number for every candidate")
    wanted = _Wanted.of(fit, decision)
    noise = _noise(fit)
    joint = _linear(fit, wanted, candidates, noise) if method == "linear" else _from_draws(fit, wanted, candidates)
    runs = runs if repeat else min(runs, len(candidates))
    chosen, ranking = _greedy(joint, wanted.count, prices, noise, runs, repeat)
    tail = float(t_distribution.ppf((1 + fit.level) / 2, max(fit.dof, 1)))
    scale = 2 * tail * wanted.factor
    outside = np.array([bool(names) for names in fit.design.outside(candidates)])
    names = dict.fromkeys(("model", "patch_size", "img_size", *fit.design.columns))
    axes = [name for name in names if name in candidates.columns]

    def rows(found: Sequence[tuple[int, float, float]]) -> pd.DataFrame:
        index = [i for i, *_ in found]
        before, after = (np.array([one[k] for one in found]) * scale for k in (1, 2))
        return (
            candidates.loc[index, [*axes, price]]
            .assign(
                width_before=before,
                width_after=after,
                narrowing_per_price=(before - after) / prices[index],
                extrapolated=outside[index],
            )
            .reset_index(drop=True)
        )

    first = rows(chosen)
    return NextRuns(
        decision=wanted.words,
        runs=first,
        ranking=rows(ranking),
        width=float(first["width_before"].iloc[0]),
        price=price,
        level=fit.level,
        method=method,
        unit=wanted.unit,
        caveat=OUTSIDE if first["extrapolated"].any() else "",
    )


@dataclass(frozen=True)
class _Wanted:
    """The quantities that are to be known better."""

    words: str
    parameter: str | None
    points: pd.DataFrame | None
    weights: Array
    """What to add of the predictions at `points`: [m, points]; of the parameter: [1, 1]."""
    factor: float
    """From the target's scale to printed units."""
    unit: str

    @property
    def count(self) -> int:
        """m."""
        return len(self.weights)

    @classmethod
    def of(cls, fit: Fit, decision: Decision) -> "_Wanted":
        """From a parameter's name or configurations."""
        if isinstance(decision, str):
            names = list(fit.parameters)
            if decision not in names:
                raise UserError(f"the law has no parameter {decision!r} (parameters: {', '.join(names)})")
            exponent = decision in {one.name for one in fit.problem.law.exponents}
            words = f"the logarithm of {decision}" if exponent else decision
            return cls(words, decision, None, np.ones((1, 1)), 1.0, "")
        points = decision if isinstance(decision, pd.DataFrame) else pd.DataFrame([dict(decision)])
        if not len(points):
            raise UserError("the decision has no configurations; give one, or two and more to compare")
        points = points.reset_index(drop=True)
        factor, unit = (100.0, " points") if fit.target != "loss" else (1.0, "")
        predicted = fit.predict(points)["predicted"].to_numpy(float)
        if len(points) == 1:
            return cls(f"the prediction at {_place(fit, points, 0)}", None, points, np.ones((1, 1)), factor, unit)
        best = int(np.argmin(predicted))
        weights = np.delete(np.eye(len(points)), best, axis=0)
        weights[:, best] = -1.0
        if len(points) == 2:
            words = f"the difference between {_place(fit, points, 0)} and {_place(fit, points, 1)}"
        else:
            words = f"which of {len(points)} configurations is best (mean width of their differences)"
        return cls(words, None, points, weights, factor, unit)


@dataclass(frozen=True)
class _Joint:
    """Covariance of decisions (target's scale) and candidates (residual's scale), m + c rows."""

    matrix: Array
    chance: float = 0.0
    """Squared correlation that may be chance."""


def _linear(fit: Fit, wanted: _Wanted, candidates: pd.DataFrame, noise: float) -> _Joint:
    """From the inverse of the Gauss-Newton information."""
    problem, solution = fit.problem, fit.solution
    rows = _gradient(fit, None)
    information = rows.T @ rows / noise + np.diag(1 / _prior_sd(fit) ** 2)
    # columns of unit length, so that amplitudes and exponents do not drown each other
    length = np.sqrt(np.diagonal(information))
    covariance = np.linalg.inv(information / np.outer(length, length)) / np.outer(length, length)
    if wanted.points is None:
        assert wanted.parameter is not None
        i = list(problem.law.parameters).index(wanted.parameter)
        directions = np.zeros((1, len(length)))
        directions[0, i] = 1.0
        if i < len(problem.law.amplitudes):
            stated = problem.stated(solution.exponents[None], np.ones((1, len(problem.law.amplitudes))))[1][0]
            directions[0, i] = stated[i]
    else:
        directions = wanted.weights @ _prediction_gradient(fit, wanted.points)
    stack = np.concatenate([directions, _gradient(fit, candidates)])
    return _Joint(stack @ covariance @ stack.T)


def _from_draws(fit: Fit, wanted: _Wanted, candidates: pd.DataFrame) -> _Joint:
    """From the fit's draws."""
    if wanted.points is None:
        assert wanted.parameter is not None
        own = fit.parameter_draws()[wanted.parameter].to_numpy(float)[:, None]
        if wanted.parameter in {one.name for one in fit.problem.law.exponents}:
            own = np.log(own)
    else:
        own = fit.draws(wanted.points) @ wanted.weights.T
    drawn = fit.draws(candidates)
    centre = fit.predict(candidates)["predicted"].to_numpy(float)
    drawn = (drawn - centre) / _slope(fit, centre) / _sigma(fit, centre)
    together = np.concatenate([own, drawn], axis=1)
    together = together[np.isfinite(together).all(axis=1)]
    return _Joint(np.cov(together, rowvar=False), CHANCE / len(together))


def _greedy(
    joint: _Joint, count: int, prices: Array, noise: float, runs: int, repeat: bool
) -> tuple[list[tuple[int, float, float]], list[tuple[int, float, float]]]:
    """(candidate, spread of the decision before, after) of each choice, and of all candidates before the first."""
    matrix = joint.matrix.copy()
    chosen: list[tuple[int, float, float]] = []
    ranking: list[tuple[int, float, float]] = []
    left = np.ones(len(prices), bool)
    for step in range(runs):
        variance = np.clip(np.diagonal(matrix)[:count], 0, None)
        cross, own = matrix[:count, count:], np.clip(np.diagonal(matrix)[count:], 0, None)
        shared = np.clip(cross**2 - joint.chance * variance[:, None] * own, 0, None)
        after = np.sqrt(np.clip(variance[:, None] - shared / (own + noise), 0, None)).mean(axis=0)
        before = float(np.sqrt(variance).mean())
        gain = (before - after) / prices
        if step == 0:
            ranking = [(int(i), before, float(after[i])) for i in np.argsort(-gain, kind="stable")]
        best = int(np.argmax(np.where(left, gain, -np.inf)))
        # shown as a chain: each starts where the one before it ended
        start = chosen[-1][2] if chosen else before
        chosen.append((best, start, start * float(after[best]) / before if before > 0 else 0.0))
        left[best] = repeat
        column = matrix[:, count + best]
        matrix = matrix - np.outer(column, column) / (matrix[count + best, count + best] + noise)
    return chosen, ranking


def _gradient(fit: Fit, table: pd.DataFrame | None) -> Array:
    """Derivative of the residuals by amplitudes and log exponents: [rows, P]; at the fitted rows if `table` is None."""
    problem, solution = fit.problem, fit.solution
    assert fit.design is not None
    axes = problem.axes if table is None else fit.design.axes(table)
    exponents = solution.exponents[None]
    columns = problem.law.basis(exponents, axes)[0]
    moved = problem.law.slope(exponents, solution.amplitudes[None], axes)[0] * solution.exponents
    law = columns @ solution.amplitudes
    if problem.scale == "log":
        sigma = law * (problem.sigma if table is None else float(np.median(problem.sigma)))
    elif table is None:
        sigma = problem.sigma
    else:
        sigma = _sigma(fit, law)
    return np.concatenate([columns, moved], axis=1) / np.broadcast_to(sigma, law.shape)[:, None]


def _prediction_gradient(fit: Fit, table: pd.DataFrame) -> Array:
    """Derivative of the predictions by amplitudes and log exponents: [rows, P]."""
    assert fit.design is not None
    solution, axes = fit.solution, fit.design.axes(table)
    exponents = solution.exponents[None]
    columns = fit.problem.law.basis(exponents, axes)[0]
    moved = fit.problem.law.slope(exponents, solution.amplitudes[None], axes)[0] * solution.exponents
    values = np.concatenate([columns, moved], axis=1)
    if fit.problem.scale == "logit":
        probability = 1 / (1 + np.exp(-columns @ solution.amplitudes))
        values = values * (probability * (1 - probability))[:, None]
    return values


def _prior_sd(fit: Fit) -> Array:
    """What is known without rows: no term is larger than what was measured, exponents lie within their bounds."""
    problem = fit.problem
    columns = np.abs(problem.law.basis(fit.solution.exponents[None], problem.axes)[0])
    size = np.abs(problem.measured).max()
    largest = columns.max(axis=0)
    low, high = problem.bounds
    return np.concatenate([size / np.where(largest > 0, largest, 1.0), (high - low) / 2])


def _noise(fit: Fit) -> float:
    """Variance of a residual; with a noise column never below what that states."""
    estimated = fit.objective / max(fit.dof, 1)
    return max(estimated, 1e-12) if fit.problem.relative else max(estimated, 1.0)


def _slope(fit: Fit, predicted: Array) -> Array:
    """Derivative of the prediction by the scale of the residuals (before sigma)."""
    if fit.problem.scale == "log":
        return predicted
    return predicted * (1 - predicted) if fit.problem.scale == "logit" else np.ones_like(predicted)


def _sigma(fit: Fit, predicted: Array) -> Array:
    """Sigma of a new run: that of a fitted row in the middle; relative residuals follow the prediction."""
    if fit.problem.scale == "plain" and fit.problem.relative:
        return predicted
    return np.full_like(predicted, float(np.median(fit.problem.sigma)))


def _price_column(candidates: pd.DataFrame, price: str | None) -> str:
    if price is not None:
        if price not in candidates.columns:
            present = ", ".join(str(name) for name in candidates.columns)
            raise UserError(f"the candidates have no column {price!r} (columns: {present})")
        return price
    found = [name for name in PRICES if name in candidates.columns]
    if not found:
        raise UserError(f"the candidates have no price; add a column {listed(PRICES[:2])}, or name one with price")
    return found[0]


def _place(fit: Fit, points: pd.DataFrame, row: int) -> str:
    assert fit.design is not None
    names = [name for name in fit.design.columns if name in points.columns]
    varied = [name for name in names if not constant(points[name])]
    return ", ".join(f"{name} {_number(points[name].iloc[row])}" for name in varied or names)


def _number(value: Any) -> str:
    """Whole numbers below a million as they are, others to four digits."""
    if isinstance(value, str) or value is None:
        return str(value)
    number = float(value)
    return f"{number:.0f}" if number.is_integer() and abs(number) < 1e6 else f"{number:.4g}"
