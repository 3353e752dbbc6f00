"""What every page shares: templates, style, and text and numbers that are safe to put into it."""

import base64
import json
import math
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from patchscale import __version__
from patchscale.reports.palette import DARK, LIGHT


def read_part(name: str) -> str:
    """A file of this package: a template, a style, a script."""
    return files("patchscale.reports").joinpath(name).read_text(encoding="utf-8")


def render_page(template: str, **values: Any) -> str:
    """The page of a template, with the colours of both themes; a value that the template lacks is an error."""
    environment = Environment(
        loader=FunctionLoader(read_part),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(version=__version__, light=LIGHT, dark=DARK, **values)


def data_uri(text: str, kind: str) -> str:
    """`text` as an address that holds it."""
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"


def tied(text: str) -> str:
    """The text with units kept on the line of their number."""
    return text.replace(" %", "\u00a0%").replace(" px", "\u00a0px")


def embedded_json(value: Any) -> Markup:
    """`value` as JSON for a script element: nothing in it can end the element; what is no number is null."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=str)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _finite(value: Any) -> Any:
    if hasattr(value, "item") and not isinstance(value, str):  # a NumPy scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
