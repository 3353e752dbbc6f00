"""What more would buy: the next step along each axis, and every budget doubled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from patchscale.planner.frontier import Numbers, best_of, within


@dataclass(frozen=True)
class Step:
    """From the best configuration to another one."""

    name: str
    """The axis that changes, or the budget that is doubled."""
    place: int
    """Where the other one is in the table."""


def siblings(table: pd.DataFrame, axes: Sequence[str], best: int) -> dict[str, NDArray[np.int64]]:
    """For each axis the places of all configurations that agree with the best one in the others; itself included."""
    same = {axis: _codes(table[axis]) == _codes(table[axis])[best] for axis in axes}
    found = {}
    for axis in axes:
        mask = np.ones(len(table), dtype=bool)
        for other in axes:
            if other != axis:
                mask &= same[other]
        found[axis] = np.flatnonzero(mask)
    return found


def axis_steps(near: Mapping[str, NDArray[np.int64]], best: int, cost: Numbers) -> list[Step]:
    """For each axis the next dearer of the best one's siblings; none where it is the dearest."""
    steps = []
    for axis, places in near.items():
        dearer = places[cost[places] > cost[best]]
        if len(dearer):
            steps.append(Step(axis, int(dearer[np.argmin(cost[dearer])])))
    return steps


def blind_axes(near: Mapping[str, NDArray[np.int64]], quality: Numbers) -> tuple[str, ...]:
    """Axes along which the law predicts the same everywhere: it says nothing about them."""
    return tuple(axis for axis, places in near.items() if len(places) > 1 and np.ptp(quality[places]) == 0)


def doublings(
    prices: Mapping[str, Numbers], budgets: Mapping[str, float], quality: Numbers, cost: Numbers
) -> list[Step]:
    """For each budget the best configuration with twice as much of it."""
    steps = []
    for name, limit in budgets.items():
        place = best_of(quality, within(prices, {**budgets, name: 2 * limit}), cost)
        assert place is not None  # whatever fits the budget fits twice the budget
        steps.append(Step(name, place))
    return steps


def exceeded(prices: Mapping[str, Numbers], budgets: Mapping[str, float], place: int) -> list[str]:
    """Budgets that the configuration at `place` exceeds."""
    return [name for name, limit in budgets.items() if not prices[name][place] <= limit]


def _codes(column: pd.Series) -> np.ndarray:
    return column.cat.codes.to_numpy() if isinstance(column.dtype, pd.CategoricalDtype) else column.to_numpy()
