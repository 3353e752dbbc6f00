"""Vision-language models: visual tokens against the size of the language model. One task group at a time.

With the option `encoder` a term C (p/r)^a is added: what the vision encoder sees. The number of visual tokens
leaves that open, since tokens are merged, resampled or pruned after the encoder.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from patchscale.errors import UserError
from patchscale.laws.forms.base import Axis, Exponent, PowerLaw, levels_needed
from patchscale.laws.forms.needs import COLLINEAR, log_correlations, patch_ratios, refuse_few_ratios

_EXPONENTS = (Exponent("alpha", 0.002, 3.0), Exponent("beta", 0.002, 3.0))
_ENCODER: Mapping[str, tuple[int, str]] = {"patch_size": (1, "a"), "img_size": (-1, "a")}
_MEANINGS = {
    "D": "the floor: what neither a larger language model nor more visual tokens remove",
    "alpha": "exponent of the language model's size",
    "beta": "exponent of the visual tokens",
}


class _Vlm(PowerLaw):
    """What the laws of vision-language models share; a subclass gives their terms."""

    base_name: str
    base_formula: str
    base_source: str
    base_terms: Mapping[str, Mapping[str, tuple[int, str]]]
    """Amplitude -> its term, the floor left out."""
    sizes: Mapping[str, str]
    """Amplitude -> its meaning."""
    floor = "D"
    own = ("D", "A")

    def __init__(self, *, encoder: bool = False) -> None:
        self.encoder = encoder
        terms = {"D": {}, **self.base_terms, **({"C": _ENCODER} if encoder else {})}
        self.name = self.base_name + (":encoder" if encoder else "")
        self.formula = self.base_formula + (" + C * (p/r)^a" if encoder else "")
        self.source = self.base_source + ("; encoder term as in relative-patch, this package" if encoder else "")
        # only p/r matters in the encoder term, and image sizes vary it as patch sizes do
        seen = (Axis("patch_size", 1, 2), Axis("img_size", 1, 2)) if encoder else ()
        self.axes = (*levels_needed(("llm_params", "visual_tokens")), *seen)
        self.amplitudes = tuple(terms)
        self.terms = tuple(terms.values())
        self.exponents = (*_EXPONENTS, *([Exponent("a", 0.05, 5.0)] if encoder else []))
        meanings = {
            **_MEANINGS,
            **self.sizes,
            "C": "size of the encoder term",
            "a": "exponent of the patch size relative to the image; twice that of the encoder's tokens",
        }
        self.meanings: Mapping[str, str] = {name: meanings[name] for name in self.parameters}

    def with_options(self, options: Sequence[str]) -> "_Vlm":
        """`vlm:encoder`: with the encoder term."""
        if list(options) != ["encoder"]:
            name = self.base_name
            raise UserError(f"{name} has no option {','.join(options)!r}; the only one is {name}:encoder")
        return type(self)(encoder=True)

    def refuse(self, rows: pd.DataFrame, label: str) -> None:
        """With the encoder term: four values of p/r, some of which the visual tokens do not follow from."""
        if not self.encoder:
            return
        refuse_few_ratios(rows, self.name, label, f"run more image sizes, or use form {self.base_name!r}")
        ratios = rows.assign(ratio=patch_ratios(rows))
        rho = log_correlations(ratios, ["visual_tokens", "ratio"]).to_numpy()[0, 1]
        if abs(rho) > COLLINEAR:
            raise UserError(
                f"{label}: visual_tokens follow from patch_size / img_size (correlation of their logarithms "
                f"{rho:+.2f}), so what the encoder sees and what the language model gets cannot be told apart; run "
                "several visual_tokens (merged or pruned after the encoder) at one img_size, or use form "
                f"{self.base_name!r}"
            )


class VlmProduct(_Vlm):
    """A N^-alpha V^-beta + D, N parameters of the language model, V visual tokens."""

    base_name = "vlm"
    base_formula = "y = A * N^-alpha * V^-beta + D"
    base_source = "Li et al. (arXiv 2411.03312), with T = V as in their code"
    base_terms = {"A": {"llm_params": (-1, "alpha"), "visual_tokens": (-1, "beta")}}  # noqa: RUF012
    sizes = {"A": "size of the product"}  # noqa: RUF012


class VlmAdditive(_Vlm):
    """A N^-alpha + B V^-beta + D: the additive twin."""

    base_name = "vlm-additive"
    base_formula = "y = A * N^-alpha + B * V^-beta + D"
    base_source = "the additive twin of arXiv 2411.03312; it fits their table slightly better (docs/laws.md)"
    base_terms = {"A": {"llm_params": (-1, "alpha")}, "B": {"visual_tokens": (-1, "beta")}}  # noqa: RUF012
    sizes = {"A": "size of the language-model term", "B": "size of the visual-token term"}  # noqa: RUF012
