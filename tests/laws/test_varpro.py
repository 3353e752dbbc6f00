from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls

from patchscale.laws.varpro import project, solve, zoom


def test_noise_free_recovery(planted):
    for E, A, alpha in ((0.8, 0.006, 1.4), (0.19, 0.001, 1.67), (0.0, 0.3, 0.1), (2.0, 0.5, 0.5)):
        solution = solve(planted.problem(planted.curve(E, A, alpha)))
        np.testing.assert_allclose(solution.parameters, [E, A, alpha], rtol=1e-5, atol=1e-7)
        assert solution.objective < 1e-12


def test_noise_free_recovery_of_a_law_with_two_exponents(planted):
    problem = planted.chinchilla()
    assert problem.num_points == 8 * 16
    E, A, B, alpha, beta = solve(problem).parameters
    h = planted.hoffmann
    assert alpha == pytest.approx(h["alpha"], abs=1e-3)
    assert beta == pytest.approx(h["beta"], abs=1e-3)
    assert [h["E"], h["A"], h["B"]] == pytest.approx([E, A, B], rel=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    E=st.floats(0.05, 5),
    excess=st.floats(0.02, 3),
    alpha=st.floats(0.2, 3),
    scale=st.floats(1e-3, 1e3),
    unit=st.sampled_from([0.5, 1, 2, 7]),
)
def test_planted_laws_are_recovered_at_any_scale(planted, E, excess, alpha, scale, unit):
    # the excess is that of the largest patch, relative to the floor, so that the law is always visible
    sizes = tuple(unit * 2.0**i for i in range(6))
    A = E * excess / sizes[-1] ** alpha
    table = planted.curve(E, A, alpha, patch_sizes=sizes)
    table["test_loss"] *= scale
    found = solve(planted.problem(table), starts=4).parameters
    np.testing.assert_allclose(found, [E * scale, A * scale, alpha], rtol=1e-3)


@settings(max_examples=15, deadline=None)
@given(scale=st.floats(1e-4, 1e4), rng=st.integers(0, 10_000))
def test_multiplying_the_target_scales_the_amplitudes_alone(planted, scale, rng):
    table = planted.curve(noise=0.003, rng=rng)
    first = solve(planted.problem(table), starts=4)
    second = solve(planted.problem(table.assign(test_loss=table["test_loss"] * scale)), starts=4)
    np.testing.assert_allclose(second.exponents, first.exponents, rtol=1e-4)
    # at a bound or with a flat objective the exponent says little, but what the law predicts is settled
    np.testing.assert_allclose(second.amplitudes, first.amplitudes * scale, rtol=1e-3, atol=1e-6 * scale)
    assert second.objective == pytest.approx(first.objective, rel=1e-6)


def test_amplitudes_are_those_of_non_negative_least_squares(planted):
    problem = planted.chinchilla(noise=0.5, budgets=3, points=4)
    rng = np.random.default_rng(1)
    problem = replace(problem, measured=rng.normal(size=12), sigma=rng.uniform(0.5, 2, size=12), relative=False)
    exponents = rng.uniform(0.1, 1.5, size=(60, 2))
    amplitudes, objective = project(problem, exponents)
    active = set()
    for i, pair in enumerate(exponents):
        columns = problem.law.basis(pair[None], problem.axes)[0] / problem.sigma[:, None]
        length = np.linalg.norm(columns, axis=0)
        expected, norm = nnls(columns / length, problem.measured / problem.sigma)
        np.testing.assert_allclose(amplitudes[i] * length, expected, rtol=1e-6, atol=1e-9)
        assert objective[i] == pytest.approx(norm**2, rel=1e-9)
        active.add(tuple(expected > 0))
    assert len(active) > 1, "the test should meet active bounds"


def test_the_objective_is_the_sum_so_more_rows_never_loosen_the_fit(planted):
    once = planted.curve(noise=0.003)
    table = once.loc[once.index.repeat(50)]
    single, many = solve(planted.problem(once)), solve(planted.problem(table))
    assert many.objective == pytest.approx(50 * single.objective, rel=1e-8)
    np.testing.assert_allclose(many.parameters, single.parameters, rtol=1e-6)


def test_a_mean_objective_stops_early_where_the_sum_reaches_the_optimum(planted):
    problem = planted.chinchilla(noise=3e-4)
    ours = solve(problem)
    h = planted.hoffmann

    def mean_of_squares(x):
        # the usual parametrisation: logarithms of the amplitudes, all five parameters searched together
        model = np.exp(x[0]) + np.exp(x[1]) * problem.axes["N"] ** -x[3] + np.exp(x[2]) * problem.axes["D"] ** -x[4]
        return np.mean((np.log(model) - np.log(problem.measured)) ** 2)

    start = [0.0, 5.0, 5.0, 0.5, 0.5]
    loose = minimize(mean_of_squares, start, method="L-BFGS-B")
    assert loose.success, "it stops of its own accord, by its absolute tolerances"
    assert len(problem.measured) * loose.fun > 10 * ours.objective
    assert abs(loose.x[3] - h["alpha"]) > 5 * abs(ours.exponents[0] - h["alpha"])

    low, high = problem.bounds
    dense = zoom(lambda grid: project(problem, np.exp(grid))[1], low, high)[1]
    assert ours.objective <= dense * (1 + 1e-8)


def test_start_agreement_is_a_share_of_the_starts(planted):
    solution = solve(planted.problem(planted.curve(noise=0.002)), starts=20)
    assert solution.starts == 20
    assert solution.starts_agreeing > 0.9
    rough = planted.curve(noise=0.05, patch_sizes=(32, 16, 8, 4, 2, 1), rng=11)
    assert 0 <= solve(planted.problem(rough), starts=20).starts_agreeing <= 1


def test_the_search_is_deterministic(planted):
    problem = planted.problem(planted.curve(noise=0.01))
    assert solve(problem).parameters.tolist() == solve(problem).parameters.tolist()


def test_the_optimum_may_lie_at_a_bound(planted):
    # a straight line in log(patch size): no floor above 0 can bend it enough
    table = planted.curve()
    table["test_loss"] = 1 + 0.1 * np.log(table["patch_size"])
    solution = solve(planted.problem(table))
    assert solution.amplitudes[0] == 0
    # a step: only the largest patch is worse
    table["test_loss"] = [2.0, 1.0, 1.0, 1.0, 1.0]
    assert solve(planted.problem(table)).exponents[0] == pytest.approx(6, rel=1e-3)
