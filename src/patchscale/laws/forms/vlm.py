"""Vision-language models: visual tokens against the size of the language model. One task group at a time."""

from patchscale.laws.forms.base import Exponent, PowerLaw, levels_needed

_AXES = levels_needed(("llm_params", "visual_tokens"))
_EXPONENTS = (Exponent("alpha", 0.002, 3.0), Exponent("beta", 0.002, 3.0))


class VlmProduct(PowerLaw):
    """A N^-alpha V^-beta + D, N parameters of the language model, V visual tokens."""

    name = "vlm"
    formula = "y = A * N^-alpha * V^-beta + D"
    source = "Li et al. (arXiv 2411.03312), with T = V as in their code"
    axes = _AXES
    amplitudes = ("D", "A")
    terms = ({}, {"llm_params": (-1, "alpha"), "visual_tokens": (-1, "beta")})
    exponents = _EXPONENTS
    floor = "D"
    own = ("D", "A")
    meanings = {  # noqa: RUF012
        "D": "the floor: what neither a larger language model nor more visual tokens remove",
        "A": "size of the product",
        "alpha": "exponent of the language model's size",
        "beta": "exponent of the visual tokens",
    }


class VlmAdditive(PowerLaw):
    """A N^-alpha + B V^-beta + D: the additive twin."""

    name = "vlm-additive"
    formula = "y = A * N^-alpha + B * V^-beta + D"
    source = "the additive twin of arXiv 2411.03312; it fits their table slightly better (docs/laws.md)"
    axes = _AXES
    amplitudes = ("D", "A", "B")
    terms = ({}, {"llm_params": (-1, "alpha")}, {"visual_tokens": (-1, "beta")})
    exponents = _EXPONENTS
    floor = "D"
    own = ("D", "A")
    meanings = {  # noqa: RUF012
        "D": "the floor: what neither a larger language model nor more visual tokens remove",
        "A": "size of the language-model term",
        "B": "size of the visual-token term",
        "alpha": "exponent of the language model's size",
        "beta": "exponent of the visual tokens",
    }
