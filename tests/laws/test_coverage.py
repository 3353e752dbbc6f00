"""How often the intervals hold the truth, by simulation: five patch sizes, one run each."""

import numpy as np
import pytest

from patchscale.laws.uncertainty import Profile
from patchscale.laws.varpro import solve

# E, A, alpha like DeiT-Base at 64 px in error, Adventurer-Base at 224 px in loss, and a steep curve
CURVES = {"error": (0.186, 0.0017, 1.6), "loss": (0.63, 0.0074, 0.9), "steep": (0.69, 0.0017, 1.6)}


def coverage(planted, curve, noise, simulations, *, rng=0):
    """Share of simulations in which the interval holds alpha, E, and the law's value at half the smallest patch."""
    E, A, alpha = curve
    truth = {"alpha": alpha, "E": E, "next": E + A * 0.5**alpha}
    hits = dict.fromkeys(truth, 0)
    for i in range(simulations):
        problem = planted.problem(planted.curve(*curve, noise=noise, rng=[rng, i]))
        profile = Profile.of(problem, solve(problem, starts=2))
        found = profile.intervals()
        found["next"] = profile.prediction_interval({"patch_size": np.array([0.5])})
        for name, value in truth.items():
            hits[name] += found[name].low <= value <= found[name].high
    return {name: count / simulations for name, count in hits.items()}


def test_nominal_95_covers_at_least_90_per_cent_in_a_short_simulation(planted):
    shares = coverage(planted, CURVES["loss"], 0.003, 80)
    assert all(share >= 0.9 for share in shares.values()), shares


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0005, 0.003, 0.01])
@pytest.mark.parametrize("name", CURVES)
def test_nominal_95_covers_at_least_90_per_cent(planted, name, noise):
    shares = coverage(planted, CURVES[name], noise, 500, rng=1)
    assert all(share >= 0.9 for share in shares.values()), shares
