import lmfit
import numpy as np
import pandas as pd
import pytest

from patchscale.laws.fit import fit_law
from patchscale.laws.uncertainty import Profile, conditioning
from patchscale.laws.varpro import solve
from patchscale.published_tables.tables import published


def panel(letter):
    table = published("patchification/test-loss")
    return table[table["panel"] == letter]


def lmfit_intervals(problem, *, at=None):
    """An independent profile (Newville's conf_interval, an F test too); `at` profiles the prediction there."""
    p, y = problem.axes["patch_size"], problem.measured
    ours = solve(problem)
    E, A, alpha = ours.parameters
    parameters = lmfit.Parameters()
    if at is None:
        parameters.add("E", value=E, min=0)
    else:
        parameters.add("value", value=E + A * at**alpha)
    parameters.add("A", value=A, min=0)
    parameters.add("alpha", value=alpha, min=0.01, max=6)

    def residual(x):
        floor = x["E"] if at is None else x["value"] - x["A"] * at ** x["alpha"]
        return (floor + x["A"] * p ** x["alpha"] - y) / y

    minimizer = lmfit.Minimizer(residual, parameters, ftol=1e-13, xtol=1e-13)
    result = minimizer.minimize(method="leastsq")
    found = lmfit.conf_interval(minimizer, result, sigmas=[0.95])
    return {name: (values[0][1], values[-1][1]) for name, values in found.items()}


@pytest.mark.parametrize("letter", ["a", "c", "g", "h"])
def test_parameter_intervals_agree_with_lmfit(planted, letter):
    problem = planted.problem(panel(letter))
    ours = Profile.of(problem, solve(problem)).intervals()
    theirs = lmfit_intervals(problem)
    for name in ("E", "A", "alpha"):
        assert (ours[name].low, ours[name].high) == pytest.approx(theirs[name], rel=2e-3), name
        assert not ours[name].low_open
        assert not ours[name].high_open


@pytest.mark.parametrize("at", [0.5, 3.0, 32.0])
def test_prediction_intervals_agree_with_lmfit(planted, at):
    problem = planted.problem(panel("g"))
    ours = Profile.of(problem, solve(problem)).prediction_interval({"patch_size": np.array([at])})
    assert (ours.low, ours.high) == pytest.approx(lmfit_intervals(problem, at=at)["value"], rel=2e-3)


def test_intervals_with_two_exponents_agree_with_lmfit(planted):
    problem = planted.chinchilla(noise=2e-3, budgets=4, points=5)
    solution = solve(problem)
    ours = Profile.of(problem, solution).intervals()
    N, D, y = problem.axes["N"], problem.axes["D"], problem.measured
    parameters = lmfit.Parameters()
    scales = {"E": 1.0, "A": N.min() ** -solution.exponents[0], "B": D.min() ** -solution.exponents[1]}
    for (name, scale), value in zip(scales.items(), solution.amplitudes, strict=True):
        parameters.add(name, value=value * scale, min=0)
    parameters.add("alpha", value=solution.exponents[0], min=0.05, max=2)
    parameters.add("beta", value=solution.exponents[1], min=0.05, max=2)

    def residual(x):
        model = x["E"] + x["A"] * (N / N.min()) ** -x["alpha"] + x["B"] * (D / D.min()) ** -x["beta"]
        return (model - y) / y

    minimizer = lmfit.Minimizer(residual, parameters, ftol=1e-13, xtol=1e-13)
    theirs = lmfit.conf_interval(minimizer, minimizer.minimize(), p_names=["alpha", "beta", "E"], sigmas=[0.95])
    for name in ("alpha", "beta", "E"):
        expected = (theirs[name][0][1], theirs[name][-1][1])
        assert (ours[name].low, ours[name].high) == pytest.approx(expected, rel=5e-3), name


def test_a_new_measurement_scatters_more_than_the_law(planted):
    problem = planted.problem(panel("c"))
    profile = Profile.of(problem, solve(problem))
    axes = {"patch_size": np.array([4.0])}
    law, single = profile.prediction_interval(axes), profile.prediction_interval(axes, new_measurement=True)
    assert single.low < law.low < profile.predict(axes) < law.high < single.high


@pytest.mark.parametrize("letter", ["b", "e", "f"])
def test_intervals_at_the_bound_of_the_floor_agree_with_brute_force(planted, letter):
    """A dense grid of exponents and floors, the amplitude's range in closed form; E reaches 0 in these panels."""
    problem = planted.problem(panel(letter))
    profile = Profile.of(problem, solve(problem))
    ours = profile.intervals() | {"next": profile.prediction_interval({"patch_size": np.array([0.5])})}
    p, y = problem.axes["patch_size"], problem.measured
    E = np.linspace(0, y.max(), 6001)
    found = {name: [] for name in ours}
    for alpha in np.geomspace(0.01, 6, 600):
        x, z = p**alpha / y, (y[:, None] - E) / y[:, None]
        square, half, rest = x @ x, x @ z, (z**2).sum(axis=0) - profile.edge
        reach = np.sqrt(np.clip(half**2 - square * rest, 0, None))
        inside = (half**2 >= square * rest) & (half + reach >= 0)
        if inside.any():
            A = np.stack([np.clip(half - reach, 0, None), half + reach])[:, inside] / square
            found["alpha"] += [alpha]
            found["E"] += [E[inside].min(), E[inside].max()]
            found["A"] += [A.min(), A.max()]
            found["next"] += [(E[inside] + A * 0.5**alpha).min(), (E[inside] + A * 0.5**alpha).max()]
    for name, values in found.items():
        assert (ours[name].low, ours[name].high) == pytest.approx((min(values), max(values)), rel=0.02), name
    assert ours["E"].low == 0


def test_an_end_that_only_the_search_stops_is_open_for_the_amplitude_too(planted):
    problem = planted.problem(panel("i"))
    profile = Profile.of(problem, solve(problem))
    A = profile.intervals()["A"]
    assert (A.low, A.low_open, A.high_open) == (0, True, False)
    assert str(A).startswith("[<")
    # towards small patches the law levels out whatever the exponent; towards large ones it does not
    assert not profile.prediction_interval({"patch_size": np.array([0.5])}).high_open
    assert profile.prediction_interval({"patch_size": np.array([64.0])}).high == np.inf


def test_an_exponent_that_nothing_bounds_is_open(planted):
    problem = planted.problem(panel("i"))
    alpha = Profile.of(problem, solve(problem)).intervals()["alpha"]
    assert alpha.high_open
    assert alpha.high == np.inf
    assert not alpha.low_open


def test_the_floor_is_never_below_zero_and_an_amplitude_may_reach_it(planted):
    problem = planted.problem(panel("b"))
    intervals = Profile.of(problem, solve(problem)).intervals()
    assert intervals["E"].low == 0
    assert intervals["A"].low > 0


def test_a_wider_level_gives_a_wider_interval(planted):
    problem = planted.problem(panel("c"))
    solution = solve(problem)
    lows = [Profile.of(problem, solution, level=level).intervals()["alpha"].low for level in (0.5, 0.8, 0.95)]
    assert lows == sorted(lows, reverse=True)


def test_replicates_that_agree_do_not_hide_a_misfit(planted):
    table = planted.curve(seeds=3, noise=1e-5)
    table.loc[table["patch_size"] == 4, "test_loss"] *= 1.01
    problem = planted.problem(table)
    profile = Profile.of(problem, solve(problem))
    assert profile.noise.source == "lack of fit"
    assert profile.noise.dof == 2
    fair = planted.problem(planted.curve(seeds=3, noise=3e-3))
    pooled = Profile.of(fair, solve(fair)).noise
    assert (pooled.source, pooled.dof) == ("residuals", 12)


def test_seeds_narrow_the_interval(planted):
    one = planted.problem(planted.curve(noise=2e-3, rng=3))
    five = planted.problem(planted.curve(noise=2e-3, seeds=5, rng=3))
    widths = []
    for problem in (one, five):
        interval = Profile.of(problem, solve(problem)).intervals()["alpha"]
        widths.append(interval.high / interval.low)
    assert widths[1] < widths[0]


def test_conditioning_names_what_trades_off(planted):
    near_log = planted.problem(panel("e"))
    found = conditioning(near_log, solve(near_log))
    assert found.condition_number > 100
    assert set(found.weakest) == {"E", "A"}
    fair = planted.problem(panel("a"))
    found = conditioning(fair, solve(fair))
    assert found.condition_number < 30
    assert np.allclose(np.diag(found.correlation), 1)
    assert found.correlation[1, 2] < -0.9


def test_the_interval_of_a_length_is_in_its_own_unit():
    patch_sizes = np.array([32, 24, 16, 12, 8, 6, 4, 3, 2, 1], dtype=float)
    noise = 0.003 * np.random.default_rng(0).standard_normal(len(patch_sizes))
    losses = (0.2 + 0.004 * (patch_sizes + 2.0) ** 1.5) * (1 + noise)
    fit = fit_law(pd.DataFrame({"patch_size": patch_sizes, "test_loss": losses}), form="shifted", target="loss")
    p0 = fit.parameters["p0"]
    assert p0.low < p0.value < p0.high
    assert p0.low < 2.0 < p0.high
