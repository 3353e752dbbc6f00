"""The report's figures, made from the runs table and the fitted laws.

p patch size (pixels), loss: plain cross-entropy on the test split, metric: a fraction in [0, 1].
"""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from patchscale.reports.chart import Axis, Chart, Series
from patchscale.reports.curves import Curve, Target, collect_curves
from patchscale.reports.words import duration, integer, listed, missing, number, percent, plain, scientific

if TYPE_CHECKING:
    from patchscale.laws.fit import Fit

MAX_CURVES = 8  # more than this on one pair of axes cannot be told apart
MAX_TOKEN_ROWS = 3

Quantity = Literal["loss", "metric"]
PRICES = {
    "flops_train_total": "training FLOPs (2 × MACs)",
    "wall_time_s": "training wall time (s)",
}


def report_charts(runs: pd.DataFrame, fits: Sequence["Fit"] = (), *, target: Target | None = None) -> list[Chart]:
    """All figures of a report: quality against patch size (the fitted quantity first), then its price.

    A quantity that the table lacks has no figure. `target` defaults to that of the fits, else the loss.
    """
    target = target or (fits[0].target if fits else "loss")
    quantities: tuple[Quantity, ...] = ("loss", "metric") if target == "loss" else ("metric", "loss")
    charts = [chart for quantity in quantities for chart in patch_charts(runs, fits, quantity=quantity)]
    return charts + price_charts(runs, fits, target=target)


def patch_charts(runs: pd.DataFrame, fits: Sequence["Fit"] = (), *, quantity: Quantity = "loss") -> list[Chart]:
    """`quantity` against patch size: every run, and the fitted law with its interval where there is one.

    One chart per task and data set, because losses of different ones cannot be compared.
    """
    charts = []
    for number_, (facet, part, curves) in enumerate(_facets(collect_curves(runs, fits), quantity)):
        sizes = sorted({int(size) for curve in curves for size in _rows(curve, quantity)["patch_size"]}, reverse=True)
        points = pd.concat([_points(curve, quantity) for curve in curves], ignore_index=True)
        drawn = [_curve(curve, quantity) for curve in curves]
        has_law = any((part["kind"] == "law").any() for part in drawn)
        name = _quantity_name(curves, quantity)
        charts.append(
            Chart(
                name=f"{quantity}-by-patch-size-{number_ + 1}",
                title=f"{name} against patch size{facet}{part}",
                description=_description(curves, quantity, has_law),
                x=Axis(
                    column="patch_size",
                    label="patch size p in pixels, finer →",
                    scale="finer",
                    ticks=tuple((float(size), str(size)) for size in sizes),
                    rows=_token_rows(curves, quantity, sizes),
                ),
                y=Axis(column=_column(quantity), label=_axis_label(curves, quantity), percent=quantity == "metric"),
                series=tuple(Series(label=curve.short_label, style=curve.style) for curve in curves),
                points=points,
                curves=pd.concat(drawn, ignore_index=True),
            )
        )
    return charts


def price_charts(runs: pd.DataFrame, fits: Sequence["Fit"] = (), *, target: Target = "loss") -> list[Chart]:
    """What finer patches cost: quality against training FLOPs, or wall time where FLOPs were not recorded."""
    quantities: tuple[Quantity, ...] = ("loss", "metric") if target == "loss" else ("metric", "loss")
    for quantity in quantities:
        for price, price_label in PRICES.items():
            priced = [curve for curve in collect_curves(runs, fits) if _priced(curve, quantity, price)]
            if priced:
                return [
                    _price_chart(index, facet, part, curves, quantity, price, price_label)
                    for index, (facet, part, curves) in enumerate(_facets(priced, quantity))
                ]
    return []


def _price_chart(
    index: int, facet: str, part: str, curves: list[Curve], quantity: Quantity, price: str, price_label: str
) -> Chart:
    points, lines = [], []
    for curve in curves:
        rows = _points(curve, quantity)
        rows = rows[pd.to_numeric(rows[price], errors="coerce").gt(0)].copy()
        means = rows.groupby("patch_size", sort=False)[[price, _column(quantity)]].mean()
        best = rows.groupby("patch_size")[_column(quantity)].idxmax()
        rows.loc[best, "note"] = [str(int(size)) for size in best.index]
        points.append(rows)
        lines.append(means.reset_index().assign(series=curve.short_label, kind="mean", low=np.nan, high=np.nan))
    name = _quantity_name(curves, quantity)
    shown = "training FLOPs" if price == "flops_train_total" else "wall time"
    return Chart(
        name=f"{quantity}-by-price-{index + 1}",
        title=f"The price of finer patches{facet}{part}",
        description=(
            f"{name} against {shown} of each run, for {listed([curve.short_label for curve in curves])}; "
            "the number beside a point is its patch size in pixels, straight lines join the means over seeds."
        ),
        x=Axis(column=price, label=price_label, scale="log"),
        y=Axis(column=_column(quantity), label=_axis_label(curves, quantity), percent=quantity == "metric"),
        series=tuple(Series(label=curve.short_label, style=curve.style) for curve in curves),
        points=pd.concat(points, ignore_index=True),
        curves=pd.concat(lines, ignore_index=True),
    )


def _column(quantity: Quantity) -> str:
    return "test_loss" if quantity == "loss" else "metric"


def _rows(curve: Curve, quantity: Quantity) -> pd.DataFrame:
    """Finished runs with a finite value of `quantity`."""
    measured = curve.measured
    if _column(quantity) not in measured:
        return measured.iloc[:0]
    values = pd.to_numeric(measured[_column(quantity)], errors="coerce")
    return measured[np.isfinite(values.to_numpy(dtype=float)) & measured["patch_size"].notna()]


def _priced(curve: Curve, quantity: Quantity, price: str) -> bool:
    rows = _rows(curve, quantity)
    return price in rows and bool(pd.to_numeric(rows[price], errors="coerce").gt(0).any())


def _facets(curves: Sequence[Curve], quantity: Quantity) -> list[tuple[str, str, list[Curve]]]:
    """(facet for a title, part for a title, at most MAX_CURVES curves with data) in the order of the table."""
    facets: dict[tuple[str, ...], list[Curve]] = {}
    for curve in curves:
        if len(_rows(curve, quantity)):
            facets.setdefault(curve.facet, []).append(curve)
    common = {word for facet in facets for word in facet if all(word in other for other in facets)}
    result = []
    for facet, members in facets.items():
        words = [word for word in facet if word not in common]
        parts = math.ceil(len(members) / MAX_CURVES)
        size = math.ceil(len(members) / parts)
        for index in range(parts):
            part = f" ({index + 1} of {parts})" if parts > 1 else ""
            name = f": {', '.join(words)}" if words else ""
            result.append((name, part, members[index * size : (index + 1) * size]))
    return result


def _points(curve: Curve, quantity: Quantity) -> pd.DataFrame:
    """The runs of a curve as a chart's points."""
    rows = _rows(curve, quantity)
    keep = ["patch_size", "tokens", "img_size", "seed", "run_id", *PRICES, _column(quantity)]
    points = rows[[name for name in keep if name in rows]].copy()
    points[_column(quantity)] = pd.to_numeric(rows[_column(quantity)])
    points["patch_size"] = rows["patch_size"].astype(int)
    points["used"] = _used(curve, rows, quantity)
    points["tooltip"] = [_tooltip(curve, row, quantity) for _, row in points.iterrows()]
    points.insert(0, "series", curve.short_label)
    return points


def _fits_quantity(curve: Curve, quantity: Quantity) -> bool:
    return curve.fit is not None and curve.fit.target == ("loss" if quantity == "loss" else "error")


def _used(curve: Curve, rows: pd.DataFrame, quantity: Quantity) -> pd.Series:
    """Whether the law of this quantity was fitted to each row; true where there is no law to leave it out."""
    if curve.fit is None or not _fits_quantity(curve, quantity) or not len(curve.fit.dropped):
        return pd.Series(True, index=rows.index)
    if "run_id" in rows and "run_id" in curve.fit.dropped:
        return ~rows["run_id"].isin(curve.fit.dropped["run_id"])
    return pd.Series(~rows.index.isin(curve.fit.dropped.index), index=rows.index)


def _tooltip(curve: Curve, row: pd.Series, quantity: Quantity) -> str:
    value = row[_column(quantity)]
    parts = [f"{curve.short_label}: {_value_text(value, quantity)}", f"patch {int(row['patch_size'])} px"]
    if not missing(row.get("tokens")):
        parts[-1] += f" ({integer(row['tokens'])} tokens)"
    if not missing(row.get("seed")):
        parts.append(f"seed {plain(row['seed'])}")
    if not missing(row.get("flops_train_total")):
        parts.append(f"{scientific(row['flops_train_total'])} training FLOPs")
    if not missing(row.get("wall_time_s")):
        parts.append(duration(row["wall_time_s"]))
    if not row["used"]:
        parts.append("not used in the fit")
    return ", ".join(parts)


def _value_text(value: float, quantity: Quantity) -> str:
    return f"test loss {number(value)}" if quantity == "loss" else f"{percent(value)}"


def _curve(curve: Curve, quantity: Quantity) -> pd.DataFrame:
    """The fitted law on a fine grid with its interval, or straight lines between means where there is none."""
    rows = _rows(curve, quantity)
    sizes = rows["patch_size"].astype(float)
    base: dict[str, Any] = {"series": curve.short_label}
    if curve.fit is not None and _fits_quantity(curve, quantity) and sizes.nunique() > 1:
        grid = np.geomspace(sizes.max(), sizes.min(), 65)
        law = curve.fit.predict(grid)
        value, low, high = (law[name].to_numpy(dtype=float) for name in ("predicted", "low", "high"))
        if quantity == "metric":
            value, low, high = 1 - value, 1 - high, 1 - low
        return pd.DataFrame(
            base | {"kind": "law", "patch_size": grid, _column(quantity): value, "low": low, "high": high}
        )
    means = rows.assign(**{_column(quantity): pd.to_numeric(rows[_column(quantity)])})
    table = means.groupby("patch_size", sort=False)[_column(quantity)].mean().reset_index()
    return table.assign(**base, kind="mean", low=np.nan, high=np.nan)


def _token_rows(
    curves: Sequence[Curve], quantity: Quantity, sizes: Sequence[int]
) -> tuple[tuple[str, tuple[tuple[float, str], ...]], ...]:
    """A line of token counts per input size; none if there are too many to read."""
    rows: dict[str, dict[int, Any]] = {}
    for curve in curves:
        table = _rows(curve, quantity)
        if "tokens" not in table:
            continue
        image = plain(curve.key.get("img_size"))
        for _, row in table.iterrows():
            if not missing(row["tokens"]):
                rows.setdefault(image, {})[int(row["patch_size"])] = row["tokens"]
    if not 0 < len(rows) <= MAX_TOKEN_ROWS:
        return ()
    return tuple(
        (
            "tokens" if len(rows) == 1 or image == "–" else f"tokens, {image} px",
            tuple((float(size), _short_count(cells[size])) for size in sizes if size in cells),
        )
        for image, cells in rows.items()
    )


def _short_count(value: Any) -> str:
    return integer(value)


def _quantity_name(curves: Sequence[Curve], quantity: Quantity) -> str:
    return "Test loss" if quantity == "loss" else _metric_name(curves)


def _metric_name(curves: Sequence[Curve]) -> str:
    names = {plain(name) for curve in curves for name in curve.runs.get("metric_name", pd.Series(dtype=str)).dropna()}
    known = {"top1": "Top-1 accuracy", "mIoU": "Mean IoU"}
    return " / ".join(known.get(name, name) for name in sorted(names)) or "Metric"


def _axis_label(curves: Sequence[Curve], quantity: Quantity) -> str:
    return "Test loss" if quantity == "loss" else f"{_metric_name(curves)}, test split"


def _description(curves: Sequence[Curve], quantity: Quantity, has_law: bool) -> str:
    sentences = []
    for curve in curves:
        means = _rows(curve, quantity).assign(value=lambda rows: pd.to_numeric(rows[_column(quantity)]))
        means = means.groupby("patch_size")["value"].mean()
        coarse, fine = int(means.index.max()), int(means.index.min())
        sentences.append(
            f"{curve.short_label} goes from {_bare(means[coarse], quantity)} at {coarse} px "
            f"to {_bare(means[fine], quantity)} at {fine} px"
        )
    how = "curves are the fitted laws with their intervals" if has_law else "straight lines join the means over seeds"
    return f"Each point is a run; {how}. {'; '.join(sentences)}."


def _bare(value: float, quantity: Quantity) -> str:
    return number(value) if quantity == "loss" else percent(value)


def slug(text: str) -> str:
    """Lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"
