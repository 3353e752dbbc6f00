"""The founding study's Figure 1 and Table 1, refitted.

Two readings of Figure 1 exist: losses read to three digits, from which an earlier fit with the floor set free was made,
and the finer digitisation that ships with the package.
"""

import numpy as np
import pytest

from patchscale import fit_curves, published
from patchscale.laws.uncertainty import Profile
from patchscale.laws.varpro import solve

# losses read to +-0.0005, largest patch first: panel -> (patch sizes, losses)
ROUNDED = {
    "a": ((16, 8, 4, 2, 1), (1.117, 0.926, 0.867, 0.840, 0.816)),
    "b": ((16, 8, 4, 2, 1), (0.942, 0.872, 0.849, 0.834, 0.813)),
    "c": ((16, 8, 4, 2, 1), (0.718, 0.677, 0.653, 0.645, 0.636)),
    "g": ((32, 16, 8, 4, 2), (1.007, 0.881, 0.837, 0.821, 0.806)),
    "h": ((16, 8, 4, 2, 1), (0.900, 0.836, 0.811, 0.802, 0.789)),
    "i": ((16, 8, 4, 2, 1), (0.854, 0.740, 0.727, 0.699, 0.695)),
}
# the earlier fit: E, alpha, and the ends of alpha's 95 % profile interval
EARLIER = {
    "a": (0.816, 1.36, 0.73, 2.36),
    "b": (0.807, 0.89, None, 3.1),  # its low end, 0.02, was the edge of a search that let E fall below zero
    "c": (0.629, 0.90, 0.56, 1.30),
    "g": (0.805, 1.37, 0.92, 1.97),
    "h": (0.788, 1.16, 0.52, 2.15),
    "i": (0.697, 1.61, 0.19, np.inf),  # "above 6"
}
HALF_DIGIT = (0.0005, 0.005, 0.005, 0.005)

# what the shipped digitisation gives: E, alpha, low, high
SHIPPED = {
    "a": (0.8165, 1.400, 0.719, 2.540),
    "b": (0.8066, 0.890, 0.038, 3.104),
    "c": (0.6290, 0.901, 0.522, 1.363),
    "g": (0.8058, 1.426, 0.921, 2.152),
    "h": (0.7902, 1.281, 0.577, 2.496),
    "i": (0.6964, 1.624, 0.231, np.inf),
}


def freed(planted, sizes, losses):
    problem = planted.problem(planted.curve(patch_sizes=sizes).assign(test_loss=losses))
    solution = solve(problem, starts=2)
    alpha = Profile.of(problem, solution).exponents[0]
    return np.array([solution.amplitudes[0], solution.exponents[0], alpha.low, alpha.high])


@pytest.mark.parametrize("letter", EARLIER)
def test_relative_residuals_reproduce_the_earlier_fits_within_their_rounding(planted, letter):
    """Each number agrees to what half a digit in every loss, and half a digit in the number, can move it."""
    sizes, losses = ROUNDED[letter]
    ours = freed(planted, sizes, losses)
    moved = np.zeros(4)
    for i in range(len(losses)):
        ends = []
        for sign in (-1, 1):
            shifted = np.array(losses)
            shifted[i] += sign * 0.0005
            ends.append(freed(planted, sizes, shifted))
        with np.errstate(invalid="ignore"):
            moved += np.abs(ends[1] - ends[0]) / 2
    for value, expected, reach, half_digit in zip(ours, EARLIER[letter], moved, HALF_DIGIT, strict=True):
        if expected is None:
            assert value < 0.05
        elif np.isinf(expected):
            assert np.isinf(value)
        else:
            assert value == pytest.approx(expected, abs=reach + half_digit * (10 if expected == 3.1 else 1))


@pytest.fixture(scope="module")
def loss_fits():
    return {fit.curve["panel"]: fit for fit in fit_curves(published("patchification/test-loss"))}


@pytest.mark.parametrize("letter", SHIPPED)
def test_the_shipped_losses_give_these_fits(loss_fits, letter):
    fit = loss_fits[letter]
    alpha = fit.parameters["alpha"]
    found = (fit.parameters["E"].value, alpha.value, alpha.low, alpha.high)
    assert found == pytest.approx(SHIPPED[letter], rel=2e-3, abs=1e-3)


def test_the_two_panels_that_cannot_bound_the_exponent_are_called_weak(loss_fits):
    weak = {letter for letter in SHIPPED if loss_fits[letter].check("weak-exponent").state == "warn"}
    assert weak == {"b", "i"}
    assert "weak: 5 points cannot bound alpha" in loss_fits["b"].check("weak-exponent").message
    assert ">6" in loss_fits["i"].check("weak-exponent").message


def test_segmentation_and_detection_losses_show_no_floor(loss_fits):
    for letter in "def":
        fit = loss_fits[letter]
        assert fit.parameters["E"].value == 0
        assert fit.check("at-bound").state == "warn"
        assert fit.check("conditioning").state == "warn"
        assert fit.label.startswith(("ADE20k", "COCO"))


def test_without_the_smallest_patch_every_loss_curve_is_too_pessimistic(loss_fits):
    for letter in SHIPPED:
        holdout = loss_fits[letter].holdout
        assert holdout.predicted > holdout.measured
    # yet better than repeating the last value, but for one panel
    closer = {
        letter
        for letter in SHIPPED
        if abs((h := loss_fits[letter].holdout).predicted - h.measured) < abs(h.carried_forward - h.measured)
    }
    assert closer == set("abcgh")
    assert loss_fits["a"].holdout.predicted == pytest.approx(0.835, abs=5e-4)


def test_error_curves_are_steeper_and_predict_pixel_patches_within_a_third_of_a_point():
    fits = [fit for fit in fit_curves(published("patchification/imagenet"), target="error") if fit.holdout]
    alpha = {fit.label: fit.parameters["alpha"].value for fit in fits}
    missed = {fit.label: 100 * (fit.holdout.predicted - fit.holdout.measured) for fit in fits}
    assert len(fits) == 9
    assert all(fit.holdout.patch_size == 1 for fit in fits)
    assert sum(1.4 <= round(value, 1) <= 1.9 for value in alpha.values()) == 7
    assert min(alpha.values()) == pytest.approx(1.26, abs=0.01)
    assert max(alpha.values()) == pytest.approx(2.08, abs=0.01)
    within = {label: round(miss, 2) for label, miss in missed.items() if 0.06 <= abs(miss) <= 0.13}
    assert within == {"DeiT-Base, 64 px": 0.08, "Adventurer-Base, 224 px": 0.06, "Adventurer-Tiny, 128 px": -0.13}
    assert max(abs(miss) for miss in missed.values()) == pytest.approx(0.29, abs=0.005)
