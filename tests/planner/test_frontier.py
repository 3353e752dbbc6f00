"""The planner's choices equal those of a search through everything, one configuration at a time."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchscale import UserError
from patchscale.planner import frontier
from patchscale.planner.plan import plan

levels = st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 4.0])


@st.composite
def tables(draw):
    size = draw(st.integers(1, 25))
    columns = {name: draw(st.lists(levels, min_size=size, max_size=size)) for name in ("hours", "memory", "value")}
    return pd.DataFrame(columns)


budgets = st.fixed_dictionaries({"hours": levels}, optional={"memory": levels})


def value(table):
    return table["value"]


def search(table, limits):
    """The best row by looking at each, cheapest of equals first; None if nothing fits."""
    rows = [(row.value, row.hours, i) for i, row in enumerate(table.itertuples()) if keeps(row, limits)]
    return min(rows)[2] if rows else None


def keeps(row, limits):
    return all(getattr(row, name) <= limit for name, limit in limits.items())


@given(tables(), budgets)
@settings(max_examples=100, deadline=None)
def test_the_plan_is_what_a_search_through_everything_finds(table, limits):
    found = search(table, limits)
    if found is None:
        with pytest.raises(UserError, match="no configuration keeps the budgets"):
            plan(value, table, budgets=limits)
        return
    made = plan(value, table, budgets=limits, rank_by="hours")
    assert made.best["value"] == table["value"][found]
    assert made.best["hours"] == table["hours"][found]
    assert made.feasible == sum(keeps(row, limits) for row in table.itertuples())

    for name in limits:
        others = {other: limit for other, limit in limits.items() if other != name}
        reachable = [row for row in table.itertuples() if keeps(row, others)]
        points = {(getattr(row, name), row.value) for row in reachable}
        undominated = {
            (p, v) for p, v in points if not any((q <= p and w <= v) and (q, w) != (p, v) for q, w in points)
        }
        rows = made.frontier[made.frontier["budget"] == name]
        assert {(row[name], row["value"]) for _, row in rows.iterrows()} == undominated
        assert rows[name].is_monotonic_increasing
        assert (rows["within_budget"] == (rows[name] <= limits[name])).all()

    helps = [
        name
        for name in limits
        if any(
            row.value < made.best["value"]
            for row in table.itertuples()
            if keeps(row, {other: limit for other, limit in limits.items() if other != name})
        )
    ]
    if helps:
        assert (list(made.binds), made.binds_together) == (helps, False)
    elif table["value"].min() < made.best["value"]:
        assert made.binds_together
        assert made.binds
    else:
        assert made.binds == ()


@given(tables(), budgets, st.floats(1, 10))
@settings(max_examples=60, deadline=None)
def test_a_larger_budget_never_plans_a_worse_prediction(table, limits, factor):
    larger = {name: limit * factor for name, limit in limits.items()}
    try:
        before = plan(value, table, budgets=limits)
    except UserError:
        return
    after = plan(value, table, budgets=larger)
    assert after.best["predicted"] <= before.best["predicted"]
    assert (before.doublings["gain"] >= 0).all()


def test_the_frontier_of_many_is_the_one_that_sorting_all_finds():
    rng = np.random.default_rng(0)
    price = np.round(rng.lognormal(size=50_000), 2)
    quality = np.round(1 / (1 + price) + rng.exponential(size=50_000) * 0.05, 3)
    mask = rng.random(50_000) < 0.9
    places = frontier.pareto(price, quality, mask)
    order = np.flatnonzero(mask)[np.lexsort((quality[mask], price[mask]))]
    best, expected = np.inf, []
    for place in order:
        if quality[place] < best:
            best = quality[place]
            expected.append(place)
    assert places.tolist() == expected
    assert len(places) > 20


def test_budgets_that_bind_only_together_are_told_apart():
    table = pd.DataFrame({"hours": [1.0, 3.0], "memory": [1.0, 3.0], "value": [2.0, 1.0]})
    made = plan(value, table, budgets={"hours": 2, "memory": 2})
    assert made.binds == ("hours", "memory")
    assert made.binds_together
    assert "together" in str(made)
    assert plan(value, table, budgets={"hours": 2, "memory": 3}).binds == ("hours",)
    assert plan(value, table, budgets={"hours": 3, "memory": 3}).binds == ()


def test_what_has_no_known_price_or_prediction_is_never_planned():
    table = pd.DataFrame({"hours": [np.nan, 1.0, 1.0], "value": [0.1, np.nan, 0.5]})
    assert plan(value, table, budgets={"hours": 2}).best["value"] == 0.5
