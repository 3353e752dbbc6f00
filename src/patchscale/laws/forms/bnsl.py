"""A broken power law: one break, on one axis."""

from collections.abc import Mapping, Sequence

import numpy as np

from patchscale.errors import UserError
from patchscale.laws.forms.base import QUANTITIES, Array, Axes, Axis, Exponent, Law, column_name, known_axes


class Bnsl(Law):
    """E + B x^-c0 (1 + (x/d)^(1/f))^(-c1 f): the slope changes from c0 to c0 + c1 around x = d, f decades wide.

    It can only show a break inside the range that was run. The axis counts up: for patch sizes x is 1/p.
    """

    own = ("E", "B")
    amplitudes = ("E", "B")
    exponents = (
        Exponent("c0", 0.01, 4.0),
        Exponent("c1", 0.01, 4.0),
        Exponent("d", 0.02, 50.0),
        Exponent("f", 0.05, 3.0),
    )
    source = "Caballero et al. 2022 (arXiv 2210.14891), one break, c1 positive"

    def __init__(self, column: str, *, name: str | None = None) -> None:
        self.name = name or f"bnsl:{column}"
        self.column, self._sign = column, (sign := QUANTITIES[column].sign)
        x = column_name(column) if sign < 0 else f"(1/{column_name(column)})"
        self.formula = f"y = E + B * {x}^-c0 * (1 + ({x}/d)^(1/f))^(-c1 * f)"
        self.axes = (Axis(column, 8, 10),)
        self.meanings: Mapping[str, str] = {
            "E": "the floor",
            "B": "size of the power law before the break",
            "c0": "exponent before the break",
            "c1": "what the exponent gains at the break",
            "d": f"where the break is, in units of {column if sign < 0 else '1/' + column}",
            "f": "how sharp the break is; smaller is sharper",
        }

    def with_options(self, options: Sequence[str]) -> "Bnsl":
        """`bnsl:images_seen`: the same on another axis."""
        known_axes(options)
        if len(options) != 1:
            raise UserError(f"bnsl has one axis, not {len(options)}: bnsl:images_seen")
        return Bnsl(options[0])

    def _log(self, axes: Axes) -> Array:
        return -self._sign * np.log(axes[self.column])

    def basis(self, exponents: Array, axes: Axes) -> Array:
        """Columns 1 and the broken power."""
        c0, c1, d, f = (exponents[:, i : i + 1] for i in range(4))
        log = self._log(axes)
        power = np.exp(-c0 * log - c1 * f * np.logaddexp(0, (log - np.log(d)) / f))
        return np.stack([np.ones_like(power), power], axis=-1)

    def basis_gradient(self, exponents: Array, axes: Axes) -> Array:
        """By c0, c1, d and f."""
        c0, c1, d, f = (exponents[:, i : i + 1] for i in range(4))
        log = self._log(axes)
        ratio = (log - np.log(d)) / f
        soft = np.logaddexp(0, ratio)
        beyond = 1 / (1 + np.exp(-ratio))
        power = np.exp(-c0 * log - c1 * f * soft)
        gradient = np.zeros((*power.shape, 2, 4))
        gradient[..., 1, 0] = -power * log
        gradient[..., 1, 1] = -power * f * soft
        gradient[..., 1, 2] = power * c1 * beyond / d
        gradient[..., 1, 3] = -power * c1 * (soft - ratio * beyond)
        return gradient

    def stated(self, exponents: Array, amplitudes: Array, scales: Mapping[str, float]) -> tuple[Array, Array]:
        """The break moves with the axis; B takes its scale."""
        scale = scales[self.column] ** -self._sign
        stated = exponents.copy()
        stated[:, 2] *= scale
        return stated, amplitudes * np.stack([np.ones(len(exponents)), scale ** exponents[:, 0]], axis=1)
