"""What matplotlib's SVG lacks for a page: unique ids, tooltips, a spoken description and theme colours."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

from patchscale.reports.palette import LIGHT

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
# fonts of machines that lack matplotlib's own; on a page the text takes the page's font
FONTS = "'DejaVu Sans', 'Helvetica Neue', Arial, sans-serif"
LINE_STYLE = "stroke-linejoin: round; stroke-linecap: butt"

ET.register_namespace("", SVG)
ET.register_namespace("xlink", XLINK)


def finish_svg(
    source: str, *, prefix: str, title: str, description: str, tooltips: Mapping[str, str], inline: bool
) -> str:
    """Turn matplotlib's SVG document into one with tooltips, a description and ids that start with `prefix`.

    `tooltips` maps the gid of an artist to the text shown when the pointer rests on it. With `inline` the result is
    a bare <svg> element for an HTML page, scaled by its container, with colours as CSS variables.
    """
    root = ET.fromstring(source)
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for definitions in root.iter(f"{{{SVG}}}defs"):
        # its only rule is for "*", which on a page would mean the whole page
        for style in definitions.findall(f"{{{SVG}}}style"):
            definitions.remove(style)
    root.set("style", LINE_STYLE)
    for element in root.iter():
        name = element.get("id")
        if name is not None and name in tooltips:
            tooltip = ET.Element(f"{{{SVG}}}title")
            tooltip.text = tooltips[name]
            element.insert(0, tooltip)
        if name is not None:
            element.set("id", f"{prefix}-{name}")
        for attribute, value in element.attrib.items():
            element.set(attribute, _rewrite(attribute, value, prefix, inline))
    root.set("role", "img")
    root.set("aria-label", f"{title}. {description}")
    if inline:
        del root.attrib["width"], root.attrib["height"]
    else:
        for tag, text in (("desc", description), ("title", title)):
            element = ET.Element(f"{{{SVG}}}{tag}")
            element.text = text
            root.insert(0, element)
    text = ET.tostring(root, encoding="unicode")
    return text if inline else f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _rewrite(attribute: str, value: str, prefix: str, inline: bool) -> str:
    if attribute.endswith("href") and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    value = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", value)
    if attribute == "style":
        if inline:
            for name, color in LIGHT.items():
                value = value.replace(color, f"var(--{name})")
        value = re.sub(r"(font: [^;']*)'[^;]*", rf"\1{FONTS}", value)
    return value
