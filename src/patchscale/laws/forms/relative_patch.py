"""The joint law of patch size, image size and model size."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from patchscale.errors import UserError
from patchscale.laws.forms.base import Axes, Axis, Exponent, PowerLaw
from patchscale.laws.forms.needs import refuse_few_ratios
from patchscale.laws.table import distinct

GOOD_IMG_SIZES = 4
"""With fewer image sizes a floor and a resolution term are hardly told apart."""


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

    def with_options(self, options: Sequence[str]) -> "RelativePatch":
        """`relative-patch:h=0,C=0,native=460`, each of them or several."""
        native: float | None = None
        for option in options:
            key, _, value = option.partition("=")
            if key == "native":
                native = _native(value)
            elif option not in ("h=0", "C=0"):
                raise UserError(f"relative-patch has no option {option!r}; options: h=0, C=0, native=PIXELS")
        return RelativePatch(h="h=0" not in options, C="C=0" not in options, native=native)

    def refuse(self, rows: pd.DataFrame, label: str) -> None:
        """The patch term needs four values of p/r; beside a resolution term, three patch sizes at two image sizes."""
        if "C" not in self.amplitudes:
            refuse_few_ratios(rows, self.name, label, "run more patch sizes")
            return
        counts = rows.groupby("img_size")["patch_size"].nunique()
        rich = counts[counts >= 3]
        if len(rich) < 2:
            poor = counts.sort_values(ascending=False).index[len(rich)]
            raise UserError(
                f"{label}: three patch sizes at {len(rich)} of {len(counts)} image sizes; form {self.name!r} needs "
                f"them at two, to tell the patch from the image; run more patch sizes at img_size {poor:g}, or use "
                "form 'relative-patch:C=0'"
            )

    def floor_trade_off(self, rows: pd.DataFrame) -> tuple[str, str]:
        """A resolution term with a small exponent looks like a floor at few image sizes."""
        if "C" not in self.amplitudes:
            return super().floor_trade_off(rows)
        count = len(distinct(rows["img_size"]))
        if count < GOOD_IMG_SIZES:
            return "warn", (
                f"E and C trade off: {count} image sizes cannot tell a floor from a resolution term with a small "
                f"exponent; run {GOOD_IMG_SIZES - count} more, or compare with form 'relative-patch:C=0'"
            )
        return "ok", f"{count} image sizes"

    def derive(self, axes: Axes) -> Axes:
        """Adds the effective image size where there is a native one."""
        if self.native is None:
            return axes
        return {**axes, "img_size_effective": np.minimum(axes["img_size"], self.native)}


def _native(text: str) -> float:
    try:
        native = float(text)
    except ValueError:
        native = -1.0
    if not 0 < native < float("inf"):
        raise UserError(f"native={text}: the image size in pixels above which r stops helping, such as 460")
    return native
