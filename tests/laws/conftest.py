"""Curves whose law is known, as the fixture `planted`."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from patchscale.laws.forms import Array, Axes, Axis, Exponent, Law, law_named
from patchscale.laws.varpro import Problem

PATCH_SIZES = (16, 8, 4, 2, 1)


def curve(E=0.8, A=0.006, alpha=1.4, *, patch_sizes=PATCH_SIZES, noise=0.0, seeds=1, rng=0) -> pd.DataFrame:
    """A table of runs on E + A p^alpha with relative normal noise."""
    p = np.repeat(np.array(patch_sizes, float), seeds)
    scatter = np.random.default_rng(rng).normal(size=len(p))
    loss = (E + A * p**alpha) * (1 + noise * scatter)
    seed = np.tile(np.arange(seeds), len(patch_sizes))
    return pd.DataFrame({"patch_size": p, "seed": seed, "test_loss": loss})


def problem(table: pd.DataFrame, *, column: str = "test_loss") -> Problem:
    """The table as a problem of the patch law, relative residuals."""
    values = table[column].to_numpy(float)
    return Problem(law_named("patch"), {"patch_size": table["patch_size"].to_numpy(float)}, values, values)


class TwoPowers(Law):
    """E + A N^-alpha + B D^-beta (Hoffmann et al. 2022): shows that the machinery is not about one exponent."""

    name = "two-powers"
    formula = "y = E + A * N^-alpha + B * D^-beta"
    source = "arXiv 2203.15556, approach 3"
    axes = (Axis("N", 4, 5), Axis("D", 4, 5))
    amplitudes = ("E", "A", "B")
    exponents = (Exponent("alpha", 0.05, 2.0), Exponent("beta", 0.05, 2.0))
    meanings: dict[str, str] = {}  # noqa: RUF012

    def basis(self, exponents: Array, axes: Axes) -> Array:
        first, second = axes["N"] ** -exponents[:, :1], axes["D"] ** -exponents[:, 1:]
        return np.stack([np.ones_like(first), first, second], axis=-1)

    def basis_gradient(self, exponents: Array, axes: Axes) -> Array:
        gradient = np.zeros((len(exponents), len(axes["N"]), 3, 2))
        gradient[:, :, 1, 0] = -(axes["N"] ** -exponents[:, :1]) * np.log(axes["N"])
        gradient[:, :, 2, 1] = -(axes["D"] ** -exponents[:, 1:]) * np.log(axes["D"])
        return gradient


HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}


def chinchilla(*, noise: float = 0.0, rng: int = 0, budgets: int = 8, points: int = 16) -> Problem:
    """Hoffmann's rounded law on isoFLOP budgets, N from 1/16 to 16 times the square root of C/6 on each."""
    C = np.repeat(np.geomspace(1e18, 1e22, budgets), points)
    N = np.sqrt(C / 6) * np.tile(np.geomspace(1 / 16, 16, points), budgets) / 4
    D = C / (6 * N)
    h = HOFFMANN
    loss = h["E"] + h["A"] * N ** -h["alpha"] + h["B"] * D ** -h["beta"]
    loss = loss * (1 + noise * np.random.default_rng(rng).normal(size=len(loss)))
    return Problem(TwoPowers(), {"N": N, "D": D}, loss, loss)


@pytest.fixture(scope="session")
def planted() -> SimpleNamespace:
    """The makers above; test modules cannot import each other."""
    return SimpleNamespace(curve=curve, problem=problem, chinchilla=chinchilla, hoffmann=HOFFMANN)
