import numpy as np
import pytest
from scipy.optimize import lsq_linear, nnls

from patchscale.laws.nnls import nonnegative


@pytest.mark.parametrize("unknowns", [1, 3, 12, 40])
def test_many_problems_at_once_agree_with_one_at_a_time(unknowns):
    rng = np.random.default_rng(unknowns)
    columns = rng.normal(size=(30, 60, unknowns)) * np.exp(rng.normal(scale=3, size=unknowns))
    # positive columns that resemble each other, as those of a law do
    columns[:15] = np.abs(columns[:15]) + 5 * np.abs(columns[:15]).mean(axis=1, keepdims=True)
    target = rng.normal(size=(30, 60))
    found = nonnegative(columns, target, np.zeros(unknowns, bool))
    assert (found >= 0).all()
    for x, A, y in zip(found, columns, target, strict=True):
        length = np.linalg.norm(A, axis=0)
        expected, norm = nnls(A / length, y)
        assert np.linalg.norm(A @ x - y) == pytest.approx(norm, rel=1e-10)
        np.testing.assert_allclose(x * length, expected, atol=1e-8)


def test_free_unknowns_may_be_negative():
    rng = np.random.default_rng(0)
    columns, target = rng.normal(size=(20, 15, 4)), rng.normal(size=(20, 15))
    free = np.array([True, False, False, True])
    found = nonnegative(columns, target, free)
    assert (found[:, free] < 0).any()
    for x, A, y in zip(found, columns, target, strict=True):
        bounds = (np.where(free, -np.inf, 0), np.full(4, np.inf))
        expected = lsq_linear(A, y, bounds=bounds, method="bvls", tol=1e-14).x
        np.testing.assert_allclose(x, expected, atol=1e-7)


def test_columns_that_coincide_share_their_amplitude():
    A = np.ones((1, 6, 2))
    found = nonnegative(A, np.full((1, 6), 3.0), np.zeros(2, bool))
    assert found[0].sum() == pytest.approx(3, rel=1e-6)
