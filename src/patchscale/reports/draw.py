"""How a chart is drawn with matplotlib: labels at the curves' ends, token counts under the axis, nothing else."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd

from patchscale.reports.chart import Chart, point_id
from patchscale.reports.palette import GRID, INK, MUTED, PAPER
from patchscale.reports.words import scientific

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_PT, HEIGHT_PT = 460.0, 320.0
FONT_PT, SMALL_PT = 11.5, 9.8
MARKER_PT = 6.6
LEFT_PT, TOP_PT, ROW_PT = 48.0, 34.0, 13.5
LABEL_WIDTH = 17
"""Characters of a curve's label before it is broken into lines."""

SETTINGS: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so a drawing is the same everywhere
    "font.size": FONT_PT,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "svg.hashsalt": "patchscale",  # same input, same ids, same bytes
    "figure.dpi": 72,
}


@contextmanager
def own_settings() -> Iterator[None]:
    """Set the user's matplotlibrc aside: a report looks the same on every machine."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def draw(chart: Chart) -> "Figure":
    """A new figure with the chart on it."""
    from matplotlib.figure import Figure

    labels = ["\n".join(textwrap.wrap(series.label, LABEL_WIDTH)) or " " for series in chart.series]
    headings = [heading for heading, _ in chart.x.rows]
    right = max(
        [30 + 6.7 * len(line) for label in labels for line in label.splitlines()]
        + [22 + 5.6 * len(heading) for heading in headings]
    )
    bottom = 48 + ROW_PT * len(headings)
    figure = Figure(figsize=(WIDTH_PT / 72, HEIGHT_PT / 72), facecolor=PAPER)
    axes = figure.add_axes(
        (
            LEFT_PT / WIDTH_PT,
            bottom / HEIGHT_PT,
            1 - (LEFT_PT + right) / WIDTH_PT,
            1 - (bottom + TOP_PT) / HEIGHT_PT,
        ),
        facecolor=PAPER,
    )
    axes.set_ylim(*y_limits(chart))
    for index in range(len(chart.series)):
        _draw_curve(axes, chart, index)
        _draw_points(axes, chart, index)
    _draw_y_axis(axes, chart)
    _draw_x_axis(axes, chart)
    _draw_labels(axes, chart, labels)
    return figure


def y_limits(chart: Chart) -> tuple[float, float]:
    """Room for all points and curves, and for their bands up to a quarter of that height on either side."""
    values = pd.concat([chart.points[chart.y.column], chart.curves[chart.y.column]])
    low, high = float(values.min()), float(values.max())
    span = (high - low) or abs(high) * 0.1 or 1.0
    lowest, highest = float(chart.curves["low"].min()), float(chart.curves["high"].max())
    if not math.isnan(lowest):
        low = min(low, max(lowest, low - span / 4))
    if not math.isnan(highest):
        high = max(high, min(highest, high + span / 4))
    return low - 0.05 * span, high + 0.08 * span


def _draw_curve(axes: "Axes", chart: Chart, index: int) -> None:
    style = chart.series[index].style
    x, y = chart.x.column, chart.y.column
    bottom, top = axes.get_ylim()
    far = 10 * (top - bottom)  # where an interval without an end is drawn to: out of sight
    for kind, part in chart.curve_of(chart.series[index]).groupby("kind"):
        is_law = kind == "law"
        if is_law or part["low"].notna().any():
            band = axes.fill_between(
                part[x].to_numpy(float),
                part["low"].clip(lower=bottom - far).to_numpy(float),
                part["high"].clip(upper=top + far).to_numpy(float),
                color=style.color,
                alpha=0.14,
                linewidth=0,
                zorder=1,
            )
            band.set_gid(f"band-{index}")
        (line,) = axes.plot(
            part[x].to_numpy(float),
            part[y].to_numpy(float),
            color=style.color,
            linewidth=1.7 if is_law else 1.0,
            linestyle=style.dash,
            alpha=1.0 if is_law else 0.75,
            zorder=2,
        )
        line.set_gid(f"{kind}-{index}")


def _draw_points(axes: "Axes", chart: Chart, index: int) -> None:
    style = chart.series[index].style
    for place, row in enumerate(chart.points_of(chart.series[index]).to_dict("records")):
        x, y = float(row[chart.x.column]), float(row[chart.y.column])
        used = bool(row["used"])
        if row["breaks_trend"]:
            (ring,) = axes.plot(
                [x], [y], "o", markersize=2.1 * MARKER_PT, markerfacecolor="none", markeredgecolor=INK, clip_on=False
            )
            ring.set_gid(f"ring-{index}-{place}")
        (point,) = axes.plot(
            [x],
            [y],
            marker=style.marker,
            linestyle="none",
            markersize=MARKER_PT,
            markerfacecolor=style.color if used else PAPER,
            markeredgecolor=PAPER if used else style.color,
            markeredgewidth=0.7 if used else 1.2,
            clip_on=False,
            zorder=4,
        )
        point.set_gid(point_id(index, place))
        if isinstance(row.get("note"), str):
            axes.annotate(
                row["note"],
                (x, y),
                xytext=(0, 10.5 if row["breaks_trend"] else 7),
                textcoords="offset points",
                ha="center",
                fontsize=SMALL_PT - 0.5,
                color=MUTED,
                zorder=3,
            )


def _draw_y_axis(axes: "Axes", chart: Chart) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    if chart.y.percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    _write(axes, chart.y.label, (0, 1), (-LEFT_PT + 6, 14), fontweight="bold")


def _draw_x_axis(axes: "Axes", chart: Chart) -> None:
    from matplotlib.ticker import NullLocator

    axis = chart.x
    if axis.scale == "finer":
        values = [value for value, _ in axis.ticks]
        axes.set_xscale("log", base=2)
        axes.set_xlim(max(values) * 1.18, min(values) / 1.18)
        axes.set_xticks(values, [text for _, text in axis.ticks])
    elif axis.scale == "log":
        axes.set_xscale("log")
        axes.margins(x=0.08)
        ticks = decade_ticks(*axes.get_xlim())
        axes.set_xticks(ticks, tick_labels(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    for place, (heading, cells) in enumerate(axis.rows):
        below = -(21 + ROW_PT * place)
        small = {"fontsize": SMALL_PT, "color": MUTED, "va": "top"}
        for value, text in cells:
            _write(axes, text, (value, 0), (0, below), xycoords=("data", "axes fraction"), ha="center", **small)
        _write(axes, heading, (1, 0), (14, below), **small)
    _write(axes, axis.label, (0.5, 0), (0, -(26 + ROW_PT * len(axis.rows))), ha="center", va="top")


def decade_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high]; with multiples of them where there are fewer than three; else any round values."""
    from matplotlib.ticker import MaxNLocator

    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [float(f"{factor}e{power}") for power in range(first, last + 1) for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            break
    if len(ticks) < 2:
        ticks = [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    return ticks[:: math.ceil(len(ticks) / 6)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Powers of ten, with as few digits as show every tick exactly."""
    digits = next(digits for digits in range(17) if all(float(f"{tick:.{digits}e}") == tick for tick in ticks))
    return [scientific(tick, digits) for tick in ticks]


def _draw_labels(axes: "Axes", chart: Chart, labels: Sequence[str]) -> None:
    """Name each series at the right edge, near the height at which it ends, without overlaps."""
    from matplotlib.transforms import ScaledTranslation

    low, high = axes.get_ylim()
    height = axes.get_position().height * HEIGHT_PT
    wanted = []
    for series, label in zip(chart.series, labels, strict=True):
        points = chart.points_of(series)
        x = points[chart.x.column]
        last = points[x == (x.min() if chart.x.scale == "finer" else x.max())]
        end = float(last[chart.y.column].mean())
        wanted.append((height * (end - low) / (high - low), 13.5 * (label.count("\n") + 1) + 3))
    beside = axes.transAxes + ScaledTranslation(17 / 72, 0, axes.figure.dpi_scale_trans)
    for series, label, middle in zip(chart.series, labels, spread(wanted, height), strict=True):
        axes.plot(
            [1.0],
            [middle / height],
            transform=beside,
            marker=series.style.marker,
            linestyle="none",
            markersize=MARKER_PT,
            color=series.style.color,
            markeredgewidth=0,
            clip_on=False,
        )
        _write(axes, label, (1, middle / height), (25, -0.5), va="center", linespacing=1.15, fontsize=FONT_PT - 0.5)


def spread(wanted: Sequence[tuple[float, float]], height: float) -> list[float]:
    """Middles for labels of given (middle, height): near the wanted ones, inside 0..`height`, without overlaps.

    Labels that cannot all fit run on below 0.
    """
    order = sorted(range(len(wanted)), key=lambda index: -wanted[index][0])
    middles = [0.0] * len(wanted)
    ceiling = height
    for index in order:  # downwards from the top
        middle, size = wanted[index]
        middles[index] = min(middle, ceiling - size / 2)
        ceiling = middles[index] - size / 2
    if sum(size for _, size in wanted) <= height:
        floor = 0.0
        for index in reversed(order):  # and up again from the bottom
            size = wanted[index][1]
            middles[index] = max(middles[index], floor + size / 2)
            floor = middles[index] + size / 2
    return middles


def _write(axes: "Axes", text: str, place: Any, offset_pt: tuple[float, float], **style: Any) -> None:
    """Text at a place (fractions of the axes, unless `xycoords` says otherwise), moved by `offset_pt` points."""
    style = {"xycoords": "axes fraction", "fontsize": FONT_PT, **style}
    axes.annotate(text, place, xytext=offset_pt, textcoords="offset points", **style)
