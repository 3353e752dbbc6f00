"""A fit in words, and as plain values for JSON."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from patchscale.laws.table import listed, plain

if TYPE_CHECKING:
    from patchscale.laws.result import Fit


def sentence(fit: "Fit") -> str:
    """What the fit says in one sentence, and the checks that it did not pass."""
    says = _curve_sentence(fit) if fit.design is None else _joint_sentence(fit)
    return f"{fit.label}: {says}{_caveats(fit)}"


def _curve_sentence(fit: "Fit") -> str:
    if fit.check("trend").state == "fail":
        return f"the {fit.quantity} does not fall with the patch size; the law has nothing to say here."
    large, small = _step_worth_naming(fit)
    table = fit.predict([large, small])
    before, after = table["predicted"]
    interval = f"[{fit.show(table['low'][1])}, {fit.show(table['high'][1])}]"
    change = f"halving the patch from {large:g} to" if large == 2 * small else f"going from a patch of {large:g} to"
    course = f"from {fit.show(before)} to {fit.show(after)} {interval}"
    if table["extrapolated"][1]:
        says = f"{change} {small:g} px, outside the measured range, takes the {fit.quantity} {course} by the law"
    else:
        says = f"in the fitted law {change} {small:g} px (both measured) takes the {fit.quantity} {course}"
    floor, exponent = fit.parameters["E"], fit.parameters["alpha"]
    return (
        f"{says}; the floor E is {fit.show(floor.value)} "
        f"[{fit.show(floor.low)}, {fit.show(floor.high)}], exponent alpha {exponent} "
        f"({len(fit.rows)} points, {fit.level:.0%} profile intervals)."
    )


def _joint_sentence(fit: "Fit") -> str:
    law = fit.problem.law
    if fit.check("trend").state == "fail":
        return f"the {fit.quantity} falls with none of the axes; the law has nothing to say here."
    exponents = [f"{e.name} {fit.parameters[e.name]}" for e in law.exponents]
    floors = [name for name in law.amplitudes if name.split("[")[0] == law.floor]
    floor = ""
    if len(floors) == 1 and fit.problem.scale != "logit":
        estimate = fit.parameters[floors[0]]
        floor = (
            f"; the floor {floors[0]} is {fit.show(estimate.value)} "
            f"[{fit.show(estimate.low)}, {fit.show(estimate.high)}]"
        )
    groups = f" in {len(fit.design.groups)} groups" if fit.design and fit.design.groups else ""
    scatter = np.sqrt(np.mean(fit.points()["residual"] ** 2))
    return (
        f"{fit.formula} describes the {fit.quantity} of {len(fit.rows)} runs{groups} to "
        f"{fit.show(float(scatter))} (root mean square), with {listed(exponents)}{floor} "
        f"({fit.level:.0%} {fit.interval_method} intervals)."
    )


def _step_worth_naming(fit: "Fit") -> tuple[float, float]:
    """The next halving below the smallest patch, or the last measured step where it cannot be halved."""
    sizes = sorted(set(fit.problem.axes["patch_size"]))
    return (sizes[0], sizes[0] / 2) if sizes[0] % 2 == 0 else (sizes[1], sizes[0])


def _caveats(fit: "Fit") -> str:
    curve = ("trend", "mixed", "weak-exponent", "at-bound", "lack-of-fit", "holdout")
    joint = ("trend", "mixed", "weak-exponent", "at-bound", "floor-resolution", "residual-pattern")
    told = [fit.check(code) for code in (curve if fit.design is None else joint)]
    return "".join(
        f" {check.message[0].upper()}{check.message[1:]}." for check in told if check.state in ("warn", "fail")
    )


def as_plain(fit: "Fit") -> dict[str, Any]:
    """Everything as plain values, for JSON; open ends are infinite (null in JSON) with the text beside them."""
    return {
        "label": fit.label,
        "curve": fit.curve,
        "form": fit.form,
        "formula": fit.formula,
        "target": fit.target,
        "sentence": str(fit),
        "parameters": {
            name: {
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "low_open": estimate.low_open,
                "high_open": estimate.high_open,
                "text": str(estimate),
            }
            for name, estimate in fit.parameters.items()
        },
        "correlation": {row: dict(values) for row, values in fit.correlation.to_dict("index").items()},
        "level": fit.level,
        "objective": fit.objective,
        "dof": fit.dof,
        "aicc": fit.aicc if math.isfinite(fit.aicc) else None,
        "starts_agreeing": fit.starts_agreeing,
        "holdout": None if fit.holdout is None else vars(fit.holdout),
        "checks": [vars(check) for check in fit.checks],
        "interval_method": fit.interval_method,
        "holdouts": [vars(one) for one in fit.holdouts],
        "conventions": fit.conventions,
        "points": fit.points().to_dict("records"),
        "dropped": _plain_records(fit.dropped),
    }


def _plain_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    names = [
        name for name in ("run_id", "model", "img_size", "patch_size", "seed", "status", "reason") if name in table
    ]
    return [{name: plain(row[name]) for name in names} for row in table.to_dict("records")]
