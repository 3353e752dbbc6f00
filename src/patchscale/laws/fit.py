"""Fit a law to measured curves: rows in, a frozen result with intervals and named checks out. No torch.

The residuals are relative, (law - value) / value, and their squares are summed. Unlike differences of logarithms this
keeps the law linear in its amplitudes, so they are solved for exactly; on the founding study's curves the exponents of
the two agree within 0.5 %. With a `noise` column the residuals are (law - value) / noise instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from patchscale.errors import UserError
from patchscale.laws.checks import Evidence, HoldOut, run_checks
from patchscale.laws.findings import Check, differing
from patchscale.laws.forms import law_named
from patchscale.laws.identifiability import refuse_too_few_levels
from patchscale.laws.joint import FitOptions, fit_joint
from patchscale.laws.protocols import BY, UnlikeProtocols, refuse_unlike
from patchscale.laws.result import Estimate, Fit, estimates_of
from patchscale.laws.table import (
    PROTOCOL_COLUMNS,
    curve_columns,
    describe_curve,
    known_noise,
    label_curves,
    measured_values,
    plain,
    require_columns,
    shorten,
    split_usable,
    target_named,
    undescribed_columns,
)
from patchscale.laws.uncertainty import Profile, conditioning
from patchscale.laws.varpro import Problem, solve

__all__ = ["Check", "Estimate", "Fit", "FitList", "HoldOut", "Refused", "fit_curves", "fit_law"]

STARTS = 16
"""Scattered starts of a curve."""
MOST_EXPONENTS = 3
"""More are not fitted to curves one by one."""
HOLDOUT_STARTS = 4


@dataclass(frozen=True)
class Refused:
    """A curve that could not be fitted, and what to run next."""

    label: str
    curve: dict[str, Any]
    reason: str
    is_unlike: bool = False
    """Whether its runs are of unlike protocols, which no further run mends."""


class FitList(list[Fit]):
    """The fits of a table, with the curves that were refused and all rows that were left out."""

    def __init__(self, fits: Sequence[Fit], refused: Sequence[Refused], dropped: pd.DataFrame) -> None:
        super().__init__(fits)
        self.refused = tuple(refused)
        self.dropped = dropped

    def why_empty(self) -> str:
        """Why nothing could be fitted, with what to run next, on one line."""
        if not self.refused:
            reasons = shorten(self.dropped["reason"]) if len(self.dropped) else "the table is empty"
            return f"no row can be fitted: {reasons}"
        more = f"; and {len(self.refused) - 3} more" if len(self.refused) > 3 else ""
        return "no curve could be fitted: " + " | ".join(one.reason for one in self.refused[:3]) + more


def fit_law(
    table: pd.DataFrame,
    *,
    form: str = "patch",
    target: str = "loss",
    groups: Sequence[str] = (),
    factors: Sequence[str] = (),
    noise: str | None = None,
    residuals: str | None = None,
    huber: float | None = None,
    cluster_by: Sequence[str] | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    allow_mixed: bool = False,
    mix_protocols: bool = False,
    label: str | None = None,
) -> Fit:
    """Fit one law to one curve (form "patch"), or to many curves at once.

    `table` has a row per run: the axes of the law (`patch_size` in px, `img_size` in px, `params_backbone`, ...) and
    `test_loss`, or `metric` (fraction) for the targets "error" and "logit-error". Rows whose `status` is not done or
    that lack a value are dropped with a reason. Rows at one place are replicates. `noise` names a column with a
    standard deviation of the target that is there at least (rounding, reading, seeds): it weights the rows, and profile
    intervals never rest on less.

    Joint fits: `groups` are columns whose values (families, recipes) have a floor of their own, and a model-size term
    where the rows allow; exponents are shared. `factors` are columns that multiply the law by a number per value, or,
    written `+column`, add one. `residuals` are differences of logarithms ("log") or "relative"; `huber` is where
    squares turn into absolute values. Intervals are profiles (one curve, and few points with few exponents) or a
    bootstrap of `draws` draws, with noise that rows share by the columns `cluster_by` (default: the groups and the
    columns that tell curves apart).

    Raises `UserError` for missing columns, rows that cannot support the law (saying which to run next), values that are
    not positive, and rows that differ in what the law does not describe unless `allow_mixed`, or `mix_protocols` where
    that is how they were measured, or how long or with what settings they were trained (`UnlikeProtocols`).
    """
    law, goal = law_named(form), target_named(target)
    for name, columns in (("groups", groups), ("factors", factors)):
        if isinstance(columns, str):
            raise UserError(f"{name}={columns!r} is one text; give a list of columns, such as [{columns!r}]")
    options = FitOptions(
        law=law,
        target=goal,
        groups=groups,
        factors=factors,
        noise=noise,
        residuals=residuals,
        huber=huber,
        cluster_by=cluster_by,
        draws=draws,
        seed=seed,
        level=level,
        allow_mixed=allow_mixed,
        mix_protocols=mix_protocols,
    )
    if not options.as_curve:
        return fit_joint(table, options, label=label)
    require_columns(table, law, goal, [noise] if noise else [])
    rows, dropped = split_usable(table, law, goal)
    curve = describe_curve(rows, [])
    return _fit_one(rows, dropped, options, curve, label or label_curves([curve])[0])


def fit_curves(
    table: pd.DataFrame,
    *,
    form: str = "patch",
    target: str = "loss",
    by: Sequence[str] | None = None,
    level: float = 0.95,
    noise: str | None = None,
    allow_mixed: bool = False,
    mix_protocols: bool = False,
    refuse_alone: bool = False,
) -> FitList:
    """Fit one law to every curve of a table; seeds are replicates.

    Curves are told apart by the columns `by`; by default those of study, task, dataset, panel, model, head, img_size,
    recipe, pos_embed (and metric_name for the error) that vary, to which `+column` adds one. The result is a list of
    fits; its `refused` names the curves that could not be fitted and `dropped` the rows left out.

    Raises `UserError` for mistakes that concern the whole table, such as a missing column, and `UnlikeProtocols` for
    curves whose runs were measured differently, or trained longer or with other settings than others, unless
    `mix_protocols`; with `refuse_alone` such a curve is among the `refused`, and the others are fitted. The list may be
    empty; `why_empty()` then says why.
    """
    law, goal = law_named(form), target_named(target)
    at_once = f"fit all rows at once with fit_law(table, form={law.name!r})"
    if len(law.exponents) > MOST_EXPONENTS:
        raise UserError(
            f"form {law.name!r} has {len(law.exponents)} exponents, curves one by one are fitted with at most "
            f"{MOST_EXPONENTS}; {at_once}"
        )
    if len(law.axes) > 1:
        raise UserError(f"form {law.name!r} has {len(law.axes)} axes, and a curve has one; {at_once}")
    options = FitOptions(
        law=law, target=goal, level=level, noise=noise, allow_mixed=allow_mixed, mix_protocols=mix_protocols
    )
    require_columns(table, law, goal, [noise] if noise else [])
    rows, dropped = split_usable(table, law, goal)
    columns = curve_columns(rows, goal, by)
    groups = _groups(rows, columns)
    curves = [describe_curve(group, columns) for group in groups]
    fits, refused = [], []
    for group, curve, label in zip(groups, curves, label_curves(curves, columns), strict=True):
        lost = _belonging(dropped, {name: curve[name] for name in columns})
        try:
            if options.as_curve:
                fits.append(_fit_one(group, lost, options, curve, label))
            else:
                fits.append(replace(fit_joint(group, options, label=label), curve=curve, dropped=lost))
        except UnlikeProtocols as error:
            if not refuse_alone:
                raise error.advising(BY) from None
            refused.append(Refused(label, curve, error.found, is_unlike=True))
        except UserError as error:
            refused.append(Refused(label, curve, str(error)))
    return FitList(fits, refused, dropped)


def fit_parts(table: pd.DataFrame, *, by: Sequence[str] = (), **options: Any) -> FitList:
    """`fit_law` for each part of a table that the columns `by` tell apart; for the whole table without them.

    The result is a list of fits; its `refused` names the parts that could not be fitted. A mistake that concerns the
    whole table raises `UserError`, as does a single part that is refused.
    """
    if not by:
        fit = fit_law(table, **options)
        return FitList([fit], [], fit.dropped)
    columns = curve_columns(table, target_named(options.get("target", "loss")), [name.removeprefix("+") for name in by])
    fits, refused = [], []
    for group in _groups(table, columns):
        curve = {name: plain(group[name].iloc[0]) for name in columns}
        label = ", ".join(str(value) for value in curve.values())
        try:
            fits.append(fit_law(group, **options, label=label))
        except UnlikeProtocols:
            raise
        except UserError as error:
            refused.append(Refused(label, curve, str(error)))
    dropped = [fit.dropped for fit in fits if len(fit.dropped)]
    return FitList(fits, refused, pd.concat(dropped) if dropped else table.head(0).assign(reason=""))


def _fit_one(rows: pd.DataFrame, dropped: pd.DataFrame, options: FitOptions, curve: dict[str, Any], label: str) -> Fit:
    law, target, level, noise = options.law, options.target, options.level, options.noise
    mixed = undescribed_columns(rows, law, target)
    of_protocol = set(mixed) <= set(PROTOCOL_COLUMNS)
    if mixed and not (options.allow_mixed or (of_protocol and options.mix_protocols)):
        if of_protocol:
            refuse_unlike(rows, mixed, label)
        raise UserError(
            f"{label}: the rows differ in {differing(rows, mixed)}, not in patch_size alone; "
            f"select one, group by {','.join(mixed)}, or allow mixed rows"
        )
    refuse_too_few_levels(rows, dropped, law, label)
    rows = rows.sort_values([axis.column for axis in law.axes], kind="stable")
    values, sigma = measured_values(rows, law, target, label), known_noise(rows, noise, label)
    axes = {axis.column: rows[axis.column].to_numpy(float) for axis in law.axes}
    problem = Problem(law, axes, values, values if sigma is None else sigma, relative=sigma is None)
    solution = solve(problem, starts=STARTS)
    profile = Profile.of(problem, solution, level=level)
    intervals = profile.intervals()
    condition = conditioning(problem, solution)
    holdout = _hold_out_smallest(problem, level)
    evidence = Evidence(problem, solution, profile.noise, intervals, condition, target, rows, holdout, mixed)
    return Fit(
        label=label,
        curve=curve,
        form=law.name,
        target=target.name,
        formula=law.formula,
        parameters=estimates_of(law.parameters, solution.parameters, intervals),
        level=level,
        rows=rows,
        dropped=dropped,
        checks=run_checks(evidence),
        starts_agreeing=solution.starts_agreeing,
        objective=solution.objective,
        dof=problem.num_points - problem.num_parameters,
        conventions={
            "patch_size": "side of a patch in pixels",
            "target": "1 - metric, a fraction" if target.is_error else "test_loss as recorded",
            "residuals": f"(law - value) / {noise}" if noise else "relative: (law - value) / value",
            "objective": "sum of squared residuals",
            "optimiser": f"variable projection, log grid and {solution.starts} starts",
            "intervals": f"{level:.0%} profile, F(1, {profile.noise.dof}) correction",
            "noise": f"estimated from {profile.noise.source}",
        },
        holdout=holdout,
        correlation=pd.DataFrame(condition.correlation, index=list(law.parameters), columns=list(law.parameters)),
        profile=profile,
        problem=problem,
        solution=solution,
    )


def _hold_out_smallest(problem: Problem, level: float) -> HoldOut | None:
    """Predict the smallest patch size from the others; None if too few would be left."""
    axis = problem.law.axes[0]
    places = problem.axes[axis.column]
    sizes = np.unique(places)
    if len(problem.law.axes) > 1 or len(sizes) <= axis.min_levels:
        return None
    kept = places > sizes[0]
    rest = problem.part(kept)
    profile = Profile.of(rest, solve(rest, starts=HOLDOUT_STARTS), level=level)
    smallest = {axis.column: sizes[:1]}
    interval = profile.prediction_interval(smallest, new_measurement=True)
    return HoldOut(
        patch_size=float(sizes[0]),
        measured=float(problem.measured[~kept].mean()),
        predicted=profile.predict(smallest),
        low=interval.low,
        high=interval.high,
        carried_forward=float(problem.measured[places == sizes[1]].mean()),
    )


def _groups(rows: pd.DataFrame, columns: list[str]) -> list[pd.DataFrame]:
    if not columns:
        return [rows] if len(rows) else []
    return [group for _, group in rows.groupby(columns, sort=False, dropna=False)]


def _belonging(dropped: pd.DataFrame, values: dict[str, Any]) -> pd.DataFrame:
    """Dropped rows that would have been in the curve with these values; empty cells match anything."""
    mask = pd.Series(True, index=dropped.index)
    for name, value in values.items():
        mask &= dropped[name].isna() | (dropped[name] == value)
    return dropped[mask]
