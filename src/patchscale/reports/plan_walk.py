"""What the page says at each point of a plan's frontier, and how it compares with its neighbours draw by draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from patchscale.planner.plan import POORLY_KNOWN
from patchscale.planner.rows import records
from patchscale.planner.ties import compare
from patchscale.planner.words import budget_words, describe, say_price

if TYPE_CHECKING:
    from patchscale.planner.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Stop:
    """One point of the frontier of a price, in words."""

    price: float
    label: str
    """All about it in one line."""
    says: str
    """Configuration and prediction, ending in a full stop."""
    takes: str
    words: str
    """What the price is called."""
    more: str
    """Whether it is an extrapolation, what it is tied with, what the next one gains."""
    tied_with: int | None
    """Place of the cheapest one that the draws cannot tell from it and that is known about as well; None if none is."""
    gain: float
    """How much better than the one before; NaN for the first."""
    gain_low: float
    gain_high: float


def frontier_of(plan: "Plan", name: str) -> pd.DataFrame:
    """The frontier of one price, cheapest first."""
    return plan.frontier[plan.frontier["budget"] == name].reset_index(drop=True)


def price_words(plan: "Plan", name: str) -> str:
    """What a price is called."""
    return budget_words(name, plan.best)


def walk(plan: "Plan", name: str) -> list[Stop]:
    """All points of the frontier of price `name`, cheapest first."""
    frontier = frontier_of(plan, name)
    rows, known = records(frontier), plan.quality.has_draws
    tied, gains = _compared(plan, frontier) if known else ([None] * len(rows), np.full((len(rows), 2), np.nan))
    values = frontier["predicted"].to_numpy(float)
    improvements = np.concatenate([[np.nan], values[:-1] - values[1:]])
    words, quality = price_words(plan, name), plan.quality
    stops = []
    for place, row in enumerate(rows):
        what = describe(row, plan.axes)
        interval = f" [{quality.show(row['low'])}, {quality.show(row['high'])}]" if row["low"] == row["low"] else ""
        value = f"{quality.quantity} {quality.show(row['predicted'])}{interval}"
        more = []
        if row["extrapolated"]:
            more.append(f"This is an extrapolation{_outside(row['outside'])}.")
        cheaper = tied[place]
        if cheaper is not None:
            other = rows[cheaper]
            more.append(
                f"The data cannot tell it from {describe(other, plan.axes)}, which takes "
                f"{other[name] / row[name]:.0%} of its price ({say_price(name, other[name])})."
            )
        if place + 1 < len(rows):
            gain = quality.show_gain(improvements[place + 1])
            ends = [quality.show_gain(end).split()[0] for end in gains[place + 1]] if known else []
            more.append(
                f"The next better one takes {say_price(name, rows[place + 1][name])} and gains {gain}"
                f"{f' [{ends[0]}, {ends[1]}]' if ends else ''}."
            )
        else:
            rest = "in the space" if len(plan.budgets) == 1 else "that keeps the other budgets"
            more.append(f"Nothing {rest} is expected to be better.")
        takes = f"{say_price(name, row[name])} {words}"
        flag = f"; extrapolation{_outside(row['outside'])}" if row["extrapolated"] else "; inside what was measured"
        stops.append(
            Stop(
                price=row[name],
                label=f"{what}: {value}, {takes}{flag if known else ''}",
                says=f"{what}: {value}.",
                takes=takes,
                words=words,
                more=" ".join(more),
                tied_with=cheaper,
                gain=float(improvements[place]),
                gain_low=float(gains[place, 0]),
                gain_high=float(gains[place, 1]),
            )
        )
    return stops


def chosen_at(stops: Sequence[Stop], budget: float) -> int:
    """The place of the best one within `budget`; the first one if nothing is."""
    return max(sum(stop.price <= budget for stop in stops) - 1, 0)


def choice(stops: Sequence[Stop], name: str, budget: float) -> str:
    """The sentence of the choice at a budget, as the page's script says it too."""
    stop = stops[chosen_at(stops, budget)]
    return (
        f"Within {say_price(name, budget)} {stop.words} the law expects most of {stop.says} It takes {stop.takes} "
        f"({stop.price / budget:.0%}). {stop.more}"
    )


def _compared(plan: "Plan", frontier: pd.DataFrame) -> tuple[list[int | None], np.ndarray]:
    """For each point the cheapest that it is tied with, and the interval of its gain over the one before."""
    draws = plan.quality.draws(frontier)
    values = frontier["predicted"].to_numpy(float)
    widths = (frontier["high"] - frontier["low"]).to_numpy(float)
    tied: list[int | None] = []
    gains = np.full((len(frontier), 2), np.nan)
    for place in range(len(frontier)):
        found = compare(draws[:, : place + 1], values[: place + 1], place, level=plan.level)
        known = widths[:place] <= POORLY_KNOWN * widths[place]
        cheaper = np.flatnonzero(found.tied[:place] & known)
        tied.append(int(cheaper[0]) if len(cheaper) else None)
        if place:
            gains[place] = found.low[place - 1], found.high[place - 1]
    return tied, gains


def outside_words(axes: str) -> str:
    """Names of axes, with a space after each comma."""
    return ", ".join(name.strip() for name in axes.split(",") if name.strip())


def _outside(axes: str) -> str:
    return f" ({outside_words(axes)})" if axes else ""
