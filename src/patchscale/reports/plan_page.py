"""The page of a plan: one HTML file that opens offline, with a frontier that a budget can be walked along."""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from patchscale import __version__
from patchscale.files import write_text
from patchscale.laws.result import Fit
from patchscale.planner.words import describe, say_price
from patchscale.reports.page import data_uri, embedded_json, read_part, render_page, tied
from patchscale.reports.plan_figure import WIDTH, Frame, draw_frontier, frame_of, whisker_ends
from patchscale.reports.plan_tables import (
    AXIS_HEADINGS,
    MOST_TIES,
    axis_text,
    frontier_table,
    prices_table,
    steps_table,
    ties_table,
)
from patchscale.reports.plan_walk import Stop, choice, chosen_at, frontier_of, outside_words, price_words, walk
from patchscale.reports.words import listed, missing, plain

if TYPE_CHECKING:
    from patchscale.planner.plan import Plan


def write_plan_page(
    plan: "Plan", path: Path | str, *, title: str | None = None, provenance: Mapping[str, Any] | None = None
) -> Path:
    """Write the page of `plan`; returns `path`. The file is written whole or not at all.

    `title` is its heading (default: names the budgets); `provenance` adds named facts (source, command). Without
    JavaScript the page shows the same figures and tables, and the choice at the budgets that were given.
    """
    path = Path(path)
    write_text(path, render_plan_page(plan, title=title, provenance=provenance))
    return path


def render_plan_page(plan: "Plan", *, title: str | None = None, provenance: Mapping[str, Any] | None = None) -> str:
    """The text of the page; see `write_plan_page`."""
    walks = {name: walk(plan, name) for name in plan.budgets}
    frames = {name: _frame(plan, name) for name in plan.budgets}
    script = read_part("plan.js")
    law = plan.quality.law
    fit = law if isinstance(law, Fit) else None
    return render_page(
        "plan.html",
        title=title or _title(plan),
        lede=tied(str(plan)),
        doubts=[check.message for check in fit.checks if check.state in ("warn", "fail")] if fit else [],
        facts=_facts(plan),
        best=describe(plan.best, plan.axes),
        prices=prices_table(plan),
        figures=[_figure(plan, index, name, walks[name], frames[name]) for index, name in enumerate(plan.budgets, 1)],
        level=f"{plan.level:.0%}",
        has_draws=plan.quality.has_draws,
        steps=steps_table(plan),
        rank_words=price_words(plan, plan.rank_by),
        ties=ties_table(plan) if plan.quality.has_draws else None,
        num_ties=len(plan.ties) - 1,
        most_ties=MOST_TIES,
        candidates=data_uri(plan.candidates.to_csv(index=False), "text/csv"),
        num_candidates=len(plan.candidates),
        law=tied(str(fit)) if fit else None,
        checks=[(check.code, check.state, check.message) for check in fit.checks] if fit else [],
        fit_conventions=fit.conventions if fit else {},
        plan_conventions=plan.conventions,
        provenance=provenance_facts(provenance or {}),
        data=embedded_json({"plan": plan.to_dict(), "figures": _numbers(plan, walks, frames)}),
        script=Markup(script),  # our own file, and the policy names its hash
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def figure_id(index: int) -> str:
    """The id of the drawing of the price at place `index`, from 1; ids of its parts start with it."""
    return f"frontier-{index}"


def _frame(plan: "Plan", name: str) -> Frame:
    rows = frontier_of(plan, name)
    return frame_of(rows[name].tolist(), rows, plan.budgets[name])


def _figure(plan: "Plan", index: int, name: str, stops: Sequence[Stop], frame: Frame) -> dict[str, Any]:
    rows, words, budget = frontier_of(plan, name), price_words(plan, name), plan.budgets[name]
    others = [f"{say_price(other, limit)} {price_words(plan, other)}" for other, limit in _others(plan, name)]
    kept = f" The other budgets stay as given: {listed(others)}." if others else ""
    said = choice(stops, name, budget)
    return {
        "id": figure_id(index),
        "price": name,
        "words": words,
        "budget": f"{say_price(name, budget)} {words}",
        "title": f"Predicted {plan.quality.quantity} against {words}",
        "caption": (
            "Every point is what no cheaper configuration is expected to beat."
            + (
                f" Filled points lie inside what was measured, hollow ones are extrapolations; the band holds their "
                f"{plan.level:.0%} intervals."
                if plan.quality.has_draws
                else ""
            )
            + " Pale points exceed the budget."
            + kept
        ),
        "svg": draw_frontier(
            name,
            words,
            rows,
            frame,
            prefix=figure_id(index),
            labels=[tied(stop.label) for stop in stops],
            budget=budget,
            chosen=chosen_at(stops, budget),
            value_label=plan.quality.quantity,
            percent=plan.quality.is_error,
            description=f"Frontier of {len(stops)} configurations. {said}",
        ),
        "choice": said,
        "table": frontier_table(plan, name, stops),
        "csv": data_uri(rows.to_csv(index=False), "text/csv"),
        "file": f"frontier-{name}.csv",
    }


def _numbers(plan: "Plan", walks: Mapping[str, Sequence[Stop]], frames: Mapping[str, Frame]) -> list[dict[str, Any]]:
    """What the script walks along."""
    figures = []
    for index, (name, stops) in enumerate(walks.items(), 1):
        rows, frame = frontier_of(plan, name), frames[name]
        figures.append(
            {
                "id": figure_id(index),
                "price": name,
                "words": price_words(plan, name),
                "budget": plan.budgets[name],
                "width": WIDTH,
                "axis": vars(frame.x),
                "rows": [
                    {
                        "price": stop.price,
                        "label": tied(stop.label),
                        "says": stop.says,
                        "takes": stop.takes,
                        "more": stop.more,
                        "ends": whisker_ends(rows, frame, place),
                    }
                    for place, stop in enumerate(stops)
                ],
            }
        )
    return figures


def _others(plan: "Plan", name: str) -> list[tuple[str, float]]:
    return [(other, limit) for other, limit in plan.budgets.items() if other != name]


def _title(plan: "Plan") -> str:
    budgets = [f"{say_price(name, limit)} {price_words(plan, name)}" for name, limit in plan.budgets.items()]
    return f"The best configuration within {listed(budgets)}"


def _facts(plan: "Plan") -> list[tuple[str, str]]:
    """The configuration, its prediction, and how sure both are."""
    best, quality = plan.best, plan.quality
    facts = [(AXIS_HEADINGS.get(name, name), axis_text(name, best[name])) for name in plan.axes]
    facts.append((f"predicted {quality.quantity}", quality.show(best["predicted"])))
    if not math.isnan(best["low"]):
        facts.append((f"{plan.level:.0%} interval", f"{quality.show(best['low'])} – {quality.show(best['high'])}"))
        facts.append(("best in so many draws", f"{best['prob_best']:.0%}"))
        where = f"outside: {outside_words(best['outside'])}" if best["outside"] else "outside"
        facts.append(("against what was measured", where if best["extrapolated"] else "inside"))
    facts.append(("within the budgets", f"{plan.feasible:,} of {plan.configurations:,}"))
    return [(name, tied(value)) for name, value in facts]


def provenance_facts(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Named facts about a page, with when and by what it was written."""
    facts = {
        "page written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **given,
        "planned with": f"patchscale {__version__}",
    }
    return [(name, plain(value)) for name, value in facts.items() if not missing(value)]
