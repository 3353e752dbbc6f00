"""A law between the sum and the bottleneck of two resources."""

from collections.abc import Mapping, Sequence

import numpy as np

from patchscale.errors import UserError
from patchscale.laws.forms.base import QUANTITIES, Array, Axes, Exponent, Law, column_name, known_axes, levels_needed


class Skaling(Law):
    """E + A (N^-alpha + R D^-beta)^k for two axes that the target falls with; k = 1 is the additive law."""

    own = ("E", "A")
    amplitudes = ("E", "A")
    exponents = (
        Exponent("alpha", 0.02, 4.0),
        Exponent("beta", 0.02, 4.0),
        Exponent("R", 1e-4, 1e4),
        Exponent("k", 0.05, 5.0),
    )
    source = "Videau et al. 2026, through a secondary text"

    def __init__(self, columns: tuple[str, str], *, name: str | None = None) -> None:
        first, second = columns
        self.name = name or f"skaling:{first},{second}"
        self.columns = columns
        self._signs = tuple(QUANTITIES[column].sign for column in columns)
        powers = [
            f"{column_name(c)}^{'-' if s < 0 else ''}{e}"
            for c, s, e in zip(columns, self._signs, ("alpha", "beta"), strict=True)
        ]
        self.formula = f"y = E + A * ({powers[0]} + R * {powers[1]})^k"
        self.axes = levels_needed(columns, least=4, good=5)
        self.meanings: Mapping[str, str] = {
            "E": "the floor",
            "A": "size of what the two resources reduce",
            "alpha": f"exponent of {first}",
            "beta": f"exponent of {second}",
            "R": f"weight of the {second} term against the {first} term",
            "k": "coupling: 1 is the additive law, smaller values let one resource stand in for the other less",
        }

    def with_options(self, options: Sequence[str]) -> "Skaling":
        """`skaling:params_backbone,images_seen`: the same in two other axes."""
        known_axes(options)
        if len(options) != 2:
            raise UserError(f"skaling couples two axes, not {len(options)}: skaling:params_backbone,images_seen")
        return Skaling((options[0], options[1]))

    def _parts(self, exponents: Array, axes: Axes) -> tuple[Array, Array, Array, Array]:
        logs = [sign * np.log(axes[column]) for column, sign in zip(self.columns, self._signs, strict=True)]
        first = np.exp(exponents[:, :1] * logs[0])
        second = exponents[:, 2:3] * np.exp(exponents[:, 1:2] * logs[1])
        return first, second, logs[0], logs[1]

    def basis(self, exponents: Array, axes: Axes) -> Array:
        """Columns 1 and the coupled term."""
        first, second, *_ = self._parts(exponents, axes)
        power = (first + second) ** exponents[:, 3:]
        return np.stack([np.ones_like(power), power], axis=-1)

    def basis_gradient(self, exponents: Array, axes: Axes) -> Array:
        """By alpha, beta, R and k."""
        first, second, log_first, log_second = self._parts(exponents, axes)
        total, k = first + second, exponents[:, 3:]
        power = total**k
        slope = k * power / total
        gradient = np.zeros((*power.shape, 2, 4))
        gradient[..., 1, 0] = slope * first * log_first
        gradient[..., 1, 1] = slope * second * log_second
        gradient[..., 1, 2] = slope * second / exponents[:, 2:3]
        gradient[..., 1, 3] = power * np.log(total)
        return gradient

    def stated(self, exponents: Array, amplitudes: Array, scales: Mapping[str, float]) -> tuple[Array, Array]:
        """The scale of the first axis goes into A, that of both into R."""
        alpha, beta, _, k = exponents.T
        first, second = (
            scales[column] ** (-sign * exponent)
            for column, sign, exponent in zip(self.columns, self._signs, (alpha, beta), strict=True)
        )
        stated = exponents.copy()
        stated[:, 2] *= second / first
        return stated, amplitudes * np.stack([np.ones_like(k), first**k], axis=1)
