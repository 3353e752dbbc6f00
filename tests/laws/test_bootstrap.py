"""The noise that bootstrap draws add: its size, its share that clusters have in common, and how well both are known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import f as f_distribution

from patchscale import fit_law
from patchscale.laws.bootstrap import NOTHING_SHARED, directions_of, noise, noise_draws, percentiles, residuals_of

LAW = "additive:params_backbone"
CURVES, ROWS = 30, 8


def table(*, own, common, curves=CURVES, rows=ROWS, rng=0):
    """Curves of runs on E + A N^-0.4, off by `own` each and by `common` as a whole."""
    random = np.random.default_rng(rng)
    N = np.geomspace(1e6, 1e9, rows)
    law = 1.5 + 400 * N**-0.4
    return pd.concat(
        pd.DataFrame(
            {
                "img_size": 16 * (curve + 1),
                "params_backbone": N,
                "test_loss": law * np.exp(common * random.normal() + own * random.normal(size=rows)),
            }
        )
        for curve in range(curves)
    )


def fitted(runs, **options):
    return fit_law(runs, form=LAW, target="loss", cluster_by=["img_size"], allow_mixed=True, **options)


def parts(fit, clusters, *, draws=2000):
    """Mean square of what the draws' noise has in clusters, and of what rows have of their own."""
    law = fit.problem.model(fit.solution.exponents, fit.solution.amplitudes)
    moves, shared = noise(fit.problem, fit.solution, law, clusters, draws=draws, seed=0)
    count = clusters.max() + 1
    means = np.stack([moves[:, clusters == cluster].mean(axis=1) for cluster in range(count)], axis=1)
    own = ((moves - means[:, clusters]) ** 2).sum(axis=1) / (len(clusters) - count)
    return means.var(axis=1, ddof=1).mean() - own.mean() / ROWS, own.mean(), shared


@pytest.mark.parametrize(("own", "common"), [(0.01, 0.0), (0.01, 0.01), (0.01, 0.03)])
def test_draws_scatter_as_the_runs_do(own, common):
    fit = fitted(table(own=own, common=common))
    clusters = (fit.rows["img_size"].to_numpy() // 16 - 1).astype(int)
    in_curves, in_rows, shared = parts(fit, clusters)
    assert np.sqrt(in_rows) == pytest.approx(own, rel=0.1)
    assert np.sqrt(max(in_curves, 0)) == pytest.approx(common, rel=0.25, abs=0.004)
    assert shared == pytest.approx(common**2 / (common**2 + own**2), abs=0.1)
    assert fit.bootstrap.shared == pytest.approx(shared, abs=0.03)


def test_the_likelihood_is_that_of_the_residuals_the_fit_leaves():
    """The mean share against the density of the residuals written out with whole matrices."""
    fit = fitted(table(own=0.01, common=0.01, curves=6, rng=3))
    clusters = (fit.rows["img_size"].to_numpy() // 16 - 1).astype(int)
    law = fit.problem.model(fit.solution.exponents, fit.solution.amplitudes)
    directions = directions_of(fit.problem, fit.solution)
    free = np.linalg.svd(directions)[0][:, directions.shape[1] :]
    left = free.T @ residuals_of(fit.problem, law)
    together = free.T @ (clusters[:, None] == clusters) @ free
    grid = np.append(0, (np.arange(4000) + 0.5) / 4000)
    prior = np.append(NOTHING_SHARED, np.full(4000, (1 - NOTHING_SHARED) / 4000))
    log = []
    for share in grid:
        covariance = (1 - share) * np.eye(len(left)) + share * together
        _, log_volume = np.linalg.slogdet(covariance)
        log.append(-0.5 * log_volume - len(left) / 2 * np.log(left @ np.linalg.solve(covariance, left)))
    weight = prior * np.exp(np.array(log) - max(log))
    _, shared = noise(fit.problem, fit.solution, law, clusters, draws=40_000, seed=0)
    assert shared == pytest.approx(weight @ grid / weight.sum(), abs=0.005)
    assert 0.1 < shared < 0.9


def test_rows_of_their_own_have_the_variance_of_least_squares():
    """Without clusters the mean square of a draw is to that of the residuals as F says, which makes t of estimates."""
    fit = fit_law(table(own=0.01, common=0, curves=2), form=LAW, target="loss", allow_mixed=True, cluster_by=[])
    law = fit.problem.model(fit.solution.exponents, fit.solution.amplitudes)
    rows = np.arange(fit.problem.num_points)
    moves, shared = noise(fit.problem, fit.solution, law, rows, draws=20_000, seed=0)
    assert shared == 0
    size = (moves**2).mean(axis=1)
    for level in (0.1, 0.5, 0.9):
        expected = fit.objective / fit.dof * f_distribution.ppf(level, fit.problem.num_points, fit.dof)
        assert np.quantile(size, level) == pytest.approx(expected, rel=0.03)


def test_stated_noise_is_a_floor():
    """Runs that agree better than their stated noise do not narrow the intervals below it."""
    runs = table(own=0.001, common=0).assign(noise=0.02)
    fit = fitted(runs, noise="noise")
    law = fit.problem.model(fit.solution.exponents, fit.solution.amplitudes)
    rows = np.arange(fit.problem.num_points)
    moves, _ = noise(fit.problem, fit.solution, law, rows, draws=500, seed=0)
    assert moves.std() == pytest.approx(1, rel=0.02)
    freed = noise(replace(fit.problem, relative=True), fit.solution, law, rows, draws=500, seed=0)[0]
    assert freed.std() < 0.2


def test_stated_noise_is_a_floor_for_draws_of_a_fit_with_a_profile():
    """Five runs that agree by chance do not make decisions surer than their stated noise allows."""
    sizes = np.array([16.0, 8.0, 4.0, 2.0, 1.0])
    runs = pd.DataFrame({"patch_size": sizes, "test_loss": 0.186 + 0.0017 * sizes**1.6})
    fit = fit_law(runs.assign(noise=0.004), target="loss", noise="noise")
    assert fit.interval_method.startswith("profile")
    quiet = []
    for dof in (2, 10**9):
        exponents, amplitudes = noise_draws(fit.problem, fit.solution, variance=1.0, dof=dof, draws=4000)
        curves = (fit.problem.law.basis(exponents, fit.problem.axes) @ amplitudes[..., None])[..., 0]
        quiet.append(np.quantile((curves - fit.problem.measured).std(axis=1), 0.1))
    assert quiet[0] > 1.1 * quiet[1]


def test_the_floor_is_for_the_noise_as_a_whole():
    """Stated noise that curves share is not counted twice."""
    runs = table(own=0.002, common=0.02).assign(noise=lambda t: 0.02 * t["test_loss"])
    fit = fitted(runs, noise="noise")
    clusters = (fit.rows["img_size"].to_numpy() // 16 - 1).astype(int)
    law = fit.problem.model(fit.solution.exponents, fit.solution.amplitudes)
    moves, shared = noise(fit.problem, fit.solution, law, clusters, draws=2000, seed=0)
    assert shared > 0.95
    assert np.median(moves.std(axis=1)) == pytest.approx(1, rel=0.15)


def test_groups_that_are_the_clusters_leave_nothing_to_be_shared():
    """Where every curve has a floor of its own, its offset is no noise, and the residuals tell nothing of it."""
    runs = table(own=0.01, common=0.01, curves=8).assign(recipe=lambda t: t["img_size"].astype(str))
    options = {"form": LAW, "target": "loss", "groups": ["recipe"], "allow_mixed": True}
    curves = fit_law(runs, **options)
    rows = fit_law(runs, **options, cluster_by=["test_loss"])
    for name in ("a",):
        one, other = curves.parameters[name], rows.parameters[name]
        assert np.log(one.high / one.low) == pytest.approx(np.log(other.high / other.low), rel=0.3)


def test_many_rows_of_a_few_curves_are_as_good_as_independent_if_they_are():
    runs = table(own=0.01, common=0.0, curves=6, rows=200)
    curves, rows = fitted(runs), fit_law(runs, form=LAW, target="loss", cluster_by=["test_loss"], allow_mixed=True)
    widths = [one.parameters["a"].high / one.parameters["a"].low - 1 for one in (curves, rows)]
    assert widths[0] == pytest.approx(widths[1], rel=0.25)


def test_a_small_huber_delta_does_not_narrow_intervals():
    """Most residuals are cut: least absolute values, whose spread is 1.25 times that of least squares."""
    runs = table(own=0.01, common=0.0, curves=20)
    plain, robust = (
        fit_law(runs, form=LAW, target="loss", cluster_by=["test_loss"], allow_mixed=True, huber=huber)
        for huber in (None, 2e-3)
    )
    widths = [np.log(one.parameters["a"].high / one.parameters["a"].low) for one in (plain, robust)]
    assert 0.95 < widths[1] / widths[0] < 1.7


def test_percentiles_of_few_draws_hold_what_they_say():
    """A new draw from the same distribution lies between them as often as said, whatever the number of draws."""
    rng = np.random.default_rng(0)
    low, high = percentiles(rng.normal(size=(39, 20_000)), 0.95)
    new = rng.normal(size=20_000)
    assert np.mean((low < new) & (new < high)) == pytest.approx(0.95, abs=0.005)


def test_intervals_are_those_of_the_stated_parameters():
    """Also where the unit of a parameter depends on others, as those of skaling do."""
    random = np.random.default_rng(0)
    runs = pd.DataFrame(
        [(N, D) for N in np.geomspace(3e7, 3e9, 6) for D in np.geomspace(3e8, 3e10, 8)],
        columns=["params_backbone", "images_seen"],
    )
    law = 1.7 + 400 * runs["params_backbone"] ** -0.34 + 410 * runs["images_seen"] ** -0.28
    runs["test_loss"] = law * np.exp(0.003 * random.normal(size=len(runs)))
    fit = fit_law(runs, form="skaling", target="loss", draws=200, allow_mixed=True)
    assert fit.interval_method == "bootstrap"
    draws = fit.parameter_draws()
    for name, estimate in fit.parameters.items():
        low, high = np.quantile(draws[name], [0.025, 0.975], method="weibull")
        assert estimate.low_open or estimate.low == pytest.approx(low)
        assert estimate.high_open or estimate.high == pytest.approx(high)
