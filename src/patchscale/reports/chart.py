"""One chart: a frozen object that holds its numbers and can draw itself as SVG or PNG."""

import io
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from patchscale.errors import UserError
from patchscale.files import atomic_write
from patchscale.reports.palette import GRID, INK, MUTED, PAPER, Style
from patchscale.reports.svg import finish_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_PT, HEIGHT_PT = 460.0, 318.0
FONT_PT, SMALL_PT = 10.5, 9.0
LABEL_WIDTH = 17  # characters of a curve's label before it is broken into lines

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so a drawing is the same everywhere
    "font.size": FONT_PT,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "none",  # text stays text: searchable, and read aloud
    "svg.hashsalt": "patchscale",  # same input, same ids, same bytes
    "figure.dpi": 72,
}


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis: the column it shows and how.

    `finer` is a base-2 logarithm that runs from coarse (left) to fine (right). `ticks` are labelled values, and `rows`
    further lines of labels below them, each with a heading.
    """

    column: str
    label: str
    scale: Literal["linear", "log", "finer"] = "linear"
    percent: bool = False
    ticks: tuple[tuple[float, str], ...] = ()
    rows: tuple[tuple[str, tuple[tuple[float, str], ...]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve's name and look."""

    label: str
    style: Style


@dataclass(frozen=True, kw_only=True, eq=False)
class Chart:
    """Points, curves and bands of several series over two axes.

    `points` has a row per run: the two axis columns, series (a label), used (whether the law saw it), tooltip, and
    optionally note (text printed beside it). `curves` has series, kind ("law": a fitted curve with its interval; "mean":
    straight lines between means, no law), the axis columns, low and high.
    """

    name: str
    title: str
    description: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    points: pd.DataFrame = field(repr=False)
    curves: pd.DataFrame = field(repr=False)

    def frame(self) -> pd.DataFrame:
        """Every number drawn: one row per run (kind "run") and per vertex of each curve (kind "law" or "mean")."""
        points = self.points.drop(columns=["tooltip", "note"], errors="ignore").assign(kind="run")
        parts = [part for part in (points, self.curves) if len(part)]
        frame = pd.concat(parts, ignore_index=True) if parts else points
        first = ["series", "kind", self.x.column, self.y.column]
        return frame[[*first, *(name for name in frame.columns if name not in first)]]

    def figure(self) -> "Figure":
        """The chart as a new matplotlib figure that belongs to no window."""
        import matplotlib

        with matplotlib.rc_context():
            _use_own_settings()
            return self._draw()

    def svg(self, *, inline: bool = False, prefix: str | None = None) -> str:
        """The chart as SVG text; the same chart gives the same bytes.

        `inline` gives an element for an HTML page; `prefix` (default: the chart's name) keeps its ids apart from those
        of other charts there.
        """
        import matplotlib

        buffer = io.StringIO()
        with matplotlib.rc_context():
            _use_own_settings()
            self._draw().savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return finish_svg(
            buffer.getvalue(),
            prefix=prefix or self.name,
            title=self.title,
            description=self.description,
            tooltips=self.tooltips(),
            inline=inline,
        )

    def save(self, path: Path | str) -> Path:
        """Write the chart to `path`, as PNG, SVG or (its numbers) CSV by extension; raises `UserError` for others."""
        path = Path(path)
        kind = path.suffix.lower()
        if kind not in (".png", ".svg", ".csv"):
            raise UserError(f"{path}: charts are saved as .png, .svg or .csv; choose one of these extensions")
        with atomic_write(path, "wb") as file:
            if kind == ".svg":
                file.write(self.svg().encode())
            elif kind == ".csv":
                file.write(self.frame().to_csv(index=False).encode())
            else:
                self.figure().savefig(file, format="png", dpi=220, metadata={"Software": None})
        return path

    def tooltips(self) -> dict[str, str]:
        """gid of each point -> the text a reader sees when resting on it."""
        return {
            f"point-{index}-{number}": str(row["tooltip"])
            for index, series in enumerate(self.series)
            for number, (_, row) in enumerate(self._points_of(series).iterrows())
        }

    def _points_of(self, series: Series) -> pd.DataFrame:
        return self.points[self.points["series"] == series.label]

    def _draw(self) -> "Figure":
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH_PT / 72, HEIGHT_PT / 72))
        labels = ["\n".join(textwrap.wrap(series.label, LABEL_WIDTH)) or " " for series in self.series]
        headings = [heading for heading, _ in self.x.rows]
        lines = [line for label in labels for line in label.splitlines()]
        right = max([30 + 6.3 * len(line) for line in lines] + [20 + 5.2 * len(line) for line in headings])
        bottom = 46 + 13 * len(self.x.rows)
        axes = figure.add_axes(
            (
                46 / WIDTH_PT,
                bottom / HEIGHT_PT,
                1 - (46 + right) / WIDTH_PT,
                1 - (bottom + 30) / HEIGHT_PT,
            )
        )
        for index, series in enumerate(self.series):
            self._draw_series(axes, index, series)
        self._draw_axes(axes)
        self._draw_labels(axes, labels)
        figure.patch.set_facecolor(PAPER)
        axes.set_facecolor(PAPER)
        return figure

    def _draw_series(self, axes: "Axes", index: int, series: Series) -> None:
        style = series.style
        curve = self.curves[self.curves["series"] == series.label] if len(self.curves) else self.curves
        x, y = self.x.column, self.y.column
        for kind, part in curve.groupby("kind") if len(curve) else ():
            if kind == "law":
                # clipped far outside, so that an interval without an end stays drawable
                low, high = self._clip_interval(part["low"]), self._clip_interval(part["high"])
                band = axes.fill_between(part[x], low, high, color=style.color, alpha=0.14, linewidth=0, zorder=1)
                band.set_gid(f"band-{index}")
            (line,) = axes.plot(
                part[x],
                part[y],
                color=style.color,
                linewidth=1.7 if kind == "law" else 1.0,
                linestyle=style.dash,
                alpha=1.0 if kind == "law" else 0.75,
                zorder=2,
            )
            line.set_gid(f"{kind}-{index}")
        for number, (_, row) in enumerate(self._points_of(series).iterrows()):
            (point,) = axes.plot(
                [row[x]],
                [row[y]],
                marker=style.marker,
                linestyle="none",
                markersize=6.6,
                color=style.color,
                markerfacecolor=style.color if row["used"] else PAPER,
                markeredgecolor=PAPER if row["used"] else style.color,
                markeredgewidth=0.7 if row["used"] else 1.2,
                clip_on=False,
                zorder=4,
            )
            point.set_gid(f"point-{index}-{number}")
            if isinstance(row.get("note"), str):
                axes.annotate(
                    row["note"],
                    (row[x], row[y]),
                    xytext=(0, 6.5),
                    textcoords="offset points",
                    ha="center",
                    fontsize=SMALL_PT - 1,
                    color=MUTED,
                    zorder=3,
                )

    def _clip_interval(self, values: pd.Series) -> pd.Series:
        low, high = self._y_limits()
        return values.fillna(high).clip(low - (high - low), high + (high - low))

    def _y_limits(self) -> tuple[float, float]:
        """Room for all points and curves, and for bands as far as they are at most half as tall again."""
        values = pd.concat([self.points[self.y.column], self.curves.get(self.y.column, pd.Series(dtype=float))])
        low, high = float(values.min()), float(values.max())
        span = (high - low) or abs(high) * 0.1 or 1.0
        if len(self.curves):
            low = min(low, max(float(self.curves["low"].min()), low - 0.25 * span))
            high = max(high, min(float(self.curves["high"].max()), high + 0.25 * span))
        return low - 0.05 * span, high + 0.08 * span

    def _draw_axes(self, axes: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.set_ylim(*self._y_limits())
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        if self.y.percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.annotate(
            self.y.label,
            (0, 1),
            xytext=(-40, 14),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=FONT_PT,
            fontweight="bold",
        )
        if self.x.scale == "finer":
            axes.set_xscale("log", base=2)
            axes.invert_xaxis()
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticks([value for value, _ in self.x.ticks], [text for _, text in self.x.ticks])
            values = [value for value, _ in self.x.ticks]
            axes.set_xlim(max(values) * 1.18, min(values) / 1.18)
        elif self.x.scale == "log":
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.margins(x=0.06)
        for number, (heading, cells) in enumerate(self.x.rows):
            below = -(20 + 13 * number)
            for value, text in cells:
                axes.annotate(
                    text,
                    (value, 0),
                    xytext=(0, below),
                    xycoords=("data", "axes fraction"),
                    textcoords="offset points",
                    ha="center",
                    va="top",
                    fontsize=SMALL_PT,
                    color=MUTED,
                )
            axes.annotate(
                heading,
                (1, 0),
                xytext=(14, below),
                xycoords="axes fraction",
                textcoords="offset points",
                va="top",
                fontsize=SMALL_PT,
                color=MUTED,
            )
        axes.annotate(
            self.x.label,
            (0.5, 0),
            xytext=(0, -(24 + 13 * len(self.x.rows))),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=FONT_PT,
        )

    def _draw_labels(self, axes: "Axes", labels: list[str]) -> None:
        """Name each series at the right edge, near the height where it ends, without overlaps."""
        low, high = axes.get_ylim()
        height = axes.get_position().height * HEIGHT_PT
        wanted = []
        for series, label in zip(self.series, labels, strict=True):
            mine = self._points_of(series)
            last = mine[
                mine[self.x.column]
                == (mine[self.x.column].min() if self.x.scale == "finer" else mine[self.x.column].max())
            ]
            wanted.append(
                (height * (float(last[self.y.column].mean()) - low) / (high - low), 12.5 * (label.count("\n") + 1) + 3)
            )
        for series, label, middle in zip(self.series, labels, spread(wanted, height), strict=True):
            (glyph,) = axes.plot(
                [1.0],
                [middle / height],
                transform=axes.transAxes,
                marker=series.style.marker,
                linestyle="none",
                markersize=6.6,
                color=series.style.color,
                markeredgewidth=0,
                clip_on=False,
            )
            glyph.set_transform(axes.transAxes + _shift_pt(axes, 17))
            axes.annotate(
                label,
                (1, middle / height),
                xytext=(25, -0.5),
                xycoords="axes fraction",
                textcoords="offset points",
                va="center",
                linespacing=1.15,
                fontsize=FONT_PT - 0.5,
            )


def spread(wanted: list[tuple[float, float]], height: float) -> list[float]:
    """Middles for labels of given (middle, height): as near as can be to the wanted ones, inside 0..`height`, apart.

    If they cannot all fit they run below 0 rather than overlap.
    """
    order = sorted(range(len(wanted)), key=lambda index: -wanted[index][0])
    middles = [0.0] * len(wanted)
    ceiling = height
    for index in order:  # downwards from the top
        middle, size = wanted[index]
        middles[index] = min(middle, ceiling - size / 2)
        ceiling = middles[index] - size / 2
    floor = 0.0
    total = sum(size for _, size in wanted)
    if total <= height:
        for index in reversed(order):  # and up again from the bottom
            size = wanted[index][1]
            middles[index] = max(middles[index], floor + size / 2)
            floor = middles[index] + size / 2
    return middles


def power_of_ten(value: float) -> str:
    """1e15 as 10 with a raised 15, in plain Unicode."""
    mantissa, exponent = f"{value:.0e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if mantissa == "1" else f"{mantissa}×10{raised}"


def _shift_pt(axes: "Axes", points: float) -> Any:
    from matplotlib.transforms import ScaledTranslation

    return ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)


def _use_own_settings() -> None:
    """Ignore the user's matplotlibrc inside a `rc_context`: a report looks the same on every machine."""
    import matplotlib

    matplotlib.rcdefaults()
    matplotlib.rcParams.update(_RC)
