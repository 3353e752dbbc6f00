"""A patch law that levels out at small patches."""

from collections.abc import Mapping

import numpy as np

from patchscale.laws.forms.base import Array, Axes, Axis, Exponent, Law


class Shifted(Law):
    """E + A (p + p0)^a: below about p0 pixels, smaller patches stop helping."""

    name = "shifted"
    formula = "y = E + A * (p + p0)^a"
    source = "the patch law with the shift of Zhai et al. 2022 (arXiv 2106.04560), whose axis is compute"
    axes = (Axis("patch_size", 6, 8),)
    amplitudes = ("E", "A")
    exponents = (Exponent("a", 0.05, 6.0), Exponent("p0", 0.01, 20.0))
    own = ("E", "A")
    meanings = {  # noqa: RUF012
        "E": "the floor at p = -p0; at p = 0 the law is E + A p0^a",
        "A": "the excess over the floor where p + p0 is one pixel",
        "a": "the exponent of the shifted patch size",
        "p0": "the patch size (px) below which the curve levels out; searched from 0.01 to 20 times the mean size",
    }

    def _base(self, exponents: Array, axes: Axes) -> Array:
        return axes["patch_size"] + exponents[:, 1:]

    def basis(self, exponents: Array, axes: Axes) -> Array:
        """Columns 1 and (p + p0)^a."""
        power = self._base(exponents, axes) ** exponents[:, :1]
        return np.stack([np.ones_like(power), power], axis=-1)

    def basis_gradient(self, exponents: Array, axes: Axes) -> Array:
        """By a and by p0."""
        base = self._base(exponents, axes)
        power = base ** exponents[:, :1]
        gradient = np.zeros((*power.shape, 2, 2))
        gradient[..., 1, 0] = power * np.log(base)
        gradient[..., 1, 1] = exponents[:, :1] * power / base
        return gradient

    def stated(self, exponents: Array, amplitudes: Array, scales: Mapping[str, float]) -> tuple[Array, Array]:
        """p0 is a length; A belongs to one pixel."""
        scale = scales["patch_size"]
        worth = np.stack([np.ones(len(exponents)), scale ** -exponents[:, 0]], axis=1)
        return exponents * np.array([1.0, scale]), amplitudes * worth
