"""A small law fitted for real: least squares, and draws from the covariance of the parameters."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares

from patchscale.published_tables.tables import published


@dataclass(frozen=True)
class SmallFit:
    """value = function(table, logarithms of the parameters)."""

    function: Callable
    best: np.ndarray
    sample: np.ndarray
    measured: pd.DataFrame
    target: str = "error"
    quantity: str = "error (1 - top1)"
    level: float = 0.95

    def values(self, table):
        return self.function(table, self.best)

    def draws(self, table):
        return self.function(table, self.sample)

    def predict(self, table):
        low, high = np.quantile(self.draws(table), [0.025, 0.975], axis=0)
        names = [[] for _ in range(len(table))]
        for column in self.measured:
            inside = table[column].between(self.measured[column].min(), self.measured[column].max())
            for place in np.flatnonzero(~inside):
                names[place].append(column)
        outside = [", ".join(found) for found in names]
        return pd.DataFrame(
            {
                "predicted": self.values(table),
                "low": low,
                "high": high,
                "extrapolated": [bool(found) for found in outside],
                "outside": outside,
            }
        )


def fit_small(function, table, values, start, *, draws=400, seed=0):
    found = least_squares(lambda q: function(table, q) / values - 1, start)
    variance = 2 * found.cost / (len(values) - len(start))
    covariance = variance * np.linalg.inv(found.jac.T @ found.jac)
    sample = np.random.default_rng(seed).multivariate_normal(found.x, covariance, size=draws)
    return SmallFit(function, found.x, sample, table)


def joint(table, q):
    """A (p/r)^a (N/1e8)^-h + B (N/1e8)^-b + C (r/224)^-c, for parameters [7] or draws of them [B, 7]."""
    A, a, h, B, b, C, c = np.exp(np.asarray(q).T[..., None])
    size = table["params_backbone"].to_numpy(float) / 1e8
    sides = table["img_size"].to_numpy(float)
    return A * (table["patch_size"].to_numpy(float) / sides) ** a * size**-h + B * size**-b + C * (sides / 224) ** -c


@pytest.fixture(scope="session")
def joint_fit():
    """The joint law on the founding paper's Adventurer results."""
    table = published("patchification/imagenet").query("architecture == 'adventurer' and patch_size <= 16")
    axes = table[["patch_size", "img_size", "params_backbone"]].astype(float)
    start = np.log([1.0, 1.6, 0.3, 0.01, 0.7, 0.15, 0.16])
    return fit_small(joint, axes, 1 - table["metric"].to_numpy(), start)
