"""`plan`: the best configuration within budgets, and all that a decision should know beside it. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import signature
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from patchscale.errors import UserError
from patchscale.laws.result import Fit
from patchscale.planner.fitted_to import refuse_undescribed
from patchscale.planner.frontier import Numbers, best_of, binding, pareto, within
from patchscale.planner.prices import PRICES, price
from patchscale.planner.quality import ANSWERS, Law, Quality
from patchscale.planner.rows import plain_row, records
from patchscale.planner.space import AXES, Space
from patchscale.planner.steps import Step, axis_steps, blind_axes, doublings, exceeded, siblings
from patchscale.planner.ties import compare
from patchscale.planner.vision_language import VisionLanguageSpace, price_vision_language
from patchscale.planner.words import describe, say_plan, say_price

CANDIDATES = 1000
"""Feasible configurations with the best predictions: those among which ties are sought."""
POORLY_KNOWN = 2.0
"""Times the width of the best one's interval."""
PRICE_OPTIONS = tuple(signature(price).parameters)[1:]
REQUEST_OPTIONS = ("num_images", "new_tokens", "precision", "weight_bytes_per_param")
"""Of requests to named vision-language models."""
VISION_LANGUAGE_OPTIONS = (*tuple(signature(price_vision_language).parameters)[1:-1], *REQUEST_OPTIONS)
OWN_COLUMNS = (
    *ANSWERS, "difference", "difference_low", "difference_high", "difference_se", "tied", "within_one_se",
    "poorly_known", "prob_best", "axis", "price_ratio", "gain_per_doubling", "gain", "gain_low", "gain_high", "exceeds",
    "budget", "within_budget",
)  # fmt: skip
"""What a plan adds to the columns of its table."""
COSTS = ("train_gpu_hours", "train_flops", "infer_flops", "latency_s", "peak_memory_bytes", "visual_tokens")
"""What "cheaper" means: the first of these that is budgeted, or else the first budget."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The best configuration within the budgets. `str(plan)` says it in words, `frame()` lists the candidates."""

    best: dict[str, Any]
    """The configuration: its axes, prices, prediction with interval, and whether it is an extrapolation."""
    budgets: dict[str, float]
    binds: tuple[str, ...]
    """Budgets that keep a better configuration out; none if the space ends before the budgets do."""
    binds_together: bool
    """Whether they do so only together: leaving out one of them would not help."""
    frontier: pd.DataFrame
    """For each `budget`, others kept: what no cheaper configuration beats, by rising price, also beyond the budget."""
    steps: pd.DataFrame
    """The next dearer configuration along each axis alone: gain, price, gain per doubling of the price."""
    doublings: pd.DataFrame
    """For each budget: the best configuration with twice as much of it."""
    candidates: pd.DataFrame
    """Feasible configurations with the best predictions, compared with the best draw by draw.

    `poorly_known` are those whose interval is more than twice as wide as that of the best.
    """
    configurations: int
    feasible: int
    axes: tuple[str, ...]
    blind: tuple[str, ...]
    """Axes of which the law knows nothing; the cheapest value was taken."""
    rank_by: str
    """The price by which "cheaper" is meant."""
    level: float
    conventions: dict[str, str]
    device_memory_bytes: float | None
    """What the device that time was priced for has; None if not known."""
    quality: Quality = field(repr=False)

    @property
    def ties(self) -> pd.DataFrame:
        """Candidates that the draws cannot tell from the best one, cheapest first; the best one is among them."""
        return self.candidates[self.candidates["tied"]].sort_values(self.rank_by, kind="stable")

    @property
    def alternatives(self) -> pd.DataFrame:
        """Candidates within one standard error of the best one, cheapest first."""
        return self.candidates[self.candidates["within_one_se"]].sort_values(self.rank_by, kind="stable")

    def frame(self) -> pd.DataFrame:
        """One row per candidate, best prediction first."""
        return self.candidates

    def to_dict(self, rows: int = 20) -> dict[str, Any]:
        """Everything as plain values, for JSON; of candidates, ties and alternatives the first `rows`."""
        return {
            "sentence": str(self),
            "best": self.best,
            "budgets": self.budgets,
            "binds": list(self.binds),
            "binds_together": self.binds_together,
            "axes": list(self.axes),
            "blind": list(self.blind),
            "rank_by": self.rank_by,
            "level": self.level,
            "configurations": self.configurations,
            "feasible": self.feasible,
            "num_ties": len(self.ties),
            "ties": records(self.ties.head(rows)),
            "alternatives": records(self.alternatives.head(rows)),
            "candidates": records(self.candidates.head(rows)),
            "frontier": records(self.frontier),
            "steps": records(self.steps),
            "doublings": records(self.doublings),
            "conventions": self.conventions,
            "device_memory_bytes": self.device_memory_bytes,
        }

    def __str__(self) -> str:
        return say_plan(self)


def plan(
    law: Law,
    configurations: pd.DataFrame | Space | VisionLanguageSpace,
    *,
    budgets: Mapping[str, float],
    axes: Sequence[str] | None = None,
    rank_by: str | None = None,
    candidates: int = CANDIDATES,
    **pricing: Any,
) -> Plan:
    """The configuration with the lowest predicted value whose prices keep all `budgets`.

    `law` is a fit, or any function of the table (lower is better; then without intervals). `configurations` is a
    `Space` or a `VisionLanguageSpace`, priced with `pricing` (device=..., batch_size=...; see `price` and
    `price_vision_language`), or a table that holds axes and prices; budgets name its columns. All configurations are
    looked at, so the answer is exact. `axes` are the columns that are chosen (default: those of `AXES` that vary).
    `rank_by` is the price by which ties are ranked (default: of the budgets, the first in `COSTS`). Intervals have the
    level of the fit.

    Raises `UserError` for budgets that are no column or not positive, if nothing keeps them, with what is nearest, and
    for models, image or patch sizes that a fit does not describe and was not fitted to.
    """
    table = _priced(configurations, pricing)
    taken = [str(name) for name in table.columns if name in OWN_COLUMNS]
    if taken:
        raise UserError(f"the table has columns that a plan writes itself: {', '.join(taken)}; rename or drop them")
    limits = _checked(budgets, table)
    rank = rank_by or next((name for name in COSTS if name in limits), next(iter(limits)))
    if rank not in table or not pd.api.types.is_numeric_dtype(table[rank]):
        numbers = [str(name) for name in table.columns if pd.api.types.is_numeric_dtype(table[name])]
        raise UserError(f"rank_by={rank!r} is not priced (prices: {', '.join(numbers)})")
    chosen_axes = tuple(name for name in (axes or _axes_of(table)) if name in table and _varies(table[name]))
    if isinstance(law, Fit):
        refuse_undescribed(law, table)
    quality = Quality(law)
    level = quality.level

    prices = {name: table[name].to_numpy(float) for name in limits}
    cost = table[rank].to_numpy(float)
    values = quality.values(table)
    mask = within(prices, limits)
    best = best_of(values, mask, cost)
    if best is None:
        raise UserError(_nothing_fits(table, prices, limits, chosen_axes))
    unknown = int((mask & ~np.isfinite(cost)).sum())
    if unknown:
        raise UserError(
            f"rank_by={rank!r} is no finite number in {unknown:,} of {int(mask.sum()):,} configurations within the "
            "budgets; fill it in, or rank by another price"
        )
    binds, together = binding(prices, limits, values, best)

    near = _lowest(values, mask, candidates)
    near = np.concatenate([[best], near[near != best]])
    beside = siblings(table, chosen_axes, best)
    next_steps = axis_steps(beside, best, cost)
    doubled = doublings(prices, limits, values, cost)
    compared = np.concatenate([near, [step.place for step in (*next_steps, *doubled)]]).astype(np.int64)
    draws = quality.draws(table.iloc[compared])
    comparison = compare(draws, values[compared], 0, level=level)
    among = compare(draws[:, : len(near)], values[near], 0, level=level)  # the best of what is feasible

    told = pd.concat([table.iloc[near].reset_index(drop=True), quality.rows(table.iloc[near])], axis=1)
    width = told["high"] - told["low"]
    told = told.assign(
        difference=values[near] - values[best],
        difference_low=among.low,
        difference_high=among.high,
        difference_se=among.standard_error,
        tied=among.tied,
        within_one_se=among.within_one_se,
        poorly_known=width > POORLY_KNOWN * width.iloc[0],
        prob_best=among.prob_best,
    )

    def gains(steps: Sequence[Step], offset: int) -> pd.DataFrame:
        rows = [
            {
                "gain": values[best] - values[step.place],
                "gain_low": -comparison.high[offset + i],
                "gain_high": -comparison.low[offset + i],
                "exceeds": ", ".join(exceeded(prices, limits, step.place)),
            }
            for i, step in enumerate(steps)
        ]
        places = [step.place for step in steps]
        if not places:
            return pd.DataFrame()
        return pd.concat(
            [pd.DataFrame(rows), table.iloc[places].reset_index(drop=True), quality.rows(table.iloc[places])], axis=1
        )

    steps = gains(next_steps, len(near))
    if len(steps):
        ratio = cost[[step.place for step in next_steps]] / cost[best]
        steps.insert(0, "axis", [step.name for step in next_steps])
        steps.insert(1, "price_ratio", ratio)
        steps.insert(2, "gain_per_doubling", steps["gain"] / np.log2(ratio))
    more = gains(doubled, len(near) + len(next_steps))
    more.insert(0, "budget", [step.name for step in doubled])
    return Plan(
        best=plain_row(told.iloc[0].to_dict()),
        budgets=limits,
        binds=binds,
        binds_together=together,
        frontier=_frontier(table, prices, limits, values, quality),
        steps=steps,
        doublings=more,
        candidates=told,
        configurations=len(table),
        feasible=int(mask.sum()),
        axes=chosen_axes,
        blind=blind_axes(beside, values),
        rank_by=rank,
        level=level,
        conventions={
            "optimiser": "all configurations are looked at",
            "flops": "2 x MACs",
            "ties": f"paired draws of the law, {level:.0%}; among the {len(near)} best predictions"
            if quality.has_draws
            else "the law has no draws, so only equal predictions are tied",
            **{name: str(told) for name, told in table.attrs.items() if name in ("time", "memory", "request")},
        },
        device_memory_bytes=table.attrs.get("device_memory_bytes"),
        quality=quality,
    )


def _priced(configurations: pd.DataFrame | Space | VisionLanguageSpace, pricing: Mapping[str, Any]) -> pd.DataFrame:
    if "level" in pricing:
        raise UserError("level: a plan's intervals have the level of the fit; give it there, fit_law(..., level=0.9)")
    if isinstance(configurations, Space):
        refuse_unknown_options(pricing, PRICE_OPTIONS)
        return price(configurations, **pricing)
    if isinstance(configurations, VisionLanguageSpace):
        refuse_unknown_options(pricing, VISION_LANGUAGE_OPTIONS)
        return price_vision_language(configurations, **pricing)
    if pricing:
        raise UserError(f"{', '.join(pricing)}: the table is priced already; give these to price(), or plan a Space")
    return configurations


def refuse_unknown_options(given: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise `UserError` for a name that pricing does not take, with the one that may be meant."""
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{name!r} is no option of a plan{hint} (pricing takes: {', '.join(known)})")


def _frontier(
    table: pd.DataFrame, prices: Mapping[str, Numbers], limits: Mapping[str, float], values: Numbers, quality: Quality
) -> pd.DataFrame:
    places = {name: pareto(prices[name], values, within(prices, limits, but=name)) for name in limits}
    rows = table.iloc[np.concatenate(list(places.values()))].reset_index(drop=True)
    names = [name for name, found in places.items() for _ in found]
    told = pd.concat([pd.Series(names, name="budget"), rows, quality.rows(rows)], axis=1)
    own = np.array([prices[name][place] for name, found in places.items() for place in found])
    return told.assign(within_budget=own <= np.array([limits[name] for name in names]))


def _lowest(values: Numbers, mask: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` lowest values in `mask`, ascending."""
    places = np.flatnonzero(mask & np.isfinite(values))
    if len(places) > count:
        places = places[np.argpartition(values[places], count - 1)[:count]]
    return places[np.argsort(values[places], kind="stable")]


def _checked(budgets: Mapping[str, float], table: pd.DataFrame) -> dict[str, float]:
    if not isinstance(budgets, Mapping):
        raise UserError(f"budgets={budgets!r} are no limits by name; give such as {{'train_gpu_hours': 200}}")
    if not budgets:
        raise UserError("no budget is given; give one or more, such as train_gpu_hours=200")
    if not len(table):
        raise UserError("there are no configurations to choose from")
    numbers = [str(name) for name in table.columns if pd.api.types.is_numeric_dtype(table[name])]
    priced = [name for name in PRICES if name in numbers] or numbers
    limits = {}
    for name, limit in budgets.items():
        if name not in numbers:
            close = get_close_matches(name, numbers, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            why = {
                "peak_memory_bytes": " (it needs named models)" if "llm" in table else "",
                "train_gpu_hours": " (it needs images_seen and a device)",
                "train_flops": " (it needs images_seen)",
                "latency_s": " (it needs a device)",
            }.get(name, "")
            raise UserError(f"budget {name!r} is not priced{why}{hint} (prices: {', '.join(priced)})")
        if not _is_positive(limit):
            text = limit if isinstance(limit, int | float) else repr(limit)
            raise UserError(f"budget {name}={text} is not a positive number")
        limits[name] = float(limit)
    return limits


def _is_positive(limit: Any) -> bool:
    if isinstance(limit, bool) or not isinstance(limit, Real):
        return False
    return 0 < float(limit) < float("inf")


def _nothing_fits(
    table: pd.DataFrame, prices: Mapping[str, Numbers], limits: Mapping[str, float], axes: Sequence[str]
) -> str:
    excess = np.max([prices[name] / limit for name, limit in limits.items()], axis=0)
    if not np.isfinite(excess).any():
        return "no configuration has a known price and prediction; check the columns of the budgets"
    nearest = int(np.nanargmin(excess))
    needs = " and ".join(
        f"{name}={say_price(name, prices[name][nearest])} (given {say_price(name, limits[name])})"
        for name in exceeded(prices, limits, nearest)
    )
    row = describe(plain_row(table.iloc[nearest].to_dict()), axes)
    return f"no configuration keeps the budgets; the nearest, {row}, needs {needs}; give more, or widen the space"


def _axes_of(table: pd.DataFrame) -> list[str]:
    """Visual tokens are chosen only where no image is; otherwise they follow from it."""
    return [name for name in AXES if not (name == "visual_tokens" and "img_size" in table)]


def _varies(column: pd.Series) -> bool:
    first = column.iloc[0]
    return bool((column != first).any())
