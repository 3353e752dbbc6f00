"""Schedules of patch sizes: the switch is where slopes are equal, and nothing that brute force finds is cheaper."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchscale import UserError
from patchscale.planner.compute_curve import ComputeCurve, fit_compute_curves
from patchscale.planner.schedule import schedule

COARSE = ComputeCurve(patch_size=32, a=1.0, b=0.6, c=0.30, d=0.05)
MIDDLE = ComputeCurve(patch_size=16, a=1.5, b=0.5, c=0.20, d=0.2)
FINE = ComputeCurve(patch_size=8, a=2.5, b=0.45, c=0.14, d=0.8)


def flops_of(curves, switches, target):
    """From scratch with the first curve, switching to the next one at each of the errors."""
    total = 0.0
    edges = [*switches, target]
    for i, curve in enumerate(curves):
        total += curve.flops(edges[i]) - (curve.flops(edges[i - 1]) if i else 0.0)
    return total


def test_errors_and_flops_are_inverse():
    for curve in (COARSE, MIDDLE, FINE):
        for flops in (0.1, 1.0, 100.0):
            assert curve.flops(curve.error(flops)) == pytest.approx(flops)
            step = 1e-6 * flops
            fall = (curve.error(flops) - curve.error(flops + step)) / step
            assert np.exp(curve.log_slope(curve.error(flops))) == pytest.approx(fall, rel=1e-4)
    assert FINE.flops(0.14) == np.inf


def test_the_stages_go_from_coarse_to_fine_and_switch_where_the_slopes_are_equal():
    made = schedule([FINE, COARSE, MIDDLE], flops=3000)
    assert [stage.patch_size for stage in made.stages] == [32, 16, 8]
    curves = {curve.patch_size: curve for curve in (COARSE, MIDDLE, FINE)}
    for one, next_one in zip(made.stages, made.stages[1:], strict=False):
        assert one.end_error == next_one.start_error
        slopes = [curves[stage.patch_size].log_slope(one.end_error) for stage in (one, next_one)]
        assert slopes[0] == pytest.approx(slopes[1], abs=1e-6)
    assert sum(stage.flops for stage in made.stages) == pytest.approx(3000)
    assert made.stages[-1].end_error == pytest.approx(made.error)
    assert made.frame()["share"].sum() == pytest.approx(1)


def test_the_saving_is_against_the_best_single_patch_size():
    made = schedule([COARSE, MIDDLE, FINE], flops=200)
    singles = {curve.patch_size: curve.error(200) for curve in (COARSE, MIDDLE, FINE)}
    assert made.single_error == min(singles.values()) == singles[made.single_patch_size]
    assert made.error < made.single_error
    assert made.single_flops == pytest.approx(min(c.flops(made.error) for c in (COARSE, MIDDLE, FINE)))
    assert 0 < made.saving < 1
    assert "Train with patches of 32 px for" in str(made)


curve_parameters = st.tuples(st.floats(0.2, 4), st.floats(0.2, 1), st.floats(0.05, 0.4), st.floats(0.01, 2))


@given(st.lists(curve_parameters, min_size=1, max_size=3), st.floats(0.5, 500))
@settings(max_examples=40, deadline=None)
def test_no_other_order_or_switch_is_cheaper(parameters, flops):
    curves = [ComputeCurve(patch_size=32 >> i, a=a, b=b, c=c, d=d) for i, (a, b, c, d) in enumerate(parameters)]
    made = schedule(curves, flops=flops)
    assert made.flops == pytest.approx(flops, rel=1e-5)
    assert made.error <= made.single_error * (1 + 1e-9)
    start = min(curve.error(0) for curve in curves)
    errors = np.linspace(made.error, start, 60)[1:]
    for count in range(1, len(curves) + 1):
        for chosen in combinations(curves, count):
            for switches in combinations(errors[::-1], count - 1):
                found = flops_of(chosen, switches, made.error)
                assert not found < flops * (1 - 1e-5)


@given(st.lists(curve_parameters, min_size=2, max_size=3), st.floats(0.5, 100), st.floats(1, 5))
@settings(max_examples=40, deadline=None)
def test_more_compute_never_plans_a_worse_error(parameters, flops, factor):
    curves = [ComputeCurve(patch_size=32 >> i, a=a, b=b, c=c, d=d) for i, (a, b, c, d) in enumerate(parameters)]
    assert schedule(curves, flops=flops * factor).error <= schedule(curves, flops=flops).error * (1 + 1e-9)


def test_one_curve_is_its_own_schedule():
    made = schedule([MIDDLE], flops=10)
    assert [(stage.patch_size, stage.flops) for stage in made.stages] == [(16, pytest.approx(10))]
    assert made.error == pytest.approx(MIDDLE.error(10))
    assert made.saving == pytest.approx(0, abs=1e-9)


def test_curves_are_recovered_from_checkpoints():
    flops = np.geomspace(1e15, 1e19, 9)
    truth = [
        ComputeCurve(patch_size=16, a=0.8e6, b=0.4, c=0.2, d=1e15),
        ComputeCurve(patch_size=8, a=3e6, b=0.42, c=0.15, d=4e15),
    ]
    rows = [
        {"patch_size": curve.patch_size, "flops_train_total": c, "metric": 1 - curve.error(c) / 10}
        for curve in truth
        for c in flops
    ]
    found = {curve.patch_size: curve for curve in fit_compute_curves(pd.DataFrame(rows), target="error")}
    for curve in truth:
        for c in flops:
            assert found[curve.patch_size].error(c) == pytest.approx(curve.error(c) / 10, rel=1e-5)
        assert found[curve.patch_size].b == pytest.approx(curve.b, rel=1e-3)
        assert found[curve.patch_size].c == pytest.approx(curve.c / 10, rel=1e-2)


def test_mistakes_are_one_line():
    with pytest.raises(UserError, match="no curve"):
        schedule([], flops=1)
    with pytest.raises(UserError, match="same patch size"):
        schedule([FINE, FINE], flops=1)
    with pytest.raises(UserError, match="not a positive number"):
        schedule([FINE], flops=0)
    table = pd.DataFrame({"patch_size": [8] * 4, "flops_train_total": [1.0, 2, 3, 4], "test_loss": [4.0, 3, 2, 1]})
    with pytest.raises(UserError, match="patch size 8: 4 training lengths; a curve needs 5"):
        fit_compute_curves(table)
    with pytest.raises(UserError, match="no column 'metric'"):
        fit_compute_curves(table, target="error")
    with pytest.raises(UserError, match=r"the checkpoints differ in model \(a, b\), and a schedule is for one"):
        fit_compute_curves(table.assign(model=["a", "a", "b", "b"]))
    with pytest.raises(UserError, match="patch size 8: 3 training lengths"):
        fit_compute_curves(table.assign(test_loss=["none", 3, 2, 1]))


def test_a_schedule_says_what_it_saves():
    curves = [
        ComputeCurve(patch_size=16, a=1e6, b=0.4, c=0.3, d=1e15),
        ComputeCurve(patch_size=8, a=3e6, b=0.42, c=0.2, d=4e15),
    ]
    short, long = schedule(curves, flops=3e16), schedule(curves, flops=1e18)
    assert 0.02 < short.saving < 0.05
    assert "the same value would take 1.03 times the FLOPs" in str(short)
    assert 0 < long.saving < 0.01
    assert "so switching saves less than 1%" in str(long)
    assert "saves" not in str(schedule(curves[:1], flops=1e18))
