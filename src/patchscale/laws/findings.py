"""What a check is, and the findings that curves (`checks.py`) and joint fits (`joint_checks.py`) have in common.

States: ok, warn (read the numbers with care), fail (do not use them), n/a (the data cannot say; not the same as ok).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from patchscale.laws.forms import Law
from patchscale.laws.table import distinct, listed, shorten
from patchscale.laws.uncertainty import Conditioning, Interval
from patchscale.laws.varpro import Problem, Solution

WEAK_RATIO = 5.0
"""An exponent whose interval spans more than this factor is called weak."""
CONDITION_LIMIT = 30.0
"""Above this the parameters trade off (Belsley, Kuh and Welsch 1980 call 30 and more moderate to strong)."""
AT_BOUND = 1.01
"""The refinement stops just inside its box: an exponent within this factor of a bound is at it."""

Finding = tuple[str, str]
"""State and message."""


@dataclass(frozen=True)
class Check:
    """One named check of a fit."""

    code: str
    state: str
    """ok, warn, fail or n/a."""
    message: str


def levels(rows: pd.DataFrame, law: Law) -> Finding:
    """Distinct values of each axis, against those that are good to have."""
    counts = {axis.column: len(distinct(rows[axis.column])) for axis in law.axes}
    few = [
        f"{counts[axis.column]} values of {axis.column}, {axis.good_levels} or more are better"
        for axis in law.axes
        if counts[axis.column] < axis.good_levels
    ]
    if few:
        return "warn", "; ".join(few)
    return "ok", "; ".join(f"{count} values of {column}" for column, count in counts.items())


def degrees_of_freedom(problem: Problem, *, least: int, remedy: str) -> Finding:
    """Points minus parameters, of which there should be `least`."""
    points, parameters = problem.num_points, problem.num_parameters
    message = f"{points} points, {parameters} parameters: {points - parameters} degrees of freedom"
    if points - parameters < least:
        return "warn", f"{message}; intervals are very wide, {remedy}"
    return "ok", message


def weak_exponents(law: Law, intervals: Mapping[str, Interval], *, points: str, remedy: str = "") -> Finding:
    """Exponents whose intervals are open or wide; `points` is what cannot bound them."""
    weak: list[str] = []
    good: list[str] = []
    for name in (exponent.name for exponent in law.exponents):
        interval = intervals[name]
        open_end = interval.low_open or interval.high_open
        (weak if open_end or interval.high > WEAK_RATIO * interval.low else good).append(name)
    texts = {name: f"{name} {intervals[name]}" for name in (*weak, *good)}
    if weak:
        ranges = ", ".join(texts[name] for name in weak)
        return "warn", f"weak: {points} cannot bound {' or '.join(weak)}, here {ranges}{remedy}"
    return "ok", "bounded within a factor of five: " + ", ".join(texts[name] for name in good)


def parameters_at_bounds(problem: Problem, solution: Solution, *, no_floor: str) -> Finding:
    """Amplitudes at 0 and exponents at an end of their search; `no_floor` is what a floor at 0 means."""
    law, found = problem.law, []
    for name, value, free in zip(law.amplitudes, solution.amplitudes, problem.free, strict=True):
        if value == 0 and not free:
            found.append(f"{name} is at 0")
    for exponent, value in zip(law.exponents, solution.exponents, strict=True):
        if value < exponent.low * AT_BOUND:
            found.append(f"{exponent.name} is at its lower bound {exponent.low:g}")
        elif value > exponent.high / AT_BOUND:
            found.append(f"{exponent.name} is at its upper bound {exponent.high:g}")
    if not found:
        return "ok", "no parameter is at a bound"
    return "warn", listed(found) + (f"; {no_floor}" if f"{law.floor} is at 0" in found else "")


def conditioning(measured: Conditioning) -> Finding:
    """The condition number and the parameters that trade off."""
    weakest = listed(measured.weakest)
    text = f"condition number {measured.condition_number:.3g}, weakest direction {weakest}"
    if measured.condition_number > CONDITION_LIMIT:
        return "warn", f"{weakest} trade off: {text} (limit {CONDITION_LIMIT:g})"
    return "ok", text


def starts(solution: Solution, *, least: float) -> Finding:
    """The share of starts that reach the best objective, against the `least` that should."""
    share = solution.starts_agreeing
    message = f"{share:.0%} of {solution.starts} starts reach the best objective"
    return ("warn" if share < least else "ok"), message


def differing(rows: pd.DataFrame, columns: list[str]) -> str:
    """`model (a, b) and task (c, d)`: columns with their values."""
    return listed([f"{name} ({shorten(rows[name])})" for name in columns])
