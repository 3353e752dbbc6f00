from itertools import pairwise, permutations

import numpy as np
import pytest

from patchscale import fit_law
from patchscale.laws.checks import CHECKS, _chance_of_runs


def states(fit):
    return {check.code: check.state for check in fit.checks}


def test_a_clean_replicated_curve_passes_every_check(planted):
    fit = fit_law(planted.curve(noise=5e-4, seeds=3, patch_sizes=(32, 16, 8, 4, 2, 1)))
    assert set(states(fit).values()) <= {"ok", "n/a"}, fit.checks
    assert list(states(fit)) == list(CHECKS)


def test_a_rise_towards_small_patches_names_the_sizes(planted):
    table = planted.curve()
    table.loc[table["patch_size"] == 2, "test_loss"] = 0.9
    check = fit_law(table).check("trend")
    assert check.state == "warn"
    assert "patch 2 is worse than 4" in check.message
    assert "1 is worse" not in check.message


def test_a_reversed_curve_has_no_law(planted):
    table = planted.curve()
    table["test_loss"] = table["test_loss"].to_numpy()[::-1]
    fit = fit_law(table)
    assert fit.check("trend").state == "fail"
    assert "A is 0" in fit.check("trend").message
    assert "has nothing to say" in str(fit)


def test_a_fall_within_the_noise_is_no_trend(planted):
    check = fit_law(planted.curve().assign(test_loss=[0.9, 0.89, 0.82, 0.815, 0.75])).check("trend")
    assert check.state == "ok"
    check = fit_law(planted.curve().assign(test_loss=[0.95, 0.89, 0.884, 0.883, 0.75])).check("trend")
    assert check.state == "warn"
    assert "A may be 0" in check.message


def test_four_sizes_are_fitted_with_warnings(planted):
    fit = fit_law(planted.curve(patch_sizes=(16, 8, 4, 2), noise=1e-3))
    assert (fit.check("levels").state, fit.check("dof").state) == ("warn", "warn")
    assert fit.dof == 1
    assert fit.holdout is None
    assert fit.check("holdout").state == "n/a"


@pytest.mark.parametrize(
    ("losses", "named"),
    [
        ([1.3, 1.2, 1.1, 1.0, 0.9], "E is at 0"),
        ([2.0, 1.0, 1.0, 1.0, 1.0], "alpha is at its upper bound 6"),
    ],
)
def test_parameters_at_a_bound_are_named(planted, losses, named):
    check = fit_law(planted.curve().assign(test_loss=losses)).check("at-bound")
    assert check.state == "warn"
    assert named in check.message


def test_a_logarithmic_curve_has_floor_and_amplitude_trade_off(planted):
    fit = fit_law(planted.curve().assign(test_loss=[1.4, 1.3, 1.2, 1.1, 1.0]))
    check = fit.check("conditioning")
    assert check.state == "warn"
    assert "E and A trade off" in check.message


def test_replicates_are_asked_for_and_recognised(planted):
    assert "run two more seeds" in fit_law(planted.curve()).check("replicates").message
    twice = fit_law(planted.curve(seeds=2, noise=1e-3))
    assert twice.check("replicates").message == "2 to 2 runs per patch size"
    some = fit_law(planted.curve(seeds=2, noise=1e-3).drop(index=[1, 3]))
    assert "at 3 of 5 patch sizes only" in some.check("replicates").message


def test_two_runs_with_one_seed_are_noticed(planted):
    table = planted.curve(seeds=2, noise=1e-3).assign(seed=0)
    check = fit_law(table).check("replicates")
    assert check.state == "warn"
    assert "patch_size 1.0, seed 0 occurs more than once" in check.message


def test_a_misfit_beyond_seed_noise_is_named(planted):
    table = planted.curve(seeds=3, noise=1e-4)
    table.loc[table["patch_size"] == 4, "test_loss"] *= 1.01
    fit = fit_law(table)
    assert fit.check("lack-of-fit").state == "warn"
    assert fit.conventions["noise"] == "estimated from lack of fit"
    assert "misfit" in str(fit)


def test_a_bent_curve_leaves_a_pattern_in_the_residuals(planted):
    sizes = tuple(2**i for i in range(9, -1, -1))
    table = planted.curve(patch_sizes=sizes)
    # a smooth step in log(patch size), which no power of p has
    p = table["patch_size"]
    table["test_loss"] = 1 + 0.5 / (1 + (6 / p) ** 1.5)
    check = fit_law(table).check("residual-runs")
    assert check.state == "warn"
    fair = fit_law(planted.curve(patch_sizes=sizes, noise=2e-3, rng=1)).check("residual-runs")
    assert fair.state == "ok"


def test_the_chance_of_few_runs_is_that_of_counting(planted):
    signs = set(permutations([1, 1, 1, 0, 0, 0, 0]))
    runs = [1 + sum(a != b for a, b in pairwise(s)) for s in signs]
    for limit in range(2, 8):
        assert _chance_of_runs(3, 4, limit) == pytest.approx(np.mean([r <= limit for r in runs]))


def test_a_missed_hold_out_is_a_warning(planted):
    table = planted.curve(noise=1e-5)
    table.loc[table["patch_size"] == 1, "test_loss"] *= 0.97
    check = fit_law(table).check("holdout")
    assert check.state == "warn"
    assert check.message.startswith("missed: without patch 1")


def test_an_allowed_mixture_is_marked_as_failed(planted):
    table = planted.curve(noise=1e-3).assign(recipe=["a", "a", "b", "b", "b"])
    fit = fit_law(table, allow_mixed=True)
    assert fit.check("mixed").state == "fail"
    assert "recipe (b, a)" in fit.check("mixed").message
