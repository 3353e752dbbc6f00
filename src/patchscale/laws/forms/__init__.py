"""The laws that can be fitted: one small file each, or one per close family, and one entry in `LAWS`.

A form may carry options after a colon: `additive:patch_size,params_backbone`, `relative-patch:h=0,native=460`.
"""

from collections.abc import Callable
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
        Bnsl("images_seen", -1, name="bnsl"),
    )
}


def law_named(name: str) -> Law:
    """The law called `name`, options included; raises `UserError` with the known names."""
    if name in LAWS:
        return LAWS[name]
    base, _, text = name.partition(":")
    if base in _BUILDERS and text:
        return _BUILDERS[base]([part.strip() for part in text.split(",") if part.strip()])
    close = get_close_matches(name, LAWS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UserError(f"form {name!r} is not known{hint} (forms: {', '.join(LAWS)})")


def _known_axes(columns: list[str]) -> None:
    for column in columns:
        if column not in QUANTITIES:
            close = get_close_matches(column, QUANTITIES, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"no law has an axis {column!r}{hint} (axes: {', '.join(QUANTITIES)})")
    if len(set(columns)) < len(columns):
        raise UserError(f"an axis is named twice in {', '.join(columns)}; name each once")


def _over_axes(kind: type[Additive] | type[Product], columns: list[str]) -> Law:
    _known_axes(columns)
    return kind(columns)


def _skaling(columns: list[str]) -> Law:
    _known_axes(columns)
    if len(columns) != 2:
        raise UserError(f"skaling couples two axes, not {len(columns)}: skaling:params_backbone,images_seen")
    return Skaling((columns[0], columns[1]))


def _bnsl(columns: list[str]) -> Law:
    _known_axes(columns)
    if len(columns) != 1:
        raise UserError(f"bnsl has one axis, not {len(columns)}: bnsl:images_seen")
    return Bnsl(columns[0], QUANTITIES[columns[0]].sign)


def _relative_patch(options: list[str]) -> Law:
    native: float | None = None
    for option in options:
        key, _, value = option.partition("=")
        if key == "native":
            try:
                native = float(value)
            except ValueError:
                native = -1.0
            if not 0 < native < float("inf"):
                raise UserError(f"native={value}: the image size in pixels above which r stops helping, such as 460")
        elif option not in ("h=0", "C=0"):
            raise UserError(f"relative-patch has no option {option!r}; options: h=0, C=0, native=PIXELS")
    return RelativePatch(h="h=0" not in options, C="C=0" not in options, native=native)


def _vlm(kind: type[VlmProduct] | type[VlmAdditive], options: list[str]) -> Law:
    if options != ["encoder"]:
        name = kind().name
        raise UserError(f"{name} has no option {','.join(options)!r}; the only one is {name}:encoder")
    return kind(encoder=True)


_BUILDERS: dict[str, Callable[[list[str]], Law]] = {
    "additive": lambda columns: _over_axes(Additive, columns),
    "product": lambda columns: _over_axes(Product, columns),
    "relative-patch": _relative_patch,
    "vlm": lambda options: _vlm(VlmProduct, options),
    "vlm-additive": lambda options: _vlm(VlmAdditive, options),
    "skaling": _skaling,
    "bnsl": _bnsl,
}
