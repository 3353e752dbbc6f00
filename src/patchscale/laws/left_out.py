"""Levels of the axes left out one at a time and predicted from the rest: by laws, and by carrying a value forward."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from patchscale.errors import UserError
from patchscale.laws.descent import descend
from patchscale.laws.design import Design, labels_of
from patchscale.laws.forms import QUANTITIES, Array
from patchscale.laws.identifiability import refuse_what_cannot_be_told_apart
from patchscale.laws.result import Fit
from patchscale.laws.table import distinct, target_named, varying
from patchscale.laws.varpro import TINY, Problem, Solution

CARRIED = "last value carried forward"
"""The prediction without a law: the value at the next worse level of the axis, everything else equal."""
STARTS = 16
"""Scattered starts of a refit, beside the optimum of all rows."""
SAME_FIT = 1e-6
"""Searches whose objectives differ by no more than this share fit the rest equally well."""
SAME_ANSWER = 1e-3
"""If such searches disagree about a row by more than this share, the rest does not determine it."""
FOLLOWS = ("tokens", "flops_train_total")
"""Axes that follow from the others, so that no level of them is held out where the others are there."""


def hold_out_levels(
    table: pd.DataFrame, fits: Sequence[Fit], keys: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, dict[str, Array]]]:
    """Every level of every axis in turn: a table of hold-outs, and the errors on inside levels by form and axis."""
    columns = held_columns(table, fits)
    # for each axis the number of each row's level
    numbers = {column: level_numbers(table[column]) for column in columns}
    found: list[dict[str, Any]] = []
    errors: dict[str, dict[str, Array]] = {form: {} for form in (*(fit.form for fit in fits), CARRIED)}
    for column in columns:
        levels = distinct(table[column])
        sides = ["start", *["inside"] * (len(levels) - 2), "end"]
        if QUANTITIES[column].sign > 0:
            sides.reverse()
        missed = {fit.form: level_errors(fit, table.index, numbers[column]) for fit in fits}
        missed[CARRIED] = carried_errors(table, fits[0], column, numbers, keys)
        for form, error in missed.items():
            inner = np.array([sides[number] == "inside" for number in numbers[column]])
            errors[form][column] = np.where(inner, error, np.nan)
            for i, level in enumerate(levels):
                own = error[(numbers[column] == i) & np.isfinite(error)]
                if len(own):
                    place = {"form": form, "column": column, "value": level, "side": sides[i], "rows": len(own)}
                    found.append({**place, "rmse": float(np.sqrt(np.mean(own**2))), "bias": float(own.mean())})
    names = ["form", "column", "value", "side", "rows", "rmse", "bias"]
    return pd.DataFrame(found, columns=names), errors


def held_columns(table: pd.DataFrame, fits: Sequence[Fit]) -> list[str]:
    """Axes of any form that vary, without those that follow from the others."""
    axes = list(dict.fromkeys(axis.column for fit in fits for axis in fit.problem.law.axes))
    if "tokens" in axes:
        axes += [name for name in ("patch_size", "img_size") if name in table.columns and name not in axes]
    independent = [name for name in axes if name not in FOLLOWS]
    return varying(table, independent or axes)


def level_numbers(cells: pd.Series) -> NDArray[np.intp]:
    """The number of each cell's level, ascending; values within 5 % count as one, as in `distinct`."""
    levels = np.array(distinct(cells))
    return np.searchsorted(levels, pd.to_numeric(cells).to_numpy(float) * (1 + 1e-12), side="right") - 1


def level_errors(fit: Fit, index: pd.Index, numbers: NDArray[np.intp]) -> Array:
    """Predicted - measured of each row when all of its level is left out; see `errors_without`."""
    assert fit.design is not None
    order = index.get_indexer(fit.rows.index)
    errors = np.full(len(index), np.nan)
    for level in range(int(numbers.max()) + 1):
        held = numbers[order] == level
        if held.any():
            found = errors_without(fit.problem, fit.solution, fit.design, fit.rows, held)
            errors[order[held]] = found[held]
    return errors


def errors_without(
    problem: Problem, solution: Solution, design: Design, rows: pd.DataFrame, held: NDArray[np.bool_]
) -> Array:
    """Predicted - measured of the rows `held` [n] by a fit of the others; `solution` is that of all. [n].

    NaN in the others; in all if the rest cannot support the law or leaves the prediction of any open; and in rows of a
    group or factor value that only held rows have.
    """
    errors = np.full(len(rows), np.nan)
    if not _supports(problem, design, rows[~held]):
        return errors
    predicted, measured = _refit(problem, solution, ~held), problem.measured
    keys = [labels_of(rows, design.group_columns), *(labels_of(rows, [one.column]) for one in design.factors)]
    for labels in keys:
        seen = {label for label, out in zip(labels, held, strict=True) if not out}
        held = held & np.array([label in seen for label in labels])
    if not np.isfinite(predicted[held]).all():
        return errors
    if problem.scale == "logit":
        predicted, measured = 1 / (1 + np.exp(-predicted)), 1 / (1 + np.exp(-measured))
    errors[held] = (predicted - measured)[held]
    return errors


def _supports(problem: Problem, design: Design, kept: pd.DataFrame) -> bool:
    """Whether the rows kept could have been fitted on their own."""
    if len(kept) <= problem.num_parameters:
        return False
    try:
        refuse_what_cannot_be_told_apart(kept, kept.head(0), design.base, design.base.name)
    except UserError:
        return False
    return True


def _refit(problem: Problem, solution: Solution, kept: NDArray[np.bool_]) -> Array:
    """The law fitted to the rows kept, at all rows; NaN in rows that equally good fits disagree about.

    So it is where E, C and c are to follow from two image sizes: any c fits as well, and the third is anyone's guess.
    """
    rest = problem.part(kept)
    low, high = problem.bounds
    scattered = low + (high - low) * np.random.default_rng(0).random((STARTS, len(low)))
    found = descend(rest, np.concatenate([np.log(solution.exponents)[None], scattered]))
    objective = found.at.objective
    best = int(np.argmin(objective))
    equal = objective <= objective[best] * (1 + SAME_FIT) + TINY * rest.num_points
    basis = problem.law.basis(np.exp(found.places[equal]), problem.axes)
    answers = np.einsum("gnk,gk->gn", basis, found.at.amplitudes[equal])
    predicted = problem.model(np.exp(found.places[best]), found.at.amplitudes[best])
    size = np.maximum(np.abs(predicted), 1.0) if problem.scale == "logit" else np.abs(predicted)
    return np.where(np.ptp(answers, axis=0) <= SAME_ANSWER * size, predicted, np.nan)


def carried_errors(
    table: pd.DataFrame, fit: Fit, column: str, numbers: dict[str, NDArray[np.intp]], keys: Sequence[str]
) -> Array:
    """Error of each row if it had the value of the next worse level, everything else equal; NaN without such a row."""
    target = target_named(fit.target)
    values = target.values(table).to_numpy(float)
    others = [other for other in numbers if other != column]
    places = list(zip(*(numbers[other] for other in others), labels_of(table, keys), strict=True))
    worse = 1 if QUANTITIES[column].sign > 0 else -1
    by_place: dict[tuple[Any, ...], list[float]] = {}
    for place, number, value in zip(places, numbers[column], values, strict=True):
        by_place.setdefault((*place, int(number)), []).append(value)
    carried = [
        np.mean(by_place.get((*place, int(number) + worse), [np.nan]))
        for place, number in zip(places, numbers[column], strict=True)
    ]
    return np.array(carried) - values
