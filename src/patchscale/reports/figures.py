"""The report's figures, made from the runs table and the fitted laws.

p patch size (pixels); loss: plain cross-entropy on the test split; metric: a fraction in [0, 1].
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from patchscale.reports.chart import Axis, Chart, Series
from patchscale.reports.curves import Curve, TargetName, collect_curves, short_labels, target_values
from patchscale.reports.decoders import decoder_charts
from patchscale.reports.palette import assign_styles
from patchscale.reports.words import (
    METRIC_NAMES,
    duration,
    integer,
    listed,
    missing,
    number,
    percent,
    plain,
    scientific,
)

if TYPE_CHECKING:
    from patchscale.laws.fit import Fit

Quantity = Literal["loss", "metric"]

MAX_CURVES = 8
"""More than this on one pair of axes cannot be told apart."""
MAX_TOKEN_ROWS = 3
GRID_PER_OCTAVE = 6
"""Vertices of a drawn law per halving of the patch."""
PRICES = {
    "flops_train_total": ("training FLOPs", "training FLOPs (2 × MACs), log scale"),
    "wall_time_s": ("training time", "training wall time in seconds, log scale"),
}


def report_charts(
    runs: pd.DataFrame,
    fits: "Sequence[Fit]" = (),
    *,
    target: TargetName | None = None,
    by: Sequence[str] | None = None,
    mix_protocols: bool = False,
) -> list[Chart]:
    """All figures of a report: quality against patch size (the fitted quantity first), its price, what decoders add.

    A quantity that the table lacks has no figure. `target` defaults to that of the fits, else the loss; `by` and
    `mix_protocols` are as in `collect_curves`.
    """
    curves = collect_curves(runs, fits, by=by, mix_protocols=mix_protocols)
    return [*charts_of(curves, target or main_target(runs, fits)), *decoder_charts(runs)]


def main_target(runs: pd.DataFrame, fits: "Sequence[Fit]" = ()) -> TargetName:
    """What a report is about: what the laws describe, else the loss, but the error where there are metrics only."""
    if fits:
        return "loss" if fits[0].target == "loss" else "error"
    loss, error = (target_values(runs, target).notna().any() for target in ("loss", "error"))
    return "error" if error and not loss else "loss"


def charts_of(curves: Sequence[Curve], target: TargetName) -> list[Chart]:
    """The figures of `report_charts` for curves that were collected already."""
    charts = []
    for quantity in _in_order(target):
        for number_, (suffix, members) in enumerate(_facets(curves, quantity), start=1):
            charts.append(_patch_chart(number_, suffix, members, quantity))
    return charts + _price_charts(curves, target)


def _in_order(target: TargetName) -> tuple[Quantity, Quantity]:
    return ("loss", "metric") if target == "loss" else ("metric", "loss")


def _target(quantity: Quantity) -> TargetName:
    return "loss" if quantity == "loss" else "error"


def _column(quantity: Quantity) -> str:
    return "test_loss" if quantity == "loss" else "metric"


def _shown(target_value: pd.Series, quantity: Quantity) -> pd.Series:
    """The loss as it is, the error as the metric it came from."""
    return target_value if quantity == "loss" else (1 - target_value).round(12)


def _patch_chart(number_: int, suffix: str, curves: list[Curve], quantity: Quantity) -> Chart:
    points = pd.concat([_points(curve, quantity) for curve in curves], ignore_index=True)
    sizes = sorted(set(points["patch_size"]), reverse=True)
    drawn = [_law(curve, quantity) if _has_law(curve, quantity) else _means(curve, quantity) for curve in curves]
    return Chart(
        name=f"{quantity}-by-patch-size-{number_}",
        title=f"{_name(curves, quantity)} against patch size{suffix}",
        caption=_caption(curves, quantity),
        description=_description(curves, quantity),
        x=Axis(
            column="patch_size",
            label="patch size p in pixels, finer →",
            scale="finer",
            ticks=tuple((float(size), str(size)) for size in sizes),
            rows=_token_rows(points, sizes),
        ),
        y=Axis(column=_column(quantity), label=_name(curves, quantity), percent=quantity == "metric"),
        series=_series(curves),
        points=points,
        curves=pd.concat(drawn, ignore_index=True),
    )


def _price_charts(curves: Sequence[Curve], target: TargetName) -> list[Chart]:
    """Quality against training FLOPs, or wall time where FLOPs were not recorded; none where neither was."""
    for quantity in _in_order(target):
        for price in PRICES:

            def priced(rows: pd.DataFrame, price: str = price) -> pd.DataFrame:
                return rows[pd.to_numeric(rows[price], errors="coerce").gt(0)] if price in rows else rows.iloc[:0]

            facets = _facets(curves, quantity, priced)
            if facets:
                return [
                    _price_chart(number_, suffix, members, quantity, price, priced)
                    for number_, (suffix, members) in enumerate(facets, start=1)
                ]
    return []


def _price_chart(
    number_: int,
    suffix: str,
    curves: list[Curve],
    quantity: Quantity,
    price: str,
    priced: Callable[[pd.DataFrame], pd.DataFrame],
) -> Chart:
    points, lines = [], []
    for curve in curves:
        rows = priced(_points(curve, quantity)).assign(note=None)
        highest = rows.groupby("patch_size")[_column(quantity)].idxmax()
        rows["note"] = pd.Series([str(size) for size in highest.index], index=highest.to_numpy())
        means = rows.groupby("patch_size", sort=False)[[price, _column(quantity)]].mean().reset_index()
        points.append(rows)
        lines.append(means.assign(series=curve.label, kind="mean", low=np.nan, high=np.nan))
    words, label = PRICES[price]
    how = [
        "Each point is a run; the number above it is its patch size in pixels",
        "thin straight lines join means over seeds, in the order of the patch size",
        *_marks(curves, quantity),
    ]
    return Chart(
        name=f"{quantity}-by-price-{number_}",
        title=f"What finer patches cost{suffix}",
        caption=f"{'; '.join(how)}.",
        description=f"{_name(curves, quantity)} against {words} for {listed([curve.label for curve in curves])}.",
        x=Axis(column=price, label=label, scale="log"),
        y=Axis(column=_column(quantity), label=_name(curves, quantity), percent=quantity == "metric"),
        series=_series(curves),
        points=pd.concat(points, ignore_index=True),
        curves=pd.concat(lines, ignore_index=True),
    )


def _facets(
    curves: Sequence[Curve], quantity: Quantity, keep: Callable[[pd.DataFrame], pd.DataFrame] = lambda rows: rows
) -> list[tuple[str, list[Curve]]]:
    """(suffix of a title, curves that have data and share axes): by task, then image size, then in equal parts."""
    groups: dict[tuple[str, ...], list[Curve]] = {}
    for curve in curves:
        if len(keep(_points(curve, quantity))):
            groups.setdefault(curve.facet, []).append(curve)
    shared = set.intersection(*map(set, groups)) if groups else set()
    facets = []
    for facet, members in groups.items():
        words = [word for word in facet if word not in shared]
        facets += [
            (f": {', '.join([*words, *more])}" if words or more else "", _relabelled(part))
            for more, part in _split(members)
        ]
    return facets


def _relabelled(curves: list[Curve]) -> list[Curve]:
    """The curves of one figure under the shortest names that tell them apart."""
    return [replace(curve, label=label) for curve, label in zip(curves, short_labels(curves), strict=True)]


def _series(curves: list[Curve]) -> tuple[Series, ...]:
    kinds = [curve.label.replace(plain(curve.key.get("model")), "") for curve in curves]
    styles = assign_styles([curve.color for curve in curves], kinds)
    return tuple(Series(label=curve.label, style=style) for curve, style in zip(curves, styles, strict=True))


def _split(curves: list[Curve]) -> list[tuple[list[str], list[Curve]]]:
    """(what to add to the title, at most MAX_CURVES curves)."""
    if len(curves) <= MAX_CURVES:
        return [([], curves)]
    by_size: dict[str, list[Curve]] = {}
    for curve in curves:
        by_size.setdefault(plain(curve.key.get("img_size")), []).append(curve)
    if len(by_size) > 1:
        return [
            ([f"{size} px images", *more], part) for size, members in by_size.items() for more, part in _split(members)
        ]
    count = math.ceil(len(curves) / MAX_CURVES)
    length = math.ceil(len(curves) / count)
    return [([f"{part + 1} of {count}"], curves[part * length : (part + 1) * length]) for part in range(count)]


def _points(curve: Curve, quantity: Quantity) -> pd.DataFrame:
    """The runs of a curve that have a value, as points of a chart."""
    runs, column = curve.runs, _column(quantity)
    values = target_values(runs, _target(quantity))
    runs = runs[values.notna()]
    keep = ("run_id", "img_size", "tokens", "seed", *PRICES)
    points = runs[[name for name in keep if name in runs]].copy()
    points.insert(0, "series", curve.label)
    points.insert(1, "patch_size", pd.to_numeric(runs["patch_size"]).astype(int))
    points.insert(2, column, _shown(values[values.notna()], quantity))
    points["used"] = _used(curve, runs, quantity)
    points["breaks_trend"] = points["patch_size"].isin([small for _, small in curve.rises(_target(quantity))])
    points["tooltip"] = [_tooltip(row, quantity) for row in points.to_dict("records")]
    return points


def _used(curve: Curve, rows: pd.DataFrame, quantity: Quantity) -> pd.Series:
    """Whether the law of this quantity was fitted to each row; true where there is no law to leave it out."""
    fit = curve.fits.get(_target(quantity))
    if fit is None:
        return pd.Series(True, rows.index)
    if "run_id" in rows and "run_id" in fit.rows:
        return rows["run_id"].isin(fit.rows["run_id"])
    return pd.Series(rows.index.isin(fit.rows.index), rows.index)


def _tooltip(row: dict[Any, Any], quantity: Quantity) -> str:
    parts = [f"{row['series']}: {_with_name(row[_column(quantity)], quantity)}"]
    tokens = "" if missing(row.get("tokens")) else f" ({integer(row['tokens'])} tokens)"
    parts.append(f"patch {row['patch_size']} px{tokens}")
    if not missing(row.get("seed")):
        parts.append(f"seed {plain(row['seed'])}")
    if not missing(row.get("flops_train_total")):
        parts.append(f"{scientific(row['flops_train_total'])} training FLOPs")
    if not missing(row.get("wall_time_s")):
        parts.append(duration(row["wall_time_s"]))
    if not row["used"]:
        parts.append("not used in the fit")
    if row["breaks_trend"]:
        parts.append("worse than the next larger patch")
    return ", ".join(parts)


def _with_name(value: float, quantity: Quantity) -> str:
    return f"test loss {number(value)}" if quantity == "loss" else percent(value, 2)


def _has_law(curve: Curve, quantity: Quantity) -> bool:
    return _target(quantity) in curve.fits


def _law(curve: Curve, quantity: Quantity) -> pd.DataFrame:
    """The fitted law and its interval, from the coarsest to the finest fitted patch."""
    law = _law_values(curve.fits[_target(quantity)])
    value, low, high = (law[name].to_numpy(dtype=float) for name in ("predicted", "low", "high"))
    if quantity == "metric":
        value, low, high = 1 - value, 1 - high, 1 - low
    return pd.DataFrame(
        {
            "series": curve.label,
            "kind": "law",
            "patch_size": law["patch_size"],
            _column(quantity): value,
            "low": low,
            "high": high,
        }
    )


@lru_cache(maxsize=64)
def _law_values(fit: "Fit") -> pd.DataFrame:
    """The law between the ends of what it was fitted to; kept, because intervals take a while."""
    sizes = sorted({float(size) for size in fit.rows["patch_size"]}, reverse=True)
    count = round(GRID_PER_OCTAVE * math.log2(sizes[0] / sizes[-1])) + 1
    between = [size for size in np.geomspace(sizes[0], sizes[-1], count) if not np.isclose(size, sizes).any()]
    return fit.predict(sorted([*sizes, *between], reverse=True))


def _means(curve: Curve, quantity: Quantity) -> pd.DataFrame:
    """Means over seeds, for straight lines where no law was fitted."""
    means = curve.means(_target(quantity))
    return pd.DataFrame(
        {
            "series": curve.label,
            "kind": "mean",
            "patch_size": means.index.astype(float),
            _column(quantity): _shown(means, quantity).to_numpy(dtype=float),
            "low": np.nan,
            "high": np.nan,
        }
    )


def _token_rows(points: pd.DataFrame, sizes: Sequence[int]) -> tuple[tuple[str, tuple[tuple[float, str], ...]], ...]:
    """A line of token counts per image size; none if there are too many to read."""
    if "tokens" not in points:
        return ()
    rows: dict[str, dict[int, str]] = {}
    for row in points.to_dict("records"):
        if not missing(row["tokens"]):
            rows.setdefault(plain(row.get("img_size")), {})[row["patch_size"]] = integer(row["tokens"])
    if not 0 < len(rows) <= MAX_TOKEN_ROWS:
        return ()
    return tuple(
        (
            "tokens" if image == "–" else f"tokens, {image} px",
            tuple((float(size), cells[size]) for size in sizes if size in cells),
        )
        for image, cells in rows.items()
    )


def _name(curves: Sequence[Curve], quantity: Quantity) -> str:
    if quantity == "loss":
        return "Test loss"
    names = {plain(curve.key.get("metric_name")) for curve in curves} - {"–"}
    return " / ".join(METRIC_NAMES.get(name, name) for name in sorted(names)) or "Metric"


def _caption(curves: Sequence[Curve], quantity: Quantity) -> str:
    how = ["Each point is a run"]
    levels = sorted({curve.fits[_target(quantity)].level for curve in curves if _has_law(curve, quantity)})
    if levels:
        how.append(
            f"curves are fitted laws, bands their {listed([f'{100 * level:g} %' for level in levels])} intervals"
        )
    if not all(_has_law(curve, quantity) for curve in curves):
        how.append("thin straight lines join means over seeds, without a law")
    return f"{'; '.join([*how, *_marks(curves, quantity)])}."


def _marks(curves: Sequence[Curve], quantity: Quantity) -> list[str]:
    """What unusual markers mean, if there are any."""
    marks = []
    if any(curve.rises(_target(quantity)) for curve in curves):
        marks.append("a ring marks a patch size that did worse than the next larger one")
    if any(not used for curve in curves for used in _points(curve, quantity)["used"]):
        marks.append("an open marker is a run that was left out of the fit")
    return marks


def _description(curves: Sequence[Curve], quantity: Quantity) -> str:
    ends = []
    for curve in curves:
        means = curve.means(_target(quantity))
        coarse, fine = (_bare(means.iloc[place], quantity) for place in (0, -1))
        large, small = int(means.index[0]), int(means.index[-1])
        text = f"{curve.label} is {coarse} at {large} px"
        ends.append(text + (f" and {fine} at {small} px" if large != small else ""))
    return f"{_name(curves, quantity)}: {'; '.join(ends)}."


def _bare(target_value: float, quantity: Quantity) -> str:
    return number(target_value) if quantity == "loss" else percent(1 - target_value, 2)
