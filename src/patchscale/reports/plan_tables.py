"""The tables on the page of a plan."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from patchscale.planner.prices import PRICES
from patchscale.planner.rows import records
from patchscale.planner.words import AXIS_WORDS, describe, say_price
from patchscale.reports.plan_walk import Stop, frontier_of, outside_words, price_words
from patchscale.reports.tables import EMPTY, Cell, Table
from patchscale.reports.words import integer, missing, plain

if TYPE_CHECKING:
    from patchscale.planner.plan import Plan

AXIS_HEADINGS = {
    "model": "model",
    "img_size": "image, px",
    "patch_size": "patch, px",
    "images_seen": "images seen",
    "merge_factor": "merged",
    "visual_tokens": "visual tokens",
    "llm": "language model",
}
MOST_TIES = 20


def prices_table(plan: "Plan") -> Table:
    """What the best configuration takes, of which budget, and what twice the budget would gain."""
    doubled = {row["budget"]: row for row in records(plan.doublings)}
    names = [*plan.budgets, *(name for name in PRICES if name in plan.best and name not in plan.budgets)]
    rows = []
    for name in names:
        value, limit = plan.best[name], plan.budgets.get(name)
        if missing(value):
            continue
        heading = Cell(price_words(plan, name), note=name)
        if limit is None:
            rows.append((heading, Cell(say_price(name, value)), *[Cell(EMPTY)] * 4))
            continue
        binds = "no" if name not in plan.binds else "only with others" if plan.binds_together else "yes"
        more = doubled[name]
        gain = Cell("nothing") if more["gain"] == 0 else Cell(_gain(plan, more), note=describe(more, plan.axes))
        rows.append(
            (
                heading,
                Cell(say_price(name, value)),
                Cell(say_price(name, limit)),
                Cell(f"{value / limit:.0%}"),
                Cell(binds),
                gain,
            )
        )
    headings = ("price", ""), ("takes", "number"), ("budget", "number"), ("used", "number")
    return Table((*headings, ("holds it back", ""), ("twice the budget gains", "")), tuple(rows))


def frontier_table(plan: "Plan", name: str, stops: Sequence[Stop]) -> Table:
    """The points of the frontier of one price, in the order of the figure."""
    rows = []
    for row, stop in zip(records(frontier_of(plan, name)), stops, strict=True):
        gain = EMPTY if missing(stop.gain) else plan.quality.show_gain(stop.gain)
        if not missing(stop.gain_low):
            gain += _interval(plan.quality.show_gain(stop.gain_low), plan.quality.show_gain(stop.gain_high))
        tie = EMPTY if stop.tied_with is None else say_price(name, stops[stop.tied_with].price)
        rows.append(
            (
                Cell(say_price(name, row[name]), note="" if row["within_budget"] else "beyond the budget"),
                *_axes(plan, row),
                *_prediction(plan, row),
                Cell(gain),
                Cell(tie),
                _flag(plan, row),
            )
        )
    return Table(
        (
            (price_words(plan, name), "number"),
            *_axis_headings(plan),
            *_prediction_headings(plan),
            ("gain over the row above", "number"),
            ("tied with a cheaper one at", "number"),
            ("the law is", ""),
        ),
        tuple(rows),
    )


def steps_table(plan: "Plan") -> Table | None:
    """The next dearer configuration along each axis, what pays best first; None if there is none."""
    if not len(plan.steps):
        return None
    rows = [
        (
            Cell(AXIS_WORDS.get(row["axis"], f"more {row['axis']}"), note=describe(row, plan.axes)),
            Cell(_gain(plan, row)),
            Cell(f"{row['price_ratio']:.3g} ×"),
            Cell(plan.quality.show_gain(row["gain_per_doubling"])),
            *_prediction(plan, row),
            Cell(", ".join(price_words(plan, name) for name in row["exceeds"].split(", ")) or "no budget"),
            _flag(plan, row),
        )
        for row in records(plan.steps.sort_values("gain_per_doubling", ascending=False, kind="stable"))
    ]
    return Table(
        (
            ("step", ""),
            ("gain", "number"),
            ("price", "number"),
            ("gain per doubling of the price", "number"),
            *_prediction_headings(plan),
            ("exceeds", ""),
            ("the law is", ""),
        ),
        tuple(rows),
    )


def ties_table(plan: "Plan") -> Table:
    """The first configurations that are tied with the best, cheapest first."""
    rows = []
    for row in records(plan.ties.head(MOST_TIES)):
        notes = [*(["little is known"] if row["poorly_known"] else []), *(["the best"] if _is_best(plan, row) else [])]
        difference = plan.quality.show_gain(row["difference"]) + _interval(
            plan.quality.show_gain(row["difference_low"]), plan.quality.show_gain(row["difference_high"])
        )
        rows.append(
            (
                Cell(say_price(plan.rank_by, row[plan.rank_by]), note=", ".join(notes)),
                *_axes(plan, row),
                *_prediction(plan, row),
                Cell("0" if _is_best(plan, row) else difference),
                Cell(f"{row['prob_best']:.0%}"),
                _flag(plan, row),
            )
        )
    return Table(
        (
            (price_words(plan, plan.rank_by), "number"),
            *_axis_headings(plan),
            *_prediction_headings(plan),
            ("worse by", "number"),
            ("best in so many draws", "number"),
            ("the law is", ""),
        ),
        tuple(rows),
    )


def axis_text(name: str, value: Any) -> str:
    """A value of an axis as a reader wants it."""
    if isinstance(value, str):
        return value
    if name == "images_seen":
        return f"{value / 1e6:,.4g}M"
    return integer(value) if float(value).is_integer() and abs(value) < 1e9 else plain(value)


def _axes(plan: "Plan", row: Mapping[str, Any]) -> list[Cell]:
    return [Cell(axis_text(name, row[name])) for name in plan.axes]


def _axis_headings(plan: "Plan") -> list[tuple[str, str]]:
    return [(AXIS_HEADINGS.get(name, name), "" if isinstance(plan.best[name], str) else "number") for name in plan.axes]


def _prediction(plan: "Plan", row: Mapping[str, Any]) -> list[Cell]:
    interval = EMPTY if missing(row["low"]) else f"{plan.quality.show(row['low'])} – {plan.quality.show(row['high'])}"
    return [Cell(plan.quality.show(row["predicted"])), Cell(interval)]


def _prediction_headings(plan: "Plan") -> list[tuple[str, str]]:
    return [(f"predicted {plan.quality.quantity}", "number"), (f"{plan.level:.0%} interval", "number")]


def _gain(plan: "Plan", row: Mapping[str, Any]) -> str:
    gain = plan.quality.show_gain(row["gain"])
    if not plan.quality.has_draws:
        return gain
    return gain + _interval(plan.quality.show_gain(row["gain_low"]), plan.quality.show_gain(row["gain_high"]))


def _interval(low: str, high: str) -> str:
    return f" [{low.split()[0]}, {high.split()[0]}]"


def _flag(plan: "Plan", row: Mapping[str, Any]) -> Cell:
    if not plan.quality.has_draws:
        return Cell("a given function")
    if not row["extrapolated"]:
        return Cell("inside")
    return Cell("outside", look="warn", note=outside_words(row["outside"]))


def _is_best(plan: "Plan", row: Mapping[str, Any]) -> bool:
    return all(row[name] == plan.best[name] for name in plan.axes)
