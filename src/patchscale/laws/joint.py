"""Fit one law to many curves at once: several axes, groups, factors. Rows in, a `Fit` out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from patchscale.errors import UserError
from patchscale.laws.bootstrap import Bootstrap, disturbed, residuals_of
from patchscale.laws.descent import descend
from patchscale.laws.design import Design, labels_of, with_tokens
from patchscale.laws.findings import differing
from patchscale.laws.forms import QUANTITIES, Law
from patchscale.laws.identifiability import refuse_what_cannot_be_told_apart
from patchscale.laws.joint_checks import AxisHoldOut, JointEvidence, run_joint_checks
from patchscale.laws.left_out import errors_without, level_numbers
from patchscale.laws.protocols import refuse_unlike
from patchscale.laws.result import Fit, estimates_of
from patchscale.laws.table import (
    CURVE_COLUMNS,
    PROTOCOL_COLUMNS,
    Target,
    distinct,
    known_noise,
    measured_values,
    require_columns,
    split_usable,
    undescribed_columns,
    varying,
)
from patchscale.laws.uncertainty import Profile, conditioning
from patchscale.laws.varpro import Problem, Solution, solve

STARTS = 64
"""Scattered starts."""
PROFILE_POINTS = 15
"""Up to so many points intervals are profiles, if the law has at most two exponents."""
PROFILE_EXPONENTS = 2
PROFILE_AMPLITUDES = 5
"""Profiles try every subset of the amplitudes."""
HUBER_ROUNDS = 100
MOST_DRAWS = 100_000
"""Of a bootstrap: ends of a 95 % interval are settled long before, and each draw is a fit."""
MOST_NOISE = 50_000_000
"""Numbers of a bootstrap's noise, draws x rows: 0.4 GB an array, and a handful of them live at once."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How to fit, the same for all rows of a table."""

    law: Law
    target: Target
    groups: Sequence[str] = ()
    factors: Sequence[str] = ()
    noise: str | None = None
    residuals: str | None = None
    """log (the default) or relative; the logit has residuals of its own."""
    huber: float | None = None
    """Where squares turn into absolute values, in residual units (noise, or relative error)."""
    cluster_by: Sequence[str] | None = None
    draws: int = 1000
    seed: int = 0
    level: float = 0.95
    allow_mixed: bool = False
    """Rows may differ in what nothing describes."""
    mix_protocols: bool = False
    """Rows may differ in `PROTOCOL_COLUMNS`, which nothing describes."""

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise UserError(f"level={self.level} is not between 0 and 1; 0.95 is usual")
        if self.residuals not in (None, "log", "relative"):
            raise UserError(f"residuals={self.residuals!r} is not known; use log or relative")
        if self.huber is not None and not 0 < self.huber < np.inf:
            raise UserError(
                f"huber={self.huber} is not positive and finite; 1e-3 is usual for losses, or 1.345 with a noise column"
            )
        if not 20 <= self.draws <= MOST_DRAWS:
            few_or_many = "few for an interval" if self.draws < 20 else f"many, above {MOST_DRAWS}"
            raise UserError(f"draws={self.draws} are too {few_or_many}; 1000 is usual")
        if self.seed < 0:
            raise UserError(f"seed={self.seed} is negative; give 0 or a positive whole number")

    @property
    def as_curve(self) -> bool:
        """Whether this is a curve, fitted on its own (`fit.py`), and not a joint fit."""
        asked = self.groups or self.factors or self.target.logit or self.residuals == "log" or self.huber
        return self.law.one_curve and not asked

    @property
    def factor_columns(self) -> list[str]:
        """The columns of the factors, without the sign of those that add."""
        return [text.removeprefix("+") for text in self.factors]


def fit_joint(table: pd.DataFrame, options: FitOptions, *, label: str | None = None) -> Fit:
    """Fit one law to all rows of a table; see `fit_law`."""
    law, target = options.law, options.target
    table = with_tokens(table, law)
    wanted = [*([options.noise] if options.noise else []), *options.groups, *options.factor_columns]
    require_columns(table, law, target, [*wanted, *(options.cluster_by or [])])
    rows, dropped = split_usable(table, law, target)
    label = label or law.name
    mixed = _mixed_or_refused(rows, options, label)
    refuse_what_cannot_be_told_apart(rows, dropped, law, label)
    rows = rows.sort_values([axis.column for axis in law.axes], kind="stable")
    design = Design.of(rows, law, options.groups, options.factors)
    problem = problem_of(rows, design, options, label)
    if problem.num_points <= problem.num_parameters:
        raise UserError(
            f"{label}: {problem.num_points} rows cannot settle {problem.num_parameters} parameters of form "
            f"{law.name!r}; add at least {problem.num_parameters + 2 - problem.num_points} runs, or use fewer groups "
            "or a smaller form"
        )
    solution = solve(problem, starts=STARTS, seed=options.seed)
    weighted, as_squares, objective = problem, (problem, solution), solution.objective
    if options.huber is not None:
        weighted, solution = reweighted(problem, solution, options.huber)
        as_squares = pseudo_values(problem, solution, options.huber)
        objective = huber_objective(problem, solution, options.huber)
    profile, bootstrap, method = _uncertainty(*as_squares, rows, options)
    found = profile or bootstrap
    assert found is not None
    intervals = found.intervals()
    exponents, amplitudes = problem.stated(solution.exponents[None], solution.amplitudes[None])
    values = np.concatenate([amplitudes[0], exponents[0]])
    condition = conditioning(weighted, solution)
    evidence = JointEvidence(
        design=design,
        problem=weighted,
        solution=solution,
        intervals=intervals,
        conditioning=condition,
        rows=rows,
        families=labels_of(rows, list(options.groups) or _cluster_columns(rows, options)),
        target=target,
        mixed=mixed,
        holdouts=hold_outs(weighted, design, rows, solution),
        bootstrap=bootstrap,
    )
    names = design.law.parameters
    return Fit(
        label=label,
        curve={},
        form=law.name,
        target=target.name,
        formula=design.law.formula,
        parameters=estimates_of(names, values, intervals),
        level=options.level,
        rows=rows,
        dropped=dropped,
        checks=run_joint_checks(evidence),
        starts_agreeing=solution.starts_agreeing,
        objective=objective,
        huber=options.huber,
        dof=problem.num_points - problem.num_parameters,
        conventions=_conventions(design, options, solution, method),
        holdout=None,
        correlation=pd.DataFrame(condition.correlation, index=list(names), columns=list(names)),
        profile=profile,
        bootstrap=bootstrap,
        design=design,
        problem=weighted,
        solution=solution,
        holdouts=evidence.holdouts,
    )


def _mixed_or_refused(rows: pd.DataFrame, options: FitOptions, label: str) -> list[str]:
    """The columns that nothing describes; raises `UserError` unless they are allowed to vary."""
    law = options.law
    mixed = undescribed_columns(rows, law, options.target, [*options.groups, *options.factor_columns])
    if mixed and not options.allow_mixed:
        if set(mixed) <= set(PROTOCOL_COLUMNS):
            if options.mix_protocols:
                return mixed
            refuse_unlike(rows, mixed, label)
        raise UserError(
            f"{label}: the rows differ in {differing(rows, mixed)}, which no axis of form {law.name!r} describes; "
            f"select one, give each its own floor with groups={mixed}, name it in factors, or allow mixed rows"
        )
    return mixed


def _uncertainty(
    problem: Problem, solution: Solution, rows: pd.DataFrame, options: FitOptions
) -> tuple[Profile | None, Bootstrap | None, str]:
    """Profiles for few points and exponents, otherwise a bootstrap; and which, in words."""
    law = problem.law
    small = problem.num_points <= PROFILE_POINTS and len(law.exponents) <= PROFILE_EXPONENTS
    if small and len(law.amplitudes) <= PROFILE_AMPLITUDES:
        profile = Profile.of(problem, solution, level=options.level)
        return profile, None, f"{options.level:.0%} profile, F(1, {profile.noise.dof}) correction"
    _refuse_draws(options, len(rows))
    clusters, clustered_by = clusters_of(rows, options)
    bootstrap = Bootstrap.of(
        problem,
        solution,
        clusters=clusters,
        clustered_by=clustered_by,
        draws=options.draws,
        level=options.level,
        seed=options.seed,
    )
    shared = f", which share {bootstrap.shared:.0%} of the noise" if bootstrap.shared > 0 else ""
    method = (
        f"{options.level:.0%} bootstrap, {options.draws} draws (seed {options.seed}), {bootstrap.clusters} clusters: "
        f"{bootstrap.clustered_by}{shared}"
    )
    return None, bootstrap, method


def fewest_draws(level: float) -> int:
    """So many draws have an interval of this level between their smallest and their largest: 39 for 95 %."""
    return math.ceil(2 / (1 - level) - 1 - 1e-9)


def _refuse_draws(options: FitOptions, num_rows: int) -> None:
    """Raise `UserError` for too few draws for the level, or more noise than memory should hold."""
    least, most = fewest_draws(options.level), MOST_NOISE // num_rows
    if options.draws < least:
        raise UserError(
            f"draws={options.draws} are too few for {100 * options.level:g} % intervals; give {least} or more, "
            "1000 is usual, or a lower level"
        )
    if options.draws > most:
        raise UserError(
            f"draws={options.draws} of {num_rows} rows are more than {MOST_NOISE:,} numbers of noise; give at most "
            f"{most} draws"
        )


def problem_of(rows: pd.DataFrame, design: Design, options: FitOptions, label: str) -> Problem:
    """The rows as points, on the scale of the residuals."""
    target = options.target
    values, noise = measured_values(rows, design.base, target, label), known_noise(rows, options.noise, label)
    scale = "logit" if target.logit else {"relative": "plain"}.get(options.residuals or "log", "log")
    if scale == "logit":
        sigma = np.ones_like(values) if noise is None else noise / (values * (1 - values))
        measured = np.log(values / (1 - values))
    elif scale == "log":
        sigma = np.ones_like(values) if noise is None else noise / values
        measured = values
    else:
        sigma = values if noise is None else noise
        measured = values
    return Problem(
        design.law, design.axes(rows), measured, sigma, relative=noise is None, scale=scale, scales=design.scales
    )


def reweighted(problem: Problem, solution: Solution, delta: float) -> tuple[Problem, Solution]:
    """Huber's loss by reweighting: the problem with its final weights, and its solution.

    A residual beyond `delta` counts linearly, which is a square with the weight delta / |residual| at the optimum.
    """
    weighted, place = problem, np.log(solution.exponents)
    for _ in range(HUBER_ROUNDS):
        found = descend(weighted, place[None])
        residuals = np.abs(found.at.residuals[0]) * weighted.sigma / problem.sigma
        weights = np.minimum(1.0, delta / np.maximum(residuals, 1e-300))
        moved = float(np.abs(found.places[0] - place).max())
        place = found.places[0]
        before = weighted.sigma
        weighted = replace(problem, sigma=problem.sigma / np.sqrt(weights))
        if moved < 1e-8 and np.allclose(before, weighted.sigma, rtol=1e-6):
            break
    found = descend(weighted, place[None])
    return weighted, replace(
        solution,
        exponents=np.exp(found.places[0]),
        amplitudes=found.at.amplitudes[0],
        objective=float(found.at.objective[0]),
    )


def huber_objective(problem: Problem, solution: Solution, delta: float) -> float:
    """Sum over rows of r^2 up to `delta`, and of 2 delta |r| - delta^2 beyond (twice Huber's loss)."""
    residuals = np.abs(residuals_of(problem, problem.model(solution.exponents, solution.amplitudes)))
    return float(np.where(residuals <= delta, residuals**2, 2 * delta * residuals - delta**2).sum())


def pseudo_values(problem: Problem, solution: Solution, delta: float) -> tuple[Problem, Solution]:
    """Measurements whose least squares have Huber's optimum and, to first order, its uncertainty; with their solution.

    A residual becomes psi(residual) / m: cut at `delta`, and divided by the share of those that are not cut
    (Huber 1981, section 7.10; m is at least 1 / n).
    """
    fitted = problem.model(solution.exponents, solution.amplitudes)
    residuals = residuals_of(problem, fitted)
    uncut = max(float(np.mean(np.abs(residuals) <= delta)), 1 / len(residuals))
    pseudo = np.clip(residuals, -delta, delta) / uncut
    measured = disturbed(problem, fitted, pseudo[None])[0]
    return replace(problem, measured=measured), replace(solution, objective=float(pseudo @ pseudo))


def _cluster_columns(rows: pd.DataFrame, options: FitOptions) -> list[str]:
    if options.cluster_by is not None:
        return list(options.cluster_by)
    return varying(rows, list(dict.fromkeys([*options.groups, *CURVE_COLUMNS, "eval_protocol"])))


def clusters_of(rows: pd.DataFrame, options: FitOptions) -> tuple[NDArray[np.intp], str]:
    """The number of each row's cluster, and what clusters are: by default curves and groups."""
    columns = _cluster_columns(rows, options)
    if not columns:
        return np.arange(len(rows)), "row by row"
    labels = labels_of(rows, columns)
    numbers = {name: i for i, name in enumerate(dict.fromkeys(labels))}
    return np.array([numbers[name] for name in labels]), " x ".join(columns)


def hold_outs(problem: Problem, design: Design, rows: pd.DataFrame, solution: Solution) -> tuple[AxisHoldOut, ...]:
    """The end of each axis that one extrapolates to (smallest patches, largest models), predicted from the rest.

    An axis is left out where the rest cannot support the law, or leaves its prediction open (`left_out.py`).
    """
    found = []
    for axis in design.base.axes:
        numbers = level_numbers(rows[axis.column])
        rising = axis.column in QUANTITIES and QUANTITIES[axis.column].sign > 0
        end = 0 if rising else int(numbers.max())
        error = errors_without(problem, solution, design, rows, numbers == end)
        held = np.isfinite(error)
        if not held.any():
            continue
        measured = problem.measured[held]
        if problem.scale == "logit":
            measured = 1 / (1 + np.exp(-measured))
        found.append(
            AxisHoldOut(
                column=axis.column,
                value=distinct(rows[axis.column])[end],
                rows=int(held.sum()),
                rmse=float(np.sqrt(np.mean(error[held] ** 2))),
                bias=float(np.mean(error[held])),
                spread=float(np.std(measured)),
            )
        )
    return tuple(found)


def _conventions(design: Design, options: FitOptions, solution: Solution, method: str) -> dict[str, str]:
    target = options.target
    unit = options.noise or "1"
    residuals = {
        "logit": f"(law - logit of value) / {unit}",
        "relative": f"(law - value) / {options.noise or 'value'}",
        "log": f"(log law - log value) / {unit}" if not options.noise else f"(log law - log value) x value / {unit}",
    }
    kind = "logit" if target.logit else options.residuals or "log"
    columns = {
        axis.column: QUANTITIES[axis.column].meaning if axis.column in QUANTITIES else "as recorded"
        for axis in design.base.axes
    }
    return {
        **columns,
        "target": ("logit of " if target.logit else "")
        + ("1 - metric, a fraction" if target.is_error else "test_loss as recorded"),
        "residuals": residuals[kind],
        **(_conventions_of_huber(options.huber) if options.huber else {"objective": "sum of squared residuals"}),
        "optimiser": f"variable projection, {solution.starts} scattered starts and the best trial points",
        "amplitudes": "for axes in stated units",
        "intervals": method,
        "groups": ", ".join(design.groups) or "none",
        "factors": ", ".join(f"{f.column} ({f.baseline} is 1)" for f in design.factors) or "none",
    }


def _conventions_of_huber(delta: float) -> dict[str, str]:
    return {
        "objective": f"sum of twice Huber's losses, delta {delta:g}: squared residuals, linear beyond it",
        "aicc": "none: it is made for least squares, and rows of unlike weight do not count as points",
    }
