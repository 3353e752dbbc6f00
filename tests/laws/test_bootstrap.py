"""Degrees of freedom of intervals, and what they come to where the truth is known."""

import numpy as np
import pytest

from patchscale.laws.bootstrap import Freedom, by_cluster, percentiles


def freedom_of(directions, clusters, *, draws=400):
    """Freedom of a linear fit with equal noise, its residuals enlarged as CR2 does."""
    shares = []
    for cluster in range(clusters.max() + 1):
        own = directions[clusters == cluster]
        values, vectors = np.linalg.eigh(np.eye(len(own)) - own @ own.T)
        shares.append(vectors @ np.diag(values**-0.5) @ vectors.T)
    moves = np.random.default_rng(0).normal(size=(draws, len(clusters)))
    return Freedom(directions, clusters, shares, moves @ directions), moves


@pytest.mark.parametrize(("clusters", "each"), [(6, 1), (6, 4), (30, 1), (12, 7)])
def test_a_mean_of_equal_clusters_has_one_degree_of_freedom_less_than_clusters(clusters, each):
    """The t test of a mean, row by row or by cluster means."""
    numbers = np.repeat(np.arange(clusters), each)
    mean = np.full((len(numbers), 1), len(numbers) ** -0.5)
    freedom, moves = freedom_of(mean, numbers)
    assert freedom.of(moves @ mean) == pytest.approx([clusters - 1])


def test_degrees_of_freedom_are_those_of_the_quadratic_form():
    """Against the matrices written out, for quantities that rest on many rows, on few, and on one cluster."""
    rng = np.random.default_rng(1)
    numbers = rng.permutation(np.repeat(np.arange(7), [2, 3, 3, 4, 5, 6, 7]))
    directions, _ = np.linalg.qr(rng.normal(size=(30, 4)))
    freedom, _ = freedom_of(directions, numbers)
    slopes = rng.normal(size=(4, 5))
    expected = []
    spared = np.eye(30) - directions @ directions.T
    for column in (directions @ slopes).T:
        sums = np.zeros((7, 30))
        for cluster, share in enumerate(freedom.shares):
            own = numbers == cluster
            sums[cluster, own] = share @ column[own]
        covariance = sums @ spared @ sums.T
        expected.append(np.trace(covariance) ** 2 / np.trace(covariance @ covariance))
    assert freedom.of(freedom.scores @ slopes) == pytest.approx(expected)
    assert min(expected) < 6


def test_a_spread_is_never_known_to_less_than_one_degree_of_freedom():
    """A direction that one row of its own decides: nothing is left to read its spread from."""
    directions = np.zeros((8, 2))
    directions[0, 0], directions[1:, 1] = np.sqrt(0.999), 7**-0.5
    directions[1:, 0] = 0
    directions[1, 0] = np.sqrt(0.001)
    directions, _ = np.linalg.qr(directions)
    freedom, moves = freedom_of(directions, np.arange(8))
    found = freedom.of(moves @ directions[:, :1])
    assert (found >= 1).all()
    assert found[0] < 2
    assert np.isfinite(freedom.of(np.zeros((400, 1)))).all()


def test_rows_of_clusters_stay_where_they_are():
    columns = np.arange(12.0).reshape(6, 2)
    doubled = by_cluster([np.eye(3), 2 * np.eye(3)], columns, np.array([0, 1, 0, 1, 1, 0]))
    np.testing.assert_array_equal(doubled, columns * np.array([1, 2, 1, 2, 2, 1])[:, None])


def test_percentiles_of_few_draws_hold_what_they_say():
    """A new draw from the same distribution lies between them as often as said, whatever the number of draws."""
    rng = np.random.default_rng(0)
    low, high = percentiles(rng.normal(size=(39, 20_000)), 0.95)
    new = rng.normal(size=20_000)
    assert np.mean((low < new) & (new < high)) == pytest.approx(0.95, abs=0.005)
