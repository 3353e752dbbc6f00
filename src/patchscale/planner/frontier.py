"""Choosing among priced configurations: what is feasible, best, on the frontier, and which budget binds.

n configurations; quality is what the law predicts, lower is better. Everything is exact, by looking at all of them.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Mask = NDArray[np.bool_]
SORTED_AT_ONCE = 10_000


def within(prices: Mapping[str, Numbers], budgets: Mapping[str, float], *, but: str | None = None) -> Mask:
    """Which configurations keep all budgets, `but` one that is not looked at. An unknown price keeps none."""
    size = len(next(iter(prices.values())))
    kept = np.ones(size, dtype=bool)
    for name, limit in budgets.items():
        if name != but:
            kept &= prices[name] <= limit
    return kept


def best_of(quality: Numbers, mask: Mask, cost: Numbers) -> int | None:
    """The place of the lowest quality in `mask`, of equal ones the cheapest, then the first; None if there is none."""
    places = np.flatnonzero(mask & np.isfinite(quality))
    if not len(places):
        return None
    lowest = quality[places].min()
    equal = places[quality[places] == lowest]
    return int(equal[np.argmin(np.where(np.isfinite(cost[equal]), cost[equal], np.inf))])


def pareto(price: Numbers, quality: Numbers, mask: Mask) -> NDArray[np.int64]:
    """Places of the configurations in `mask` that no other one beats in both, by rising price.

    Of configurations equal in both the first one counts. The frontier of every hundredth one leaves so few of many that
    sorting them costs little.
    """
    places = np.flatnonzero(mask & np.isfinite(quality) & np.isfinite(price))
    if len(places) > SORTED_AT_ONCE:
        some = _sorted_frontier(price, quality, places[::100])
        cheaper = np.searchsorted(price[some], price[places], side="right") - 1
        beaten = (cheaper >= 0) & (quality[some][cheaper] < quality[places])
        places = places[~beaten]
    return _sorted_frontier(price, quality, places)


def _sorted_frontier(price: Numbers, quality: Numbers, places: NDArray[np.int64]) -> NDArray[np.int64]:
    order = places[np.lexsort((quality[places], price[places]))]
    before = np.minimum.accumulate(np.concatenate([[np.inf], quality[order]]))[:-1]
    return order[quality[order] < before]


def binding(
    prices: Mapping[str, Numbers], budgets: Mapping[str, float], quality: Numbers, best: int
) -> tuple[tuple[str, ...], bool]:
    """(budgets without which a better configuration could be had, whether they only bind together).

    A budget binds if leaving it out alone gives a better one. If none does, but leaving out all of them would, those
    that the best of all exceeds bind together. No name means that the space ends before the budgets do.
    """
    known = np.isfinite(quality)
    alone = tuple(
        name for name in budgets if (quality[within(prices, budgets, but=name) & known] < quality[best]).any()
    )
    if alone or not len(budgets):
        return alone, False
    top = int(np.nanargmin(quality))
    if quality[top] >= quality[best]:
        return (), False
    return tuple(name for name, limit in budgets.items() if not prices[name][top] <= limit), True
