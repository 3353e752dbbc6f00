"""A fit as a figure: measured points, the fitted law and its interval along one axis."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from patchscale.errors import UserError
from patchscale.laws.design import text_of
from patchscale.laws.forms import QUANTITIES
from patchscale.laws.table import distinct

if TYPE_CHECKING:
    from patchscale.laws.result import Fit

MOST_CURVES = 8
PLACES = 60
"""Places at which a curve is computed."""
_IN_PIXELS = ("patch_size", "img_size")


def draw_fit(fit: "Fit", ax: Any = None, axis: str | None = None) -> Any:
    """Draw a fit on a matplotlib axis; see `Fit.plot`."""
    along = _axis_to_draw(fit, axis)
    points = fit.points()
    curves, combinations = _curves(points, along)
    places = [_places(curve, points, along) for curve in curves]
    told = fit.predict(pd.concat(places, ignore_index=True))
    ends = np.cumsum([len(table) for table in places])

    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots()
    for curve, last in zip(curves, ends, strict=True):
        law = told.iloc[last - PLACES : last]
        # a single point makes no curve of its own: the law through it runs over what others measured
        style = "--" if fit.design is not None and len(distinct(curve[along])) == 1 else "-"
        (line,) = ax.plot(law[along], law["predicted"], style, label=_label(fit, curve, along))
        ax.fill_between(law[along], law["low"], law["high"], color=line.get_color(), alpha=0.2, linewidth=0)
        ax.plot(curve[along], curve["measured"], "o", color=line.get_color())
    _dress(ax, along, sorted(set(points[along])))
    ax.set_ylabel(fit.quantity)
    if fit.design is not None:
        few = len(curves) < combinations
        shown = f": {len(curves)} of {combinations} curves, those with most points" if few else ""
        ax.set_title(f"{fit.label}{shown}")
        if combinations > 1:
            ax.legend(fontsize="small")
    return ax


def _axis_to_draw(fit: "Fit", axis: str | None) -> str:
    columns = [one.column for one in fit.problem.law.axes]
    if axis is not None and axis not in columns:
        raise UserError(f"form {fit.form!r} has no axis {axis!r}; plot along one of {', '.join(columns)}")
    counts = {name: len(distinct(fit.rows[name])) for name in columns}
    return axis or max(columns, key=counts.__getitem__)


def _others(points: pd.DataFrame, along: str) -> list[str]:
    """What one curve holds fixed: the other axes, groups and factors."""
    return [name for name in points.columns if name not in (along, "measured", "fitted", "residual")]


def _curves(points: pd.DataFrame, along: str) -> tuple[list[pd.DataFrame], int]:
    """The most populated combinations of the other columns, in the order of the table, and how many there are."""
    others = _others(points, along)
    if not others:
        return [points], 1
    parts = [part for _, part in points.groupby(others, sort=True, dropna=False, observed=True)]
    fullest = sorted(range(len(parts)), key=lambda i: -len(parts[i]))[:MOST_CURVES]
    return [parts[i] for i in sorted(fullest)], len(parts)


def _places(curve: pd.DataFrame, points: pd.DataFrame, along: str) -> pd.DataFrame:
    """Rows at which the law of one curve is computed: over its own points, or over all if it has one value only."""
    values = (curve if len(distinct(curve[along])) > 1 else points)[along].astype(float)
    cells = {name: [curve[name].iloc[0]] * PLACES for name in _others(curve, along)}
    return pd.DataFrame({along: np.geomspace(values.min(), values.max(), PLACES), **cells})


def _label(fit: "Fit", curve: pd.DataFrame, along: str) -> str:
    """What tells this curve from the others, such as `r=224, N=8.6e+07, family=xcit`."""
    parts = []
    for name in _others(curve, along):
        value = curve[name].iloc[0]
        parts.append(f"{QUANTITIES[name].symbol}={value:.3g}" if name in QUANTITIES else f"{name}={text_of(value)}")
    return ", ".join(parts) or fit.label


def _dress(ax: Any, along: str, levels: list[float]) -> None:
    """Logarithmic axis with its name; finer patches to the right."""
    from matplotlib.ticker import NullLocator, ScalarFormatter

    if along in _IN_PIXELS:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(levels)
        ax.set_xlabel({"patch_size": "patch size (px)", "img_size": "image size (px)"}[along])
    else:
        ax.set_xscale("log")
        ax.set_xlabel(QUANTITIES[along].meaning if along in QUANTITIES else along)
    if along == "patch_size" and not ax.xaxis_inverted():
        ax.invert_xaxis()
