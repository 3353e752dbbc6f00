"""The laws that can be fitted: one small class and one entry in `LAWS` each.

A law is linear in its amplitudes and non-linear in its exponents:

    value = sum over k of amplitude[k] * basis[k](exponents, axes),   amplitude >= 0

so a law only has to supply its basis and the derivative of the basis. Everything else (search, intervals, checks,
printing) is the same for all laws.

G exponent vectors evaluated at once, q exponents, n points, k amplitudes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from patchscale.errors import UserError

Array = NDArray[np.float64]
Axes = Mapping[str, Array]


@dataclass(frozen=True)
class Exponent:
    """A parameter that enters non-linearly, and the interval in which it is searched (on a log scale)."""

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class Axis:
    """A column the law depends on, and how many distinct values it needs."""

    column: str
    min_levels: int
    """Fewer are refused: the law could not be told from others."""
    good_levels: int
    """Fewer are fitted with a warning."""


class Law(ABC):
    """One functional form. Subclasses are final and hold no state."""

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    axes: ClassVar[tuple[Axis, ...]]
    amplitudes: ClassVar[tuple[str, ...]]
    exponents: ClassVar[tuple[Exponent, ...]]
    meanings: ClassVar[Mapping[str, str]]
    """One phrase per parameter, as it is printed."""

    @abstractmethod
    def basis(self, exponents: Array, axes: Axes) -> Array:
        """Columns that the amplitudes multiply: exponents [G, q] -> [G, n, k]."""

    @abstractmethod
    def basis_gradient(self, exponents: Array, axes: Axes) -> Array:
        """Derivative of `basis` by each exponent: [G, n, k, q]."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters, amplitudes first."""
        return (*self.amplitudes, *(exponent.name for exponent in self.exponents))


class PatchLaw(Law):
    """A floor plus a power of the patch size: one curve, everything but the patch size held fixed.

    `A` is the excess over the floor at a patch of one pixel. Exponents are searched from 0.01, where the term is
    all but logarithmic in p, to 6, where halving the patch divides the excess by 64 and the curve is a step.
    """

    name = "patch"
    formula = "y = E + A * p^alpha"
    source = (
        "the straight lines of Figure 1 in arXiv 2502.03738, whose axis is log(loss - constant) against log(patch size)"
    )
    axes = (Axis("patch_size", min_levels=4, good_levels=5),)
    amplitudes = ("E", "A")
    exponents = (Exponent("alpha", 0.01, 6.0),)
    meanings: ClassVar[Mapping[str, str]] = {
        "E": "the floor: what no smaller patch removes",
        "A": "the excess over the floor at a patch of 1 px",
        "alpha": "the exponent of the patch size",
    }

    def basis(self, exponents: Array, axes: Axes) -> Array:
        """Columns 1 and p^alpha."""
        power = axes["patch_size"] ** exponents[:, :1]
        return np.stack([np.ones_like(power), power], axis=-1)

    def basis_gradient(self, exponents: Array, axes: Axes) -> Array:
        """Columns 0 and p^alpha * ln(p)."""
        power = axes["patch_size"] ** exponents[:, :1]
        slope = power * np.log(axes["patch_size"])
        return np.stack([np.zeros_like(power), slope], axis=-1)[..., None]


LAWS: dict[str, Law] = {
    "patch": PatchLaw(),
}


def law_named(name: str) -> Law:
    """The law called `name`; raises `UserError` with the known names."""
    if name in LAWS:
        return LAWS[name]
    close = get_close_matches(name, LAWS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UserError(f"form {name!r} is not known{hint} (forms: {', '.join(LAWS)})")
