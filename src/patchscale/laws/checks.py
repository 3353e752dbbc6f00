"""Named checks of a curve: a code, a state, and a sentence that says what is wrong and what to do.

To add a check, write one function and enter it in `CHECKS`; what joint fits share is in `findings.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import comb

import numpy as np
import pandas as pd

from patchscale.laws import findings
from patchscale.laws.findings import Check, Finding
from patchscale.laws.forms import Array
from patchscale.laws.table import Target, listed, plain
from patchscale.laws.uncertainty import Conditioning, Interval, Noise
from patchscale.laws.varpro import Problem, Solution

MIN_LEVELS_FOR_RUNS = 8
"""With seven levels or fewer no arrangement of signs is rarer than 1 in 20."""


@dataclass(frozen=True)
class HoldOut:
    """The smallest patch size predicted from the others."""

    patch_size: float
    measured: float
    """Mean over replicates."""
    predicted: float
    low: float
    """Ends of the interval for a new single measurement."""
    high: float
    carried_forward: float
    """The value at the next larger patch size: what one predicts without any law."""


@dataclass(frozen=True)
class Evidence:
    """All that checks look at."""

    problem: Problem
    solution: Solution
    noise: Noise
    intervals: Mapping[str, Interval]
    conditioning: Conditioning
    target: Target
    rows: pd.DataFrame
    holdout: HoldOut | None
    mixed: list[str] = field(default_factory=list)

    @property
    def patch_sizes(self) -> Array:
        """Distinct values of the first axis, ascending."""
        return np.unique(self.problem.axes[self.problem.law.axes[0].column])

    def level_means(self, values: Array) -> Array:
        """Mean of `values` at each distinct place on the axes, in ascending order of the axis."""
        levels = self.problem.levels
        return np.bincount(levels, values) / np.bincount(levels)


def run_checks(evidence: Evidence) -> tuple[Check, ...]:
    """Every check of `CHECKS`, in its order."""
    return tuple(Check(code, *check(evidence)) for code, check in CHECKS.items())


def _trend(e: Evidence) -> Finding:
    flat = [
        name for name, value in zip(e.problem.law.amplitudes[1:], e.solution.amplitudes[1:], strict=True) if not value
    ]
    if flat:
        message = f"{' and '.join(flat)} is 0: smaller patches do not help in these rows, so the exponent means nothing"
        return "fail", message
    if e.problem.law.axes[0].column != "patch_size" or len(e.problem.law.axes) > 1:
        return "n/a", "only checked for curves in one axis"
    means, sizes = e.level_means(e.problem.measured), e.patch_sizes
    rises = [f"{small:g} is worse than {large:g}" for small, large, worse in _steps(sizes, means) if worse]
    if rises:
        message = f"not monotone: patch {'; patch '.join(rises)}; check these runs (longer training? more seeds?)"
        return "warn", message
    uncertain = [
        name for name in e.problem.law.amplitudes[1:] if e.intervals[name].low == 0 and not e.intervals[name].low_open
    ]
    if uncertain:
        return "warn", f"the fall is within the noise: {listed(uncertain)} may be 0; add seeds or patch sizes"
    return "ok", f"the {e.target.name} falls at every step to a smaller patch"


def _steps(sizes: Array, means: Array) -> list[tuple[float, float, bool]]:
    return [(sizes[i], sizes[i + 1], bool(means[i] > means[i + 1])) for i in range(len(sizes) - 1)]


def _levels(e: Evidence) -> Finding:
    return findings.levels(e.rows, e.problem.law)


def _degrees_of_freedom(e: Evidence) -> Finding:
    return findings.degrees_of_freedom(e.problem, least=2, remedy="add patch sizes or seeds")


def _weak_exponent(e: Evidence) -> Finding:
    points = f"{e.problem.num_points} points"
    return findings.weak_exponents(e.problem.law, e.intervals, points=points, remedy="; add patch sizes or seeds")


def _at_bound(e: Evidence) -> Finding:
    no_floor = "the data show no floor, so do not read the exponent as the law's"
    return findings.parameters_at_bounds(e.problem, e.solution, no_floor=no_floor)


def _conditioning(e: Evidence) -> Finding:
    return findings.conditioning(e.conditioning)


def _starts(e: Evidence) -> Finding:
    return findings.starts(e.solution, least=0.5)


def _replicates(e: Evidence) -> Finding:
    counts = np.bincount(e.problem.levels)
    if "seed" in e.rows.columns:
        columns = [*(axis.column for axis in e.problem.law.axes), "seed"]
        repeated = e.rows[e.rows.duplicated(columns, keep=False) & e.rows["seed"].notna()]
        if len(repeated):
            place = ", ".join(f"{name} {plain(repeated[name].iloc[0])}" for name in columns)
            return "warn", f"{place} occurs more than once: those runs differ in something that no column shows"
    if counts.max() == 1:
        return "warn", "one run per patch size: seed noise is not measured; run two more seeds"
    if counts.min() == 1:
        return "warn", f"several runs at {int((counts > 1).sum())} of {len(counts)} patch sizes only"
    return "ok", f"{counts.min()} to {counts.max()} runs per patch size"


def _lack_of_fit(e: Evidence) -> Finding:
    if e.noise.lack_of_fit_p is None:
        return "n/a", "needs several runs at some patch size, and more patch sizes than parameters"
    text = f"F test of misfit against seed noise: p = {e.noise.lack_of_fit_p:.2g}"
    if e.noise.source == "lack of fit":
        return "warn", f"the law does not follow the means of the seeds ({text}); intervals rest on the misfit"
    return "ok", text


def _residual_runs(e: Evidence) -> Finding:
    count = len(e.patch_sizes)
    if count < MIN_LEVELS_FOR_RUNS:
        return "n/a", f"needs {MIN_LEVELS_FOR_RUNS} patch sizes, here {count}"
    fitted = e.problem.model(e.solution.exponents, e.solution.amplitudes)
    residuals = e.level_means((fitted - e.problem.measured) / e.problem.sigma)
    signs = residuals > 0
    runs = 1 + int(np.sum(signs[1:] != signs[:-1]))
    chance = _chance_of_runs(int(signs.sum()), int((~signs).sum()), runs)
    text = f"{runs} runs of sign in {count} residuals, p = {chance:.2g}"
    return ("warn", f"residuals follow a pattern: {text}; the law's shape is wrong") if chance < 0.05 else ("ok", text)


def _chance_of_runs(positive: int, negative: int, runs: int) -> float:
    """Chance of so few runs in a random arrangement (Wald and Wolfowitz 1940)."""
    if not positive or not negative:
        return 1.0
    ways = 0
    for r in range(2, runs + 1):
        k, odd = divmod(r, 2)
        if odd:
            ways += comb(positive - 1, k) * comb(negative - 1, k - 1) + comb(positive - 1, k - 1) * comb(
                negative - 1, k
            )
        else:
            ways += 2 * comb(positive - 1, k - 1) * comb(negative - 1, k - 1)
    return ways / comb(positive + negative, positive)


def _holdout(e: Evidence) -> Finding:
    h = e.holdout
    if h is None:
        return "n/a", f"needs {e.problem.law.axes[0].min_levels + 1} patch sizes"
    text = (
        f"without patch {h.patch_size:g} the law predicts {h.predicted:.4g} [{h.low:.4g}, {h.high:.4g}], "
        f"measured {h.measured:.4g}; carrying the last value forward gives {h.carried_forward:.4g}"
    )
    if not h.low <= h.measured <= h.high:
        return "warn", f"missed: {text}"
    if abs(h.carried_forward - h.measured) < abs(h.predicted - h.measured):
        return "warn", f"no better than no law: {text}"
    return "ok", text


def _mixed(e: Evidence) -> Finding:
    if not e.mixed:
        return "ok", "nothing but the patch size varies among the recorded columns"
    mixed = findings.differing(e.rows, e.mixed)
    return "fail", f"rows differ in {mixed}; the effect of the patch size cannot be told from theirs"


def _extrapolation(e: Evidence) -> Finding:
    parts = []
    for axis in e.problem.law.axes:
        values = e.problem.axes[axis.column]
        parts.append(f"{axis.column} {values.min():g} to {values.max():g}")
    return "ok", f"measured for {', '.join(parts)}; predictions outside are marked as extrapolated"


CHECKS: dict[str, Callable[[Evidence], Finding]] = {
    "trend": _trend,
    "mixed": _mixed,
    "levels": _levels,
    "dof": _degrees_of_freedom,
    "weak-exponent": _weak_exponent,
    "at-bound": _at_bound,
    "conditioning": _conditioning,
    "starts": _starts,
    "replicates": _replicates,
    "lack-of-fit": _lack_of_fit,
    "residual-runs": _residual_runs,
    "holdout": _holdout,
    "extrapolation": _extrapolation,
}
