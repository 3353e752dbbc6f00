"""Colours and markers of the curves, in a light and a dark version.

Six colours chosen by search: each differs from every other by at least 30 units of CIELAB, also under simulated
protanopia, deuteranopia and tritanopia, and from its background by a contrast of at least 3:1 (`tests/reports`
measures both). Markers differ as well, so no reading depends on colour alone.

In a figure every colour is written as its light hexadecimal value; on a page these become CSS variables, which is
how one drawing serves both themes. Hence all values below are distinct.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PAPER, INK, MUTED, GRID = "#ffffff", "#1b1d21", "#5b616b", "#e2e5ea"

LIGHT = {
    "paper": PAPER,
    "ink": INK,
    "muted": MUTED,
    "grid": GRID,
    "series-1": "#353dbb",
    "series-2": "#e0670a",
    "series-3": "#158f62",
    "series-4": "#772900",
    "series-5": "#b56dbd",
    "series-6": "#4c2d4f",
}
DARK = {
    "paper": "#14161a",
    "ink": "#e9ebee",
    "muted": "#a4abb6",
    "grid": "#2d3138",
    "series-1": "#857fff",
    "series-2": "#ff9310",
    "series-3": "#03b569",
    "series-4": "#eaeed6",
    "series-5": "#ffabff",
    "series-6": "#947990",
}
SERIES = tuple(value for name, value in LIGHT.items() if name.startswith("series-"))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">", "*")
DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("solid", (0, (6, 2)), (0, (2, 1.4)), (0, (7, 2, 1.5, 2)))


@dataclass(frozen=True)
class Style:
    """How one curve looks in one figure."""

    color: str
    marker: str
    dash: str | tuple[int, tuple[float, ...]]


def assign_colors(models: Sequence[str]) -> list[str]:
    """A colour per model, the same in every figure; a seventh model repeats the first one's."""
    order = list(dict.fromkeys(models))
    return [SERIES[order.index(model) % len(SERIES)] for model in models]


def assign_styles(colors: Sequence[str], kinds: Sequence[object] | None = None) -> list[Style]:
    """Styles for the curves of one figure: a marker for each, and a new dash where a colour comes again.

    `kinds` says what tells curves of one colour apart (a head, an image size): a kind has one dash in all colours.
    """
    dashes = [list(colors[:index]).count(color) for index, color in enumerate(colors)]
    if kinds is not None and any(dashes) and len(set(zip(colors, kinds, strict=True))) == len(colors):
        order = list(dict.fromkeys(kinds))
        dashes = [order.index(kind) for kind in kinds]
    return [
        Style(color, MARKERS[index % len(MARKERS)], DASHES[dash % len(DASHES)])
        for index, (color, dash) in enumerate(zip(colors, dashes, strict=True))
    ]
