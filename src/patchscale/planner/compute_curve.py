"""The error of one patch size along its training compute: what schedules are planned with.

    E(C) = a (C + d)^-b + c        C training FLOPs, c the ceiling of this patch size, d what no training is worth

The form of Zhai et al. (arXiv 2106.04560), used per patch size for schedules by arXiv 2311.03233.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from patchscale.errors import UserError
from patchscale.laws.findings import differing
from patchscale.laws.forms import Array, Axes, Axis, Exponent, Law
from patchscale.laws.table import CURVE_COLUMNS, refuse_extremes, refuse_percentages, varying
from patchscale.laws.varpro import Problem, solve

MIN_POINTS = 5
"""Checkpoints per patch size: four parameters, and one to see whether they fit."""


@dataclass(frozen=True, kw_only=True)
class ComputeCurve:
    """The curve of one patch size. The steeper it is at an error, the cheaper it is to go on from there with it."""

    patch_size: int
    a: float
    b: float
    c: float
    d: float = 0.0

    def error(self, flops: float) -> float:
        """After this much training; infinite at nothing without d."""
        return self.a * (flops + self.d) ** -self.b + self.c if flops + self.d > 0 else float("inf")

    def flops(self, error: float) -> float:
        """Training needed for this error, from scratch; infinite where it is never reached."""
        if error <= self.c:
            return float("inf")
        return max(0.0, ((error - self.c) / self.a) ** (-1 / self.b) - self.d)

    def log_slope(self, error: Array) -> Array:
        """Logarithm of the fall of the error per FLOP where the curve passes `error`; -inf at and below its ceiling."""
        above = np.asarray(error, dtype=float) - self.c
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.log(self.b) - np.log(self.a) / self.b + (1 + 1 / self.b) * np.log(above)
        return np.where(above > 0, slope, -np.inf)


class ComputeLaw(Law):
    """a (C + d)^-b + c, with C divided by its geometric mean inside the fit."""

    name = "compute"
    formula = "y = c + a * (C + d)^-b"
    source = "Zhai et al. (arXiv 2106.04560)"
    axes = (Axis("flops_train_total", MIN_POINTS, 8),)
    amplitudes = ("c", "a")
    exponents = (Exponent("b", 0.02, 4.0), Exponent("d", 1e-6, 10.0))
    floor = "c"
    own = ("c", "a")
    meanings = {  # noqa: RUF012
        "c": "the ceiling: what no training removes",
        "a": "size of the training term",
        "b": "exponent of the compute",
        "d": "the compute that no training is worth",
    }

    def basis(self, exponents: Array, axes: Axes) -> Array:
        """Columns 1 and (C + d)^-b."""
        power = (axes["flops_train_total"] + exponents[:, 1:]) ** -exponents[:, :1]
        return np.stack([np.ones_like(power), power], axis=-1)

    def basis_gradient(self, exponents: Array, axes: Axes) -> Array:
        """By b: -(C + d)^-b ln(C + d); by d: -b (C + d)^(-b - 1)."""
        b, moved = exponents[:, :1], axes["flops_train_total"] + exponents[:, 1:]
        by = np.stack([-(moved**-b) * np.log(moved), -b * moved ** (-b - 1)], axis=-1)
        return np.stack([np.zeros_like(by), by], axis=-2)


def fit_compute_curves(
    table: pd.DataFrame, *, target: str = "loss", flops: str = "flops_train_total"
) -> list[ComputeCurve]:
    """One curve for each patch size of a table with a row per checkpoint: patch_size, `flops`, test_loss or metric.

    Relative residuals, least squares. Raises `UserError` for missing columns, rows of several models, tasks or recipes,
    and fewer than five checkpoints.
    """
    column = {"loss": "test_loss", "error": "metric"}.get(target)
    if column is None:
        raise UserError(f"target {target!r} is not known; use loss or error")
    for name in ("patch_size", flops, column):
        if name not in table:
            raise UserError(f"the table has no column {name!r} (columns: {', '.join(map(str, table.columns))})")
    numbers = {name: pd.to_numeric(table[name], errors="coerce") for name in ("patch_size", flops, column)}
    rows = table.assign(**numbers).dropna(subset=[*numbers])
    for name in numbers:
        refuse_extremes(rows, name)
    if target == "error":
        refuse_percentages(rows, column)
    mixed = varying(rows, [*(name for name in CURVE_COLUMNS if name != "study"), "eval_protocol"])
    if mixed:
        raise UserError(
            f"the checkpoints differ in {differing(rows, mixed)}, and a schedule is for one training; select one"
        )
    curves = []
    for patch_size, part in rows.groupby("patch_size"):
        compute = part[flops].to_numpy(float)
        measured = part[column].to_numpy(float)
        measured = 1 - measured if target == "error" else measured
        if len(set(compute)) < MIN_POINTS:
            raise UserError(
                f"patch size {patch_size}: {len(set(compute))} training lengths; a curve needs {MIN_POINTS} or more"
            )
        if (compute <= 0).any() or (measured <= 0).any():
            raise UserError(f"patch size {patch_size}: {flops} and the {target} must be positive in every row")
        scale = float(np.exp(np.log(compute).mean()))
        problem = Problem(ComputeLaw(), {"flops_train_total": compute / scale}, measured, measured)
        found = solve(problem)
        (c, a), (b, d) = found.amplitudes, found.exponents
        if not a > 0:
            raise UserError(f"patch size {patch_size}: the {target} does not fall with training")
        curves.append(
            ComputeCurve(
                patch_size=int(part["patch_size"].iloc[0]),
                a=float(a * scale**b),
                b=float(b),
                c=float(c),
                d=float(d * scale),
            )
        )
    return curves
