"""Named checks of a joint fit; enter a new one in `JOINT_CHECKS`. What curves share is in `findings.py`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t as t_distribution

from patchscale.laws import findings
from patchscale.laws.bootstrap import MIN_CLUSTERS, Bootstrap
from patchscale.laws.design import Design
from patchscale.laws.findings import Check, Finding
from patchscale.laws.forms import Array
from patchscale.laws.identifiability import collinear_pairs, dependent_axis
from patchscale.laws.table import Target, listed
from patchscale.laws.uncertainty import Conditioning, Interval
from patchscale.laws.varpro import Problem, Solution

NEARLY_COLLINEAR = 0.8
"""Correlation of the logarithms of two axes that is warned of (more than 0.95 is refused)."""
MIN_FAMILY_ROWS = 3


@dataclass(frozen=True)
class AxisHoldOut:
    """The end of one axis, left out and predicted from the rest."""

    column: str
    value: float
    rows: int
    rmse: float
    """Root mean square error over the rows held out, in units of the target."""
    bias: float
    """Mean of predicted - measured."""
    spread: float
    """Standard deviation of the rows held out: what predicting their own mean would miss by."""


@dataclass(frozen=True)
class JointEvidence:
    """All that checks look at."""

    design: Design
    problem: Problem
    solution: Solution
    intervals: Mapping[str, Interval]
    conditioning: Conditioning
    rows: pd.DataFrame
    families: Sequence[str]
    """The family or curve of each row."""
    target: Target
    mixed: list[str]
    holdouts: tuple[AxisHoldOut, ...]
    bootstrap: Bootstrap | None

    @property
    def residuals(self) -> Array:
        """(law - measured) on the scale of the fit."""
        fitted = self.problem.model(self.solution.exponents, self.solution.amplitudes)
        if self.problem.scale == "log":
            return np.log(fitted / self.problem.measured) / self.problem.sigma
        return (fitted - self.problem.measured) / self.problem.sigma


def run_joint_checks(evidence: JointEvidence) -> tuple[Check, ...]:
    """Every check of `JOINT_CHECKS`, in its order."""
    return tuple(Check(code, *check(evidence)) for code, check in JOINT_CHECKS.items())


def _trend(e: JointEvidence) -> Finding:
    law = e.problem.law
    terms = [name for name in law.amplitudes if not name.startswith((law.floor, "+"))]
    values = dict(zip(law.amplitudes, e.solution.amplitudes, strict=True))
    absent = [name for name in terms if values[name] == 0]
    if len(absent) == len(terms):
        return "fail", "every term is 0: nothing in these rows falls with the axes"
    if absent:
        verb = "is" if len(absent) == 1 else "are"
        return "warn", f"{listed(absent)} {verb} 0: these rows show no such effect, and its exponent means nothing"
    return "ok", "every term is above 0"


def _mixed(e: JointEvidence) -> Finding:
    if e.mixed:
        mixed = findings.differing(e.rows, e.mixed)
        return "fail", f"rows differ in {mixed}, which the law does not describe; use groups or factors"
    return "ok", "what varies beside the axes has its own floor or factor"


def _levels(e: JointEvidence) -> Finding:
    return findings.levels(e.rows, e.design.base)


def _degrees_of_freedom(e: JointEvidence) -> Finding:
    least = max(2, e.problem.num_parameters // 2)
    return findings.degrees_of_freedom(e.problem, least=least, remedy="add runs or use a smaller form")


def _collinear(e: JointEvidence) -> Finding:
    pairs = collinear_pairs(e.rows, e.design.base, NEARLY_COLLINEAR)
    if pairs:
        text = "; ".join(f"{first} and {second} ({rho:+.2f})" for first, second, rho in pairs)
        first, second, _ = pairs[0]
        return "warn", f"axes vary together: {text}; run several {first} at one {second} to tell them apart"
    dependent = dependent_axis(e.rows, e.design.base, NEARLY_COLLINEAR)
    if dependent:
        return "warn", f"{dependent[0]} all but follows from the other axes (correlation {dependent[1]:.2f})"
    if len(e.design.base.axes) == 1:
        return "n/a", "one axis"
    return "ok", f"no two axes correlate beyond {NEARLY_COLLINEAR:g} in their logarithms"


def _weak_exponent(e: JointEvidence) -> Finding:
    return findings.weak_exponents(e.design.base, e.intervals, points="these rows")


def _at_bound(e: JointEvidence) -> Finding:
    return findings.parameters_at_bounds(e.problem, e.solution, no_floor="these rows show no floor")


def _conditioning(e: JointEvidence) -> Finding:
    return findings.conditioning(e.conditioning)


def _floor_and_resolution(e: JointEvidence) -> Finding:
    return e.design.base.floor_trade_off(e.rows)


def _starts(e: JointEvidence) -> Finding:
    return findings.starts(e.solution, least=0.1)


def _clusters(e: JointEvidence) -> Finding:
    b = e.bootstrap
    if b is None:
        return "n/a", "the intervals are profiles"
    text = f"{b.clusters} clusters: {b.clustered_by}"
    if "fewer than" in b.clustered_by:
        return "warn", f"residuals of one curve are taken as independent: {text}; intervals may be too narrow"
    if b.clusters < 2 * MIN_CLUSTERS:
        return "warn", f"{text}; intervals from fewer than {2 * MIN_CLUSTERS} clusters are rough, add curves"
    return "ok", text


def _residual_pattern(e: JointEvidence) -> Finding:
    """A family whose residuals lean to one side (t test, Bonferroni)."""
    names = list(dict.fromkeys(e.families))
    families = np.array(e.families, dtype=object)
    tested = [name for name in names if (families == name).sum() >= MIN_FAMILY_ROWS]
    if len(tested) < 2:
        return "n/a", f"needs two families or curves with {MIN_FAMILY_ROWS} rows or more"
    residuals = e.residuals
    spread = np.sqrt(np.sum(residuals**2) / max(e.problem.num_points - e.problem.num_parameters, 1))
    leaning = []
    for name in tested:
        own = residuals[families == name]
        score = abs(own.mean()) / max(spread / np.sqrt(len(own)), 1e-300)
        chance = 2 * float(t_distribution.sf(score, max(e.problem.num_points - e.problem.num_parameters, 1)))
        if chance * len(tested) < 0.05 and spread > 1e-9:
            leaning.append((chance, f"{name} ({'above' if own.mean() < 0 else 'below'} the law)"))
    if leaning:
        shown = [text for _, text in sorted(leaning)[:4]]
        return (
            "warn",
            f"residuals lean to one side in {listed(shown)}; give each its own floor with groups, or a factor",
        )
    return "ok", f"residuals of {len(tested)} families or curves scatter about the law"


def _position_table(e: JointEvidence) -> Finding:
    """A learned position table has tokens x width entries: counted in N it ties N to the patch size."""
    rows = e.rows
    if "params_backbone" not in {axis.column for axis in e.design.base.axes}:
        return "n/a", "the law has no model size"
    advice = "count params_backbone without the position table"
    for name in ("params_includes_pos_embed", "pos_embed_counted"):
        if name in rows.columns and rows[name].fillna(False).astype(bool).any():
            return "warn", f"column {name} says that the position table is counted in N; {advice}"
    tokens = _tokens(rows)
    if tokens is None:
        return "n/a", "needs tokens, or patch_size and img_size"
    if {"params_total", "embed_dim"} <= set(rows.columns):
        spare = (rows["params_total"] - rows["params_backbone"]).to_numpy(float)
        table = tokens * rows["embed_dim"].to_numpy(float)
        learned = (
            rows["pos_embed"].astype(str).str.startswith("learn").to_numpy()
            if "pos_embed" in rows.columns
            else np.ones(len(rows), bool)
        )
        short = learned & (spare < 0.99 * table)
        if short.any():
            return (
                "warn",
                f"params_total - params_backbone is less than a position table in {short.sum()} rows; {advice}",
            )
    if "model" in rows.columns:
        for model, group in rows.assign(_tokens=tokens).groupby("model"):
            sizes = group.drop_duplicates("_tokens").sort_values("_tokens")
            steps = np.diff(sizes["params_backbone"].to_numpy(float))
            if len(steps) and (steps > 0).all():
                return "warn", f"params_backbone of {model} grows with the tokens, as a position table does; {advice}"
    return "ok", "params_backbone does not grow with the tokens"


def _tokens(rows: pd.DataFrame) -> Array | None:
    if "tokens" in rows.columns and rows["tokens"].notna().all():
        return rows["tokens"].to_numpy(float)
    if {"patch_size", "img_size"} <= set(rows.columns):
        return ((rows["img_size"] / rows["patch_size"]) ** 2).to_numpy(float)
    return None


def _holdout(e: JointEvidence) -> Finding:
    if not e.holdouts:
        return "n/a", "needs more values of some axis than the law does"
    unit, factor = (" points", 100.0) if e.target.is_error else ("", 1.0)
    texts = [f"{h.column} {h.value:g} ({h.rows} rows) missed by {factor * h.rmse:.3g}{unit} RMS" for h in e.holdouts]
    worse = [h.column for h in e.holdouts if h.rows > 2 and h.rmse > h.spread]
    if worse:
        return "warn", f"no better than the mean of what was held out along {listed(worse)}: {'; '.join(texts)}"
    return "ok", f"predicted from the rest: {'; '.join(texts)}"


def _extrapolation(e: JointEvidence) -> Finding:
    parts = [f"{column} {low:g} to {high:g}" for column, (low, high) in e.design.ranges.items()]
    return "ok", f"measured for {', '.join(parts)}; predictions outside are marked with the axes they leave"


JOINT_CHECKS: dict[str, Callable[[JointEvidence], Finding]] = {
    "trend": _trend,
    "mixed": _mixed,
    "levels": _levels,
    "dof": _degrees_of_freedom,
    "collinear": _collinear,
    "weak-exponent": _weak_exponent,
    "at-bound": _at_bound,
    "conditioning": _conditioning,
    "floor-resolution": _floor_and_resolution,
    "starts": _starts,
    "clusters": _clusters,
    "residual-pattern": _residual_pattern,
    "position-table": _position_table,
    "holdout": _holdout,
    "extrapolation": _extrapolation,
}
