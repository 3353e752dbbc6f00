"""Coarse patches first, fine ones later: the patch size that lowers the error most per FLOP at every stage of training.

After arXiv 2311.03233: one curve in compute per patch size, and a switch where the next one's slope at the same error
is steeper. Assumed is that a model goes on after a switch as if it had been trained with the new patch size all along
to the error that it has; what the switch itself costs is left out, so savings are upper ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from patchscale.errors import UserError
from patchscale.planner.compute_curve import ComputeCurve

LEVELS = 4000
"""Errors between which crossings of slopes are looked for."""
WORTH_SAYING = 0.01
"""Smaller savings are within what a curve through a few checkpoints knows."""
FAR_BELOW = 1e-6
"""How close to the lowest ceiling errors are looked at, as a share of the highest one."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Training with one patch size."""

    patch_size: int
    flops: float
    start_error: float
    """Infinite at the very start if the curve has no d."""
    end_error: float


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Stages from coarse to fine. `str(schedule)` says them in words."""

    stages: tuple[Stage, ...]
    flops: float
    error: float
    single_patch_size: int
    """The best patch size if only one may be used, with the same FLOPs."""
    single_error: float
    single_flops: float
    """What the cheapest single patch size needs for the error of the schedule; infinite if none reaches it."""

    @property
    def saving(self) -> float:
        """Share of the FLOPs saved against the cheapest single patch size for the same error."""
        return 1 - self.flops / self.single_flops

    def frame(self) -> pd.DataFrame:
        """One row per stage."""
        rows = pd.DataFrame([vars(stage) for stage in self.stages])
        return rows.assign(share=rows["flops"] / self.flops)

    def __str__(self) -> str:
        steps = ", then ".join(
            f"patches of {stage.patch_size} px for {stage.flops / self.flops:.0%} of the FLOPs "
            f"(to {stage.end_error:.4g})"
            for stage in self.stages
        )
        single = f"with patches of {self.single_patch_size} px alone it would be {self.single_error:.4g}"
        saved = ""
        if self.saving >= WORTH_SAYING:
            saved = f", and the same value would take {1 / (1 - self.saving):.3g} times the FLOPs"
        elif len(self.stages) > 1:
            saved = f", so switching saves less than {WORTH_SAYING:.0%}"
        return (
            f"Train with {steps}: {self.flops:.3g} FLOPs are expected to reach {self.error:.4g}; {single}{saved}. "
            "Assumed is that nothing is lost at a switch."
        )


def schedule(curves: Sequence[ComputeCurve], *, flops: float) -> Schedule:
    """The order of patch sizes, coarse to fine, that reaches the lowest error with `flops` of training.

    Exact for the curves: between the errors at which two slopes cross, and where a curve starts, their order does not
    change, so only these can be switches; the cheapest way through them is found by dynamic programming.
    Raises `UserError` without curves, for two of one patch size, and for a budget that is not positive.
    """
    ordered = sorted(curves, key=lambda curve: -curve.patch_size)
    sizes = [curve.patch_size for curve in ordered]
    if not ordered:
        raise UserError("there is no curve to plan a schedule with; give one for each patch size")
    if len(set(sizes)) < len(sizes):
        raise UserError(f"two curves have the same patch size ({', '.join(map(str, sizes))}); give one for each")
    if not (isfinite(flops) and flops > 0):
        raise UserError(f"flops={flops:g} is not a positive number")
    single_error, single = min((curve.error(flops), -curve.patch_size) for curve in ordered)
    switches = _switches(ordered)
    lowest = min(curve.c for curve in ordered)

    def needed(log_above: float) -> float:
        return np.log(_cheapest(ordered, lowest + np.exp(log_above), switches)[0] / flops)

    # never worse than one patch size alone, never as low as the lowest ceiling
    high = float(np.log(single_error - lowest)) if single_error > lowest else -40.0
    low = high
    while needed(low) < 0 and low > high - 60:
        low -= 1.0
    error = lowest + float(np.exp(brentq(needed, low, high, xtol=1e-13))) if low < high else single_error
    total, path = _cheapest(ordered, error, switches)
    single_flops = min(curve.flops(error) for curve in ordered)
    return Schedule(
        stages=tuple(path),
        flops=total,
        error=error,
        single_patch_size=-single,
        single_error=single_error,
        single_flops=single_flops,
    )


def _switches(curves: Sequence[ComputeCurve]) -> list[float]:
    """Errors at which two slopes cross or a curve starts, descending."""
    starts = [curve.error(0.0) for curve in curves]
    finite = [start for start in starts if isfinite(start)]
    lowest = min(curve.c for curve in curves)
    top = 10 * max([*finite, *(curve.c + 1 for curve in curves)])
    errors = lowest + np.geomspace(top * FAR_BELOW, top, LEVELS)
    found = set(finite)
    for i, one in enumerate(curves):
        for other in curves[i + 1 :]:
            slopes = one.log_slope(errors), other.log_slope(errors)
            known = np.isfinite(slopes[0]) & np.isfinite(slopes[1])
            difference = np.subtract(*slopes, where=known, out=np.zeros(LEVELS))
            signs = np.sign(difference)
            for k in np.flatnonzero(known[:-1] & known[1:] & (signs[:-1] != signs[1:])):
                root = brentq(
                    lambda e, one=one, other=other: float(one.log_slope(e) - other.log_slope(e)),
                    errors[k],
                    errors[k + 1],
                )
                found.add(float(root))
    return sorted(found, reverse=True)


def _cheapest(curves: Sequence[ComputeCurve], target: float, switches: Sequence[float]) -> tuple[float, list[Stage]]:
    """(FLOPs, stages) of the cheapest way from nothing to the error `target`, never back to a coarser patch."""
    levels = [inf, *(error for error in switches if error > target), target]
    # spent[i]: FLOPs to be at this level having used curve i last; where[i]: the stages on the way
    spent = [0.0 for _ in curves]
    ways: list[list[int]] = [[] for _ in curves]
    for before, after in pairwise(levels):
        steps = [_between(curve, before, after) for curve in curves]
        arrived: list[float] = []
        through: list[list[int]] = []
        for i, step in enumerate(steps):
            best = min(range(i + 1), key=lambda j: spent[j])  # coarser or the same until here
            arrived.append(spent[best] + step)
            through.append([*ways[best], i])
        spent, ways = arrived, through
    last = min(range(len(curves)), key=lambda i: spent[i])
    return spent[last], _stages(curves, ways[last], levels)


def _between(curve: ComputeCurve, before: float, after: float) -> float:
    """FLOPs from one error to a lower one; before its start a curve is at no cost."""
    start = 0.0 if before == inf else curve.flops(before)
    return inf if not isfinite(curve.flops(after)) else curve.flops(after) - start


def _stages(curves: Sequence[ComputeCurve], way: Sequence[int], levels: Sequence[float]) -> list[Stage]:
    stages: list[Stage] = []
    for used, (before, after) in zip(way, pairwise(levels), strict=True):
        curve, flops = curves[used], _between(curves[used], before, after)
        if stages and stages[-1].patch_size == curve.patch_size:
            first = stages.pop()
            stages.append(
                Stage(
                    patch_size=curve.patch_size,
                    flops=first.flops + flops,
                    start_error=first.start_error,
                    end_error=after,
                )
            )
        else:
            start = curve.error(0.0) if before == inf else before
            stages.append(Stage(patch_size=curve.patch_size, flops=flops, start_error=start, end_error=after))
    return [stage for stage in stages if stage.flops > 0]
