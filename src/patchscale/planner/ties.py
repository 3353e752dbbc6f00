"""Which configurations the data cannot tell from the best one: paired draws of the law."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchscale.laws.bootstrap import percentiles

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """m configurations against the best one; differences are theirs minus the best one's."""

    low: Numbers
    """Interval of the difference."""
    high: Numbers
    standard_error: Numbers
    """Standard deviation of the difference over the draws."""
    tied: NDArray[np.bool_]
    """The interval includes 0."""
    within_one_se: NDArray[np.bool_]
    """The predicted difference is at most one standard error."""
    prob_best: Numbers
    """Share of the draws in which this one is the best of all m."""


def compare(draws: Numbers, predicted: Numbers, best: int, *, level: float) -> Comparison:
    """Compare columns of `draws` [B, m] with column `best`, draw by draw.

    A draw moves all configurations together, so what they share cancels: two of them can differ clearly although
    their intervals overlap widely.
    """
    difference = draws - draws[:, [best]]
    error = difference.std(axis=0)
    low, high = percentiles(difference, level)
    leaders = np.argmin(draws, axis=1)
    return Comparison(
        low=low,
        high=high,
        standard_error=error,
        tied=(low <= 0) & (high >= 0),
        within_one_se=predicted - predicted[best] <= error,
        prob_best=np.bincount(leaders, minlength=draws.shape[1]) / len(draws),
    )
