"""Sums and products of powers of any axes."""

from collections.abc import Mapping, Sequence

import pandas as pd

from patchscale.errors import UserError
from patchscale.laws.forms.base import QUANTITIES, Exponent, PowerLaw, known_axes, levels_needed, power_text
from patchscale.laws.table import shorten, varying

LOW, HIGH = 0.02, 5.0
"""Exponents are searched between these."""


def _terms_of(columns: Sequence[str]) -> list[tuple[str, int, str, str]]:
    """Column, sign, amplitude and exponent, lettered in the order given."""
    return [(c, QUANTITIES[c].sign, "ABCGHJKLM"[i], "abcghjklm"[i]) for i, c in enumerate(columns)]


class Additive(PowerLaw):
    """A floor plus one power of each axis. In model size and training images it is Hoffmann's law."""

    def __init__(self, columns: Sequence[str], *, name: str | None = None) -> None:
        parts = _terms_of(columns)
        self.name = name or "additive:" + ",".join(columns)
        self.formula = "y = E" + "".join(f" + {A} * {power_text(c, a)}" for c, _, A, a in parts)
        self.source = "Hoffmann et al. 2022 (arXiv 2203.15556), approach 3, for any axes"
        self.axes = levels_needed(columns)
        self.amplitudes = ("E", *(A for _, _, A, _ in parts))
        self.terms = ({}, *({c: (sign, a)} for c, sign, _, a in parts))
        self.exponents = tuple(Exponent(a, LOW, HIGH) for *_, a in parts)
        self.own = ("E", *(A for c, _, A, _ in parts if c == "params_backbone"))
        self.meanings: Mapping[str, str] = {
            "E": "the floor: what none of the axes removes",
            **{A: f"size of the {c} term" for c, _, A, _ in parts},
            **{a: f"exponent of {c}" for c, _, _, a in parts},
        }

    def with_options(self, options: Sequence[str]) -> "Additive":
        """`additive:patch_size,params_backbone`: the same in other axes."""
        known_axes(options)
        return Additive(options)


class Product(PowerLaw):
    """A floor plus one product of powers of all axes.

    Along lines of equal cost it is monotone, so plans made with it end in a corner of what can be run.
    """

    own = ("E", "A")

    def __init__(self, columns: Sequence[str], *, name: str | None = None) -> None:
        parts = _terms_of(columns)
        self.name = name or "product:" + ",".join(columns)
        self.formula = "y = E + A" + "".join(f" * {power_text(c, a)}" for c, _, _, a in parts)
        self.source = "the usual interaction form; compared with others in docs/laws.md"
        self.axes = levels_needed(columns)
        self.amplitudes = ("E", "A")
        self.terms = ({}, {c: (sign, a) for c, sign, _, a in parts})
        self.exponents = tuple(Exponent(a, LOW, HIGH) for *_, a in parts)
        self.meanings: Mapping[str, str] = {
            "E": "the floor: what none of the axes removes",
            "A": "size of the product",
            **{a: f"exponent of {c}" for c, _, _, a in parts},
        }

    def with_options(self, options: Sequence[str]) -> "Product":
        """`product:patch_size,params_backbone`: the same in other axes."""
        known_axes(options)
        return Product(options)


class Tokens(PowerLaw):
    """E + A T^-a + B N^-b: for comparison only. At equal tokens more pixels still help, so one image size only."""

    name = "tokens"
    formula = "y = E + A * T^-a + B * N^-b"
    source = "the tokens-only form that docs/laws.md compares with others"
    axes = levels_needed(("tokens", "params_backbone"))
    amplitudes = ("E", "A", "B")
    terms = ({}, {"tokens": (-1, "a")}, {"params_backbone": (-1, "b")})
    exponents = (Exponent("a", LOW, HIGH), Exponent("b", LOW, HIGH))
    own = ("E", "B")
    meanings = {  # noqa: RUF012
        "E": "the floor",
        "A": "size of the token term",
        "B": "size of the model term",
        "a": "exponent of the tokens",
        "b": "exponent of the model size",
    }

    def refuse(self, rows: pd.DataFrame, label: str) -> None:
        """Refuses several image sizes."""
        if varying(rows, ["img_size"]):
            raise UserError(
                f"{label}: img_size varies ({shorten(rows['img_size'])}), and at equal tokens more pixels still help; "
                "select one image size, or use form 'relative-patch'"
            )
