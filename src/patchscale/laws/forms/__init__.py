"""The laws that can be fitted: one small file each, or one per close family, and one entry in `LAWS`.

A form may carry options after a colon: `additive:patch_size,params_backbone`, `relative-patch:h=0,native=460`.
"""

from difflib import get_close_matches

from patchscale.errors import UserError
from patchscale.laws.forms.base import QUANTITIES, Array, Axes, Axis, Exponent, Law, PowerLaw
from patchscale.laws.forms.bnsl import Bnsl
from patchscale.laws.forms.patch import PatchLaw
from patchscale.laws.forms.powers import Additive, Product, Tokens
from patchscale.laws.forms.relative_patch import RelativePatch
from patchscale.laws.forms.shifted import Shifted
from patchscale.laws.forms.skaling import Skaling
from patchscale.laws.forms.vlm import VlmAdditive, VlmProduct

__all__ = ["LAWS", "QUANTITIES", "Array", "Axes", "Axis", "Exponent", "Law", "PowerLaw", "law_named"]

_DEFAULT_AXES = ("patch_size", "params_backbone", "img_size")

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        PatchLaw(),
        RelativePatch(),
        RelativePatch(h=False),
        RelativePatch(C=False),
        RelativePatch(h=False, C=False),
        Additive(_DEFAULT_AXES, name="additive"),
        Product(_DEFAULT_AXES, name="product"),
        Tokens(),
        VlmProduct(),
        VlmAdditive(),
        VlmProduct(encoder=True),
        VlmAdditive(encoder=True),
        Shifted(),
        Skaling(("params_backbone", "images_seen"), name="skaling"),
        Bnsl("images_seen", name="bnsl"),
    )
}


def law_named(name: str) -> Law:
    """The law called `name`, options included; raises `UserError` with the known names."""
    if name in LAWS:
        return LAWS[name]
    base, _, text = name.partition(":")
    options = [part.strip() for part in text.split(",") if part.strip()]
    if base in LAWS and options:
        return LAWS[base].with_options(options)
    close = get_close_matches(name, LAWS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UserError(f"form {name!r} is not known{hint} (forms: {', '.join(LAWS)})")
