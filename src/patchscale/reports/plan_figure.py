"""The frontier of a plan as a drawing: price across, predicted value up. It is complete without a script.

A page's script moves the budget line and the choice; the numbers that it needs for that are in `Frame`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup, escape

from patchscale.reports.draw import decade_ticks, tick_labels

WIDTH, HEIGHT = 520.0, 350.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 16.0, 50.0, 54.0
FAR = 4.0
"""A budget that exceeds the dearest configuration by more than this factor is drawn at the right edge."""
STEEP = 3.0
"""Values that span more than this factor are drawn on a logarithmic axis."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From values to places along an axis; `start` is where `low` is drawn, `end` where `high` is."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def place(self, value: float) -> float:
        """Where `value` is drawn; what lies outside is drawn at the edge."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Both axes."""

    x: Scale
    y: Scale


def price_unit(name: str, words: str) -> tuple[float, str]:
    """(what a price called `words` is divided by on its axis, the axis' label)."""
    if name.endswith("_bytes"):
        return 2.0**30, f"{words}, GiB"
    if name.endswith("_s"):
        return 1e-3, f"{words}, ms"
    return 1.0, words


def frame_of(prices: Sequence[float], rows: pd.DataFrame, budget: float) -> Frame:
    """Axes with room for all points, for the budget unless it is far beyond them, and for near ends of intervals."""
    low, high = min(*prices, budget), max(*prices, min(budget, FAR * max(prices)))
    log = low > 0
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - 1, high + 1)
    margin = (high / low) ** 0.03 if log else 0.03 * (high - low)
    x = Scale(
        low=low / margin if log else low - margin,
        high=high * margin if log else high + margin,
        start=LEFT,
        end=WIDTH - RIGHT,
        log=log,
    )
    return Frame(x=x, y=_y_scale(rows))


def _y_scale(rows: pd.DataFrame) -> Scale:
    low, high = float(rows["predicted"].min()), float(rows["predicted"].max())
    span = (high - low) or abs(high) * 0.1 or 1.0
    for end in rows[["low", "high"]].to_numpy(float).ravel():
        if math.isfinite(end):  # an interval's end counts up to a quarter of the height
            low, high = min(low, max(end, low - span / 4, 0.8 * low)), max(high, min(end, high + span / 4))
    log = low > 0 and high / low > STEEP
    if log:
        low, high = low / (high / low) ** 0.04, high * (high / low) ** 0.04
    else:
        low, high = low - 0.05 * span, high + 0.05 * span
    return Scale(low=low, high=high, start=HEIGHT - BOTTOM, end=TOP, log=log)


def draw_frontier(
    name: str,
    words: str,
    rows: pd.DataFrame,
    frame: Frame,
    *,
    prefix: str,
    labels: Sequence[str],
    budget: float,
    chosen: int,
    value_label: str,
    percent: bool,
    description: str,
) -> Markup:
    """An <svg> element.

    `rows` has the column `name` (a price called `words`), predicted, low, high, extrapolated; `labels` say each point.
    """
    prices = rows[name].to_numpy(float)
    across = [frame.x.place(price) for price in prices]
    up = [frame.y.place(value) for value in rows["predicted"].to_numpy(float)]
    size = f'viewBox="0 0 {WIDTH:g} {HEIGHT:g}" xmlns="http://www.w3.org/2000/svg"'
    parts = [
        f'<svg id="{prefix}" {size} role="img" aria-label="{escape(description)}">',
        *_grid(name, words, frame, value_label, percent),
        _band(across, rows, frame, prefix),
        f'<path id="{prefix}-frontier" class="frontier-line" d="{_steps(across, up, frame.x.end)}"/>',
        _budget(frame, budget, prefix),
        f'<line id="{prefix}-whisker" class="whisker" {_whisker(across, rows, frame, chosen)}/>',
        f'<circle id="{prefix}-chosen" class="chosen-ring" cx="{across[chosen]:.2f}" cy="{up[chosen]:.2f}" r="8"/>',
    ]
    for place, (x, y, label, outside) in enumerate(zip(across, up, labels, rows["extrapolated"], strict=True)):
        look = "outside" if outside else "inside"
        beyond = " beyond" if prices[place] > budget else ""
        parts.append(
            f'<circle id="{prefix}-point-{place}" class="point {look}{beyond}" cx="{x:.2f}" cy="{y:.2f}" r="4" '
            f'role="img" aria-label="{escape(label)}"><title>{escape(label)}</title></circle>'
        )
    parts.append("</svg>")
    return Markup("\n".join(parts))


def whisker_ends(rows: pd.DataFrame, frame: Frame, place: int) -> tuple[float, float] | None:
    """Heights of both ends of a point's interval, cut at the edges; None if it has none."""
    low, high = float(rows["low"].iloc[place]), float(rows["high"].iloc[place])
    return None if math.isnan(low) or math.isnan(high) else (frame.y.place(low), frame.y.place(high))


def _whisker(across: Sequence[float], rows: pd.DataFrame, frame: Frame, place: int) -> str:
    ends = whisker_ends(rows, frame, place) or (0.0, 0.0)
    return f'x1="{across[place]:.2f}" x2="{across[place]:.2f}" y1="{ends[0]:.2f}" y2="{ends[1]:.2f}"'


def _steps(across: Sequence[float], up: Sequence[float], end: float) -> str:
    """From each point level until a better one can be afforded, then down to it."""
    path = f"M{across[0]:.2f},{up[0]:.2f}"
    for x, y in zip(across[1:], up[1:], strict=True):
        path += f"H{x:.2f}V{y:.2f}"
    return f"{path}H{end:.2f}"


def _band(across: Sequence[float], rows: pd.DataFrame, frame: Frame, prefix: str) -> str:
    ends = [whisker_ends(rows, frame, place) for place in range(len(rows))]
    areas = []
    for place, pair in enumerate(ends):
        if pair is not None:
            x, width = across[place], (across[place + 1] if place + 1 < len(across) else frame.x.end) - across[place]
            areas.append(f"M{x:.2f},{pair[0]:.2f}h{width:.2f}V{pair[1]:.2f}h{-width:.2f}z")
    return f'<path id="{prefix}-band" class="band" d="{"".join(areas)}"/>' if areas else ""


def _budget(frame: Frame, budget: float, prefix: str) -> str:
    x = frame.x.place(budget)
    anchor = "end" if x > WIDTH / 2 else "start"
    return (
        f'<g id="{prefix}-budget"><line class="budget-line" x1="{x:.2f}" x2="{x:.2f}" y1="{TOP - 14:g}" '
        f'y2="{HEIGHT - BOTTOM:g}"/><text class="small" x="{x + (-5 if anchor == "end" else 5):.2f}" y="{TOP - 6:g}" '
        f'text-anchor="{anchor}">budget</text></g>'
    )


def _grid(name: str, words: str, frame: Frame, value_label: str, percent: bool) -> list[str]:
    unit, label = price_unit(name, words)
    parts = []
    for value, text in _ticks(frame.y, 100.0 if percent else 1.0, "%" if percent else ""):
        y = frame.y.place(value)
        parts += [
            f'<line class="grid" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.2f}" y2="{y:.2f}"/>',
            f'<text x="{LEFT - 7:g}" y="{y + 4:.2f}" text-anchor="end">{text}</text>',
        ]
    floor = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{floor:g}" y2="{floor:g}"/>')
    for value, text in _ticks(frame.x, 1 / unit, ""):
        x = frame.x.place(value)
        parts += [
            f'<line class="axis" x1="{x:.2f}" x2="{x:.2f}" y1="{floor:g}" y2="{floor + 4:g}"/>',
            f'<text x="{x:.2f}" y="{floor + 18:g}" text-anchor="middle">{text}</text>',
        ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts += [
        f'<text x="{middle:g}" y="{HEIGHT - 12:g}" text-anchor="middle">{escape(label)}{_log(frame.x)}</text>',
        f'<text x="4" y="16" font-weight="bold">predicted {escape(value_label)}{_log(frame.y)}</text>',
    ]
    return parts


def _log(scale: Scale) -> str:
    return " (log axis)" if scale.log else ""


def _ticks(scale: Scale, times: float, suffix: str) -> list[tuple[float, str]]:
    """(value, text) of round values; `times` turns a value into what is written."""
    from matplotlib.ticker import MaxNLocator

    low, high = scale.low * times, scale.high * times
    if scale.log:
        shown = decade_ticks(low, high)
    else:
        shown = [float(tick) for tick in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
        shown = [tick for tick in shown if low <= tick <= high]
    plain = all(tick == 0 or 1e-3 <= abs(tick) < 1e5 for tick in shown)
    texts = [f"{tick:.4g}" if abs(tick) < 1e4 else f"{tick:,.0f}" for tick in shown] if plain else tick_labels(shown)
    return [(tick / times, f"{text}{suffix}") for tick, text in zip(shown, texts, strict=True)]
