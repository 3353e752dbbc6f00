"""What a law is: linear in its amplitudes, non-linear in its exponents.

    value = sum over k of amplitude[k] * basis[k](exponents, axes)

so a law only has to supply its basis and the derivative of the basis. Everything else (search, intervals, checks,
printing) is the same for all laws. Amplitudes are not negative, but for those a law lists as free.

G exponent vectors evaluated at once, q exponents, n points, k amplitudes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import pandas as pd
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


@dataclass(frozen=True)
class Quantity:
    """A column that laws may depend on."""

    symbol: str
    sign: int
    """+1 if the target rises with it, -1 if it falls."""
    meaning: str


QUANTITIES = {
    "patch_size": Quantity("p", 1, "side of a patch in pixels"),
    "img_size": Quantity("r", -1, "side of the image in pixels"),
    "params_backbone": Quantity("N", -1, "parameters without head and position table"),
    "train_images": Quantity("D", -1, "different training images"),
    "images_seen": Quantity("S", -1, "training images seen, repeats counted"),
    "flops_train_total": Quantity("F", -1, "FLOPs of the whole training"),
    "tokens": Quantity("T", -1, "tokens of an image"),
    "visual_tokens": Quantity("V", -1, "visual tokens that enter the language model"),
    "llm_params": Quantity("N", -1, "parameters of the language model"),
}
"""Columns, their letters in formulas and the direction in which they act."""


class Law(ABC):
    """One functional form. Subclasses are final and their instances never change."""

    name: str
    formula: str
    source: str
    axes: tuple[Axis, ...]
    amplitudes: tuple[str, ...]
    exponents: tuple[Exponent, ...]
    meanings: Mapping[str, str]
    """One phrase per parameter, as it is printed."""
    floor: str = "E"
    """The amplitude that no axis reduces."""
    own: tuple[str, ...] = ("E",)
    """Amplitudes that each group has for itself in a joint fit; the others are shared."""
    free: tuple[str, ...] = ()
    """Amplitudes of either sign."""
    one_curve: bool = False
    """Whether it describes one curve with all else fixed: fitted as such (`fit.py`) unless groups or factors ask for
    many at once (`joint.py`)."""

    @abstractmethod
    def basis(self, exponents: Array, axes: Axes) -> Array:
        """Columns that the amplitudes multiply: exponents [G, q] -> [G, n, k]."""

    @abstractmethod
    def basis_gradient(self, exponents: Array, axes: Axes) -> Array:
        """Derivative of `basis` by each exponent: [G, n, k, q]."""

    def slope(self, exponents: Array, amplitudes: Array, axes: Axes) -> Array:
        """Derivative of the law by each exponent at amplitudes [G, k] or, point by point, [G, n, k]: [G, n, q]."""
        gradient = self.basis_gradient(exponents, axes)
        if amplitudes.ndim == 2:
            amplitudes = amplitudes[:, None, :]
        return np.einsum("gnkq,gnk->gnq", gradient, np.broadcast_to(amplitudes, gradient.shape[:3]))

    def derive(self, axes: Axes) -> Axes:
        """The axes with any that follow from others added; in stated units."""
        return axes

    def stated(self, exponents: Array, amplitudes: Array, scales: Mapping[str, float]) -> tuple[Array, Array]:
        """Exponents and amplitudes [G, ...] for axes in stated units, from those for axes divided by `scales`.

        A column that is a product of powers of the axes is worth, at one unit of each, what its amplitude has to be
        multiplied with.
        """
        unit = {name: np.array([1 / scale]) for name, scale in scales.items()}
        return exponents, amplitudes * self.basis(exponents, unit)[:, 0, :]

    def refuse(self, rows: pd.DataFrame, label: str) -> None:
        """Raise `UserError` for rows that cannot support this law, though each axis has levels enough."""
        return

    def floor_trade_off(self, rows: pd.DataFrame) -> tuple[str, str]:
        """State (ok, warn, n/a) and message: whether these rows tell the floor from the term most like it."""
        return "n/a", "the law has no resolution term"

    def with_options(self, options: Sequence[str]) -> "Law":
        """This law with what follows the colon in a form; raises `UserError` for options it does not have."""
        raise UserError(f"form {self.name!r} has no options, given {','.join(options)!r}; use {self.name!r}")

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters, amplitudes first."""
        return (*self.amplitudes, *(exponent.name for exponent in self.exponents))


class PowerLaw(Law):
    """A floor plus products of powers of the axes; a subclass only lists its `terms`."""

    terms: tuple[Mapping[str, tuple[int, str]], ...]
    """For each amplitude, column -> (sign, exponent); empty for the floor."""

    def _logs(self, axes: Axes) -> Array:
        """Derivative of the logarithm of every column by every exponent: [n, k, q]."""
        names = [exponent.name for exponent in self.exponents]
        logs = np.zeros((len(next(iter(axes.values()))), len(self.terms), len(names)))
        for k, term in enumerate(self.terms):
            for column, (sign, exponent) in term.items():
                logs[:, k, names.index(exponent)] += sign * np.log(axes[column])
        return logs

    def basis(self, exponents: Array, axes: Axes) -> Array:
        """Products of powers."""
        return np.exp(np.einsum("nkq,gq->gnk", self._logs(axes), exponents))

    def basis_gradient(self, exponents: Array, axes: Axes) -> Array:
        """Each column times the logarithms in its exponent."""
        logs = self._logs(axes)
        return np.exp(np.einsum("nkq,gq->gnk", logs, exponents))[..., None] * logs

    def slope(self, exponents: Array, amplitudes: Array, axes: Axes) -> Array:
        """As in `Law`, without the large array."""
        logs = self._logs(axes)
        if amplitudes.ndim == 2:
            amplitudes = amplitudes[:, None, :]
        parts = np.exp(np.einsum("nkq,gq->gnk", logs, exponents)) * amplitudes
        return np.matmul(parts.transpose(1, 0, 2), logs).transpose(1, 0, 2)


def known_axes(columns: Sequence[str]) -> None:
    """Raise `UserError` for columns that are no axis, and for one named twice."""
    for column in columns:
        if column not in QUANTITIES:
            close = get_close_matches(column, QUANTITIES, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"no law has an axis {column!r}{hint} (axes: {', '.join(QUANTITIES)})")
    if len(set(columns)) < len(columns):
        raise UserError(f"an axis is named twice in {', '.join(columns)}; name each once")


def column_name(column: str) -> str:
    """The letter of a column in formulas."""
    return QUANTITIES[column].symbol


def power_text(column: str, exponent: str, sign: int | None = None) -> str:
    """`N^-b`: a power of an axis as it is written in formulas."""
    return f"{column_name(column)}^{'-' if (sign or QUANTITIES[column].sign) < 0 else ''}{exponent}"


def levels_needed(columns: Sequence[str], *, least: int = 3, good: int = 4) -> tuple[Axis, ...]:
    """Axes of a joint law, all with the same needs."""
    return tuple(Axis(column, least, good) for column in columns)
