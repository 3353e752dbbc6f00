import numpy as np
import pytest

from patchscale.errors import UserError
from patchscale.laws.forms import LAWS, law_named
from patchscale.laws.forms.powers import Additive
from patchscale.laws.joint import FitOptions, fit_joint
from patchscale.laws.table import target_named


@pytest.mark.parametrize("law", LAWS.values(), ids=list(LAWS))
def test_the_gradient_of_every_law_is_that_of_its_basis(law):
    rng = np.random.default_rng(0)
    axes = {axis.column: rng.uniform(0.5, 20, size=6) for axis in law.axes}
    exponents = rng.uniform(0.2, 2, size=(3, len(law.exponents)))
    gradient = law.basis_gradient(exponents, axes)
    assert law.basis(exponents, axes).shape == (3, 6, len(law.amplitudes))
    assert gradient.shape == (3, 6, len(law.amplitudes), len(law.exponents))
    for i in range(len(law.exponents)):
        step = np.zeros_like(exponents)
        step[:, i] = 1e-6
        numeric = (law.basis(exponents + step, axes) - law.basis(exponents - step, axes)) / 2e-6
        np.testing.assert_allclose(gradient[..., i], numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("law", LAWS.values(), ids=list(LAWS))
def test_every_law_says_what_it_is(law):
    assert LAWS[law.name] is law
    assert set(law.meanings) == set(law.parameters)
    assert all(name in law.formula for name in law.parameters)
    assert law.source
    assert all(0 < exponent.low < exponent.high for exponent in law.exponents)
    assert all(axis.min_levels <= axis.good_levels for axis in law.axes)


def test_an_unknown_form_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'patch'"):
        law_named("pacth")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("patch:native=4", "form 'patch' has no options, given 'native=4'; use 'patch'"),
        ("tokens:img_size", "form 'tokens' has no options"),
        ("additive:patch_size,patch_size", "an axis is named twice"),
        ("skaling:patch_size", "couples two axes, not 1"),
        ("bnsl:patch_size,img_size", "has one axis, not 2"),
        ("relative-patch:native=-3", "native=-3: the image size in pixels"),
    ],
)
def test_options_that_a_law_does_not_have_are_refused(form, message):
    with pytest.raises(UserError, match=message):
        law_named(form)


@pytest.mark.parametrize(
    "form", ["product:params_backbone,patch_size", "skaling:patch_size,train_images", "bnsl:patch_size"]
)
def test_a_law_in_other_axes_is_called_by_its_form(form):
    law = law_named(form)
    assert law.name == form
    assert [axis.column for axis in law.axes] == form.partition(":")[2].split(",")


def test_a_new_law_brings_its_own_rules(planted):
    """What `forms/` says of one class is all that a fit needs to know of it."""

    class OddSizes(Additive):
        def refuse(self, rows, label):
            if (rows["patch_size"] % 2 == 0).any():
                raise UserError(f"{label}: even patch sizes")

        def floor_trade_off(self, rows):
            return "warn", "no floor in odd sizes"

    law = OddSizes(["patch_size"])
    rows = planted.curve(patch_sizes=(1, 3, 5, 7, 9, 11))
    options = FitOptions(law=law, target=target_named("loss"), draws=40)
    assert fit_joint(rows, options).check("floor-resolution").message == "no floor in odd sizes"
    with pytest.raises(UserError, match="additive:patch_size: even patch sizes"):
        fit_joint(rows.assign(patch_size=2 * rows["patch_size"]), options)
