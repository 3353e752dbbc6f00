import numpy as np
import pytest

from patchscale.errors import UserError
from patchscale.laws.forms import LAWS, law_named


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
