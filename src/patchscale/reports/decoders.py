"""What a decoder is worth at each patch size: its runs minus those with the linear head (arXiv 2502.03738, Figure 2).

Runs are compared that differ in the head alone: same data, model, sizes, length and seed, and measured alike but for
what `eval_protocol` says of the head: its name, and in detection also how many boxes it may tell and whether masks.
Losses of detectors have other terms for each head, so there is no difference of them. Intervals are Student's t over
the differences, one a seed.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from patchscale.laws.table import varying
from patchscale.reports.chart import Axis, Chart, Series
from patchscale.reports.curves import finished
from patchscale.reports.palette import assign_colors, assign_styles
from patchscale.reports.words import METRIC_NAMES, missing, number, percent, plain

BASELINE = "linear"
LEVEL = 0.95
FACETS = ("task", "dataset", "metric_name")
SAME = ("model", "img_size", "panel", "pos_embed", "steps", "train_images", "test_images", "measured")
"""Columns in which two runs must agree besides, where a table has them; `measured` is the protocol less its head."""
QUANTITIES = {"metric": "metric", "loss": "test_loss"}


def decoder_benefit(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each quantity, configuration, head, patch size and seed that has a run with and one without a decoder.

    Columns: quantity ("metric" or "loss"), those of `FACETS` and `SAME` there are, head, patch_size, seed (if given)
    and `benefit`, the decoder's value minus the linear head's: above 0 a better metric, below 0 a better loss. Repeated
    runs are averaged first. Empty if there is nothing to compare.
    """
    rows = finished(runs)
    if "head" not in rows or BASELINE not in set(rows["head"]):
        return pd.DataFrame(columns=["quantity", "head", "patch_size", "benefit"])
    if "eval_protocol" in rows:
        named = zip(rows["eval_protocol"], rows["head"], strict=True)
        rows = rows.assign(measured=[_without_head(plain(words), plain(head)) for words, head in named])
    keys = [name for name in (*FACETS, *SAME, "patch_size", "seed") if name in rows]
    found = []
    for quantity, column in QUANTITIES.items():
        if column not in rows:
            continue
        comparable = rows[rows["task"] != "detection"] if quantity == "loss" and "task" in rows else rows
        values = comparable.assign(value=pd.to_numeric(comparable[column], errors="coerce")).dropna(subset="value")
        means = values.groupby([*keys, "head"], dropna=False, sort=False)["value"].mean().reset_index()
        plainest = means[means["head"] == BASELINE].drop(columns="head")
        decoded = means[means["head"] != BASELINE]
        pairs = decoded.merge(plainest, on=keys, suffixes=("", "_linear"))
        found.append(pairs.assign(quantity=quantity, benefit=pairs["value"] - pairs["value_linear"]))
    benefit = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["quantity", "benefit", *keys])
    ordered = ["quantity", *(name for name in keys if name not in ("patch_size", "seed")), "head", "patch_size"]
    return benefit[[*ordered, *(["seed"] if "seed" in keys else []), "benefit"]]


def _without_head(protocol: str, head: str) -> str:
    """The protocol with what it says of its head as a blank; "bilinear" is not "linear"."""
    return re.sub(rf"\b{re.escape(head)}\b(, COCO AP of [^;]*)?", "_", protocol)


def benefit_interval(differences: Sequence[float], level: float = LEVEL) -> tuple[float, float, float]:
    """Mean of paired differences and its t interval; the ends are not-a-number for a single one."""
    from scipy.stats import t

    values = np.asarray(differences, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def decoder_charts(runs: pd.DataFrame) -> list[Chart]:
    """The decoder's benefit against patch size, metric first; none if no two runs differ in the head alone."""
    benefit = decoder_benefit(runs)
    facets = [name for name in FACETS if name in benefit]
    charts = []
    for quantity in QUANTITIES:
        of_quantity = benefit[benefit["quantity"] == quantity]
        if not len(of_quantity):
            continue
        parts = of_quantity.groupby(facets, dropna=False, sort=False) if facets else [((), of_quantity)]
        many = len(list(parts)) > 1
        for place, (values, part) in enumerate(parts, start=1):
            words = ", ".join(plain(value) for value in values if not missing(value))
            charts.append(_chart(place, f": {words}" if many else "", part, quantity))
    return charts


def _chart(place: int, suffix: str, benefit: pd.DataFrame, quantity: str) -> Chart:
    names = varying(benefit, ("model", "head", *SAME[1:]))
    names = names if "model" not in benefit or "model" in names else ["model", *names]
    benefit = benefit.assign(series=[_label(row, names) for row in benefit.to_dict("records")])
    labels = list(dict.fromkeys(benefit["series"]))
    styles = assign_styles(assign_colors(labels))
    column = f"{quantity}_benefit"
    metric = quantity == "metric"
    heads = " or ".join(sorted(set(benefit["head"])))
    what = _metric_name(benefit) if metric else "Test loss"
    curves = []
    for (series, patch_size), part in benefit.groupby(["series", "patch_size"], sort=False):
        mean, low, high = benefit_interval(part["benefit"].tolist())
        curves.append(
            {"series": series, "kind": "mean", "patch_size": patch_size, column: mean, "low": low, "high": high}
        )
    points = benefit.rename(columns={"benefit": column}).assign(used=True, breaks_trend=False)
    points["patch_size"] = points["patch_size"].astype(int)
    points["tooltip"] = [
        f"{row['series']}, patch {row['patch_size']} px: "
        + (percent(row[column], 2) if metric else number(row[column]))
        + ("" if missing(row.get("seed")) else f", seed {plain(row['seed'])}")
        for row in points.to_dict("records")
    ]
    keep = ["series", "patch_size", column, *(["seed"] if "seed" in points else []), "used", "breaks_trend", "tooltip"]
    sizes = sorted(set(points["patch_size"]), reverse=True)
    means = pd.DataFrame(curves).sort_values("patch_size", ascending=False, kind="stable")
    better = "above 0 the decoder helps" if metric else "below 0 the decoder helps"
    return Chart(
        name=f"{quantity}-decoder-benefit-{place}",
        title=f"What a decoder adds, {what[0].lower() + what[1:] if not metric else what}{suffix}",
        caption=f"Each point is a pair of runs that differ in the head alone, {heads} minus {BASELINE}; {better}. Thin "
        f"lines join means over seeds, bands are their {100 * LEVEL:g} % intervals (Student's t, paired by seed).",
        description="; ".join(
            f"{row['series']} at {row['patch_size']:g} px: "
            + (percent(row[column], 2) if metric else number(row[column]))
            for row in means.to_dict("records")
        )
        + ".",
        x=Axis(
            column="patch_size",
            label="patch size p in pixels, finer →",
            scale="finer",
            ticks=tuple((float(size), str(size)) for size in sizes),
        ),
        y=Axis(column=column, label=f"{what}, {heads} minus {BASELINE}", percent=metric),
        series=tuple(Series(label=label, style=style) for label, style in zip(labels, styles, strict=True)),
        points=points[keep].reset_index(drop=True),
        curves=means.reset_index(drop=True),
    )


def _label(row: Mapping[Any, Any], names: Sequence[str]) -> str:
    values = [plain(row[name]) + (" px" if name == "img_size" else "") for name in names if not missing(row[name])]
    return ", ".join(values) or plain(row["head"])


def _metric_name(benefit: pd.DataFrame) -> str:
    names = list(benefit["metric_name"].dropna().unique()) if "metric_name" in benefit else []
    return METRIC_NAMES.get(names[0], str(names[0])) if len(names) == 1 else "Metric"
