"""The patch law: one curve, everything but the patch size held fixed."""

import numpy as np

from patchscale.laws.forms.base import Array, Axes, Axis, Exponent, Law


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
    own = ("E", "A")
    one_curve = True
    meanings = {  # noqa: RUF012
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
