"""The joint law of patch size, image size and model size."""

from collections.abc import Mapping

import numpy as np

from patchscale.laws.forms.base import Axes, Axis, Exponent, PowerLaw


class RelativePatch(PowerLaw):
    """E + A (p/r)^a N^-h + B N^-b + C r^-c.

    (p/r)^a is T^(-a/2), the effect of the tokens; N^-h says that large models gain less from small patches; C r^-c is
    the detail in the pixels. h = 0 and C = 0 are nested in it. With `native`, C r^-c stops falling at that image
    size (px): pictures hold no more detail than they were taken with.
    """

    own = ("E", "B")

    def __init__(self, *, h: bool = True, C: bool = True, native: float | None = None) -> None:
        options = [*([] if h else ["h=0"]), *([] if C else ["C=0"]), *([f"native={native:g}"] if native else [])]
        self.name = "relative-patch" + (":" + ",".join(options) if options else "")
        self.native = native
        resolution = "img_size_effective" if native else "img_size"
        patch: dict[str, tuple[int, str]] = {"patch_size": (1, "a"), "img_size": (-1, "a")}
        if h:
            patch["params_backbone"] = (-1, "h")
        self.amplitudes = ("E", "A", "B", *(["C"] if C else []))
        self.terms = ({}, patch, {"params_backbone": (-1, "b")}, *([{resolution: (-1, "c")}] if C else []))
        self.exponents = (
            Exponent("a", 0.05, 5.0),
            *([Exponent("h", 0.01, 3.0)] if h else []),
            Exponent("b", 0.02, 4.0),
            *([Exponent("c", 0.02, 4.0)] if C else []),
        )
        capped = f"min(r, {native:g})" if native else "r"
        self.formula = f"y = E + A * (p/r)^a{' * N^-h' if h else ''} + B * N^-b{f' + C * {capped}^-c' if C else ''}"
        self.source = "this package; compared with other forms on three published tables in docs/laws.md"
        # without the resolution term only p/r matters, and image sizes vary it as patch sizes do
        sizes = (
            (Axis("patch_size", 3, 4), Axis("img_size", 2, 4))
            if C
            else (Axis("patch_size", 2, 3), Axis("img_size", 1, 2))
        )
        self.axes = (*sizes, Axis("params_backbone", 3, 4))
        meanings = {
            "E": "the floor: what neither patches, pixels nor parameters remove",
            "A": "size of the patch term",
            "B": "size of the model term",
            "C": "size of the resolution term",
            "a": "exponent of the patch size relative to the image; twice that of the tokens",
            "h": "how much less large models gain from small patches",
            "b": "exponent of the model size",
            "c": "exponent of the image size",
        }
        self.meanings: Mapping[str, str] = {name: meanings[name] for name in self.parameters}

    def derive(self, axes: Axes) -> Axes:
        """Adds the effective image size where there is a native one."""
        if self.native is None:
            return axes
        return {**axes, "img_size_effective": np.minimum(axes["img_size"], self.native)}
