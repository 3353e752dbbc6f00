"""One chart: a frozen object that holds its numbers and can show itself as SVG or PNG."""

import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd

from patchscale.errors import UserError
from patchscale.files import atomic_write
from patchscale.reports.palette import Style
from patchscale.reports.svg import finish_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png", ".csv")


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

    `points` has a row per run: the two axis columns, series (a label), used (whether the law saw it), breaks_trend (it
    gets a ring), tooltip, and optionally note (text printed above it). `curves` has series, kind ("law": a fitted curve
    with its interval; "mean": straight lines between means, no law, perhaps with intervals), the axis columns, low and
    high.
    """

    name: str
    title: str
    caption: str
    """How to read it."""
    description: str
    """What it shows, for those who do not see it."""
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    points: pd.DataFrame = field(repr=False)
    curves: pd.DataFrame = field(repr=False)

    def frame(self) -> pd.DataFrame:
        """Every number drawn: a row per run (kind "run") and per vertex of each curve (kind "law" or "mean")."""
        points = self.points.drop(columns=["tooltip", "note"], errors="ignore").assign(kind="run")
        frame = pd.concat([points, self.curves.dropna(axis=1, how="all")], ignore_index=True)
        frame = frame.reindex(columns=[*points.columns, "low", "high"])
        first = ["series", "kind", self.x.column, self.y.column]
        frame = frame[[*first, *(name for name in frame.columns if name not in first)]]
        order = {series.label: place for place, series in enumerate(self.series)}
        finest_last = -frame[self.x.column] if self.x.scale == "finer" else frame[self.x.column]
        keys = pd.DataFrame({"series": frame["series"].map(order), "kind": frame["kind"] != "run", "x": finest_last})
        return frame.loc[keys.sort_values(["series", "kind", "x"], kind="stable").index].reset_index(drop=True)

    def figure(self) -> "Figure":
        """The chart as a new matplotlib figure that belongs to no window."""
        from patchscale.reports.draw import draw, own_settings

        with own_settings():
            return draw(self)

    def svg(self, *, inline: bool = False, prefix: str | None = None) -> str:
        """The chart as SVG text; the same chart gives the same bytes.

        `inline` gives an element for an HTML page; `prefix` (default: the chart's name) keeps its ids apart from those
        of other charts there.
        """
        from patchscale.reports.draw import draw, own_settings

        buffer = io.StringIO()
        with own_settings(), warnings.catch_warnings():
            # the reader's machine picks the font of each letter
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
            draw(self).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return finish_svg(
            buffer.getvalue(),
            prefix=prefix or self.name,
            title=self.title,
            description=f"{self.caption} {self.description}",
            tooltips=self.tooltips(),
            inline=inline,
        )

    def save(self, path: Path | str) -> Path:
        """Write the chart to `path`: PNG, SVG or its numbers as CSV, by extension; raises `UserError` for others."""
        from patchscale.reports.draw import own_settings

        path = Path(path)
        kind = path.suffix.lower()
        if kind not in SUFFIXES:
            raise UserError(f"{path}: a chart cannot be saved as {kind or 'a file without extension'}; use {SUFFIXES}")
        with atomic_write(path, "wb") as file:
            if kind == ".svg":
                file.write(self.svg().encode())
            elif kind == ".csv":
                file.write(self.frame().to_csv(index=False).encode())
            else:
                with own_settings():
                    self.figure().savefig(file, format="png", dpi=220, metadata={"Software": None})
        return path

    def points_of(self, series: Series) -> pd.DataFrame:
        """The points of one series, in the order in which they are drawn and numbered."""
        return self.points[self.points["series"] == series.label]

    def curve_of(self, series: Series) -> pd.DataFrame:
        """The curve of one series."""
        return self.curves[self.curves["series"] == series.label]

    def tooltips(self) -> dict[str, str]:
        """The id of each drawn point, and the text a reader sees when resting on it."""
        return {
            point_id(index, place): str(tooltip)
            for index, series in enumerate(self.series)
            for place, tooltip in enumerate(self.points_of(series)["tooltip"])
        }


def point_id(series: int, place: int) -> str:
    """The id of the drawn point at `place` of a series."""
    return f"point-{series}-{place}"
