"""Which runs belong together: one curve per configuration that differs in patch size and seed alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from patchscale.errors import UserError
from patchscale.laws.protocols import BY, refuse_unlike
from patchscale.laws.table import PROTOCOL_COLUMNS, curve_columns, describe_curve, label_curves, target_named
from patchscale.reports.palette import assign_colors
from patchscale.reports.words import missing, plain

if TYPE_CHECKING:
    from patchscale.laws.fit import Fit

TargetName = Literal["loss", "error"]

FACET_COLUMNS = ("task", "dataset", "metric_name", "panel")
"""Curves may share a pair of axes only if they agree in these: their values cannot be compared otherwise."""

LABEL_COLUMNS = ("model", "img_size", "head", "pos_embed", "recipe", *PROTOCOL_COLUMNS, "study", "panel")
"""What tells the curves of one figure apart, in the order in which it is tried."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """The finished runs of one configuration, coarsest patch first, and the laws fitted to them.

    `label` is unique in the report. `key` holds the values that all its runs share, `facet` those of `FACET_COLUMNS`.
    """

    key: Mapping[str, Any]
    facet: tuple[str, ...]
    label: str
    color: str
    runs: pd.DataFrame = field(repr=False)
    fits: "Mapping[str, Fit]" = field(default_factory=dict, repr=False)

    def means(self, target: TargetName) -> pd.Series:
        """Mean of the target over seeds, by patch size, coarsest first; patch sizes without a value are left out."""
        values = target_values(self.runs, target)
        return values[values.notna()].groupby(self.runs["patch_size"]).mean().sort_index(ascending=False)

    def rises(self, target: TargetName) -> list[tuple[int, int]]:
        """Steps (larger, smaller patch) at which the target got worse although the patch got finer."""
        means = self.means(target)
        sizes = [int(size) for size in means.index]
        return [
            (large, small)
            for large, small, before, after in zip(sizes, sizes[1:], means, means.iloc[1:], strict=False)
            if after > before
        ]


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows with a usable patch size of runs that ended well; a table without `status` holds nothing else."""
    if "patch_size" not in runs:
        return runs[:0]
    sizes = pd.to_numeric(runs["patch_size"], errors="coerce")
    done = sizes.between(0, float("inf"), inclusive="neither")
    if "status" in runs:
        done &= runs["status"].isna() | (runs["status"] == "done")
    return runs.assign(patch_size=sizes)[done]


def target_values(runs: pd.DataFrame, target: TargetName) -> pd.Series:
    """`test_loss`, or `1 - metric`; not-a-number where the table has none."""
    goal = target_named(target)
    if goal.column not in runs:
        return pd.Series(float("nan"), runs.index)
    return goal.values(runs).where(lambda values: values.abs() < float("inf"))


def collect_curves(
    runs: pd.DataFrame, fits: "Sequence[Fit]" = (), *, by: Sequence[str] | None = None, mix_protocols: bool = False
) -> list[Curve]:
    """The curves in `runs`, in the order of the table.

    Each fit claims the rows that share its curve's values, so a curve is what was fitted; what no fit claims is grouped
    by the columns that tell curves apart, `by` (as in `fit_curves`). Raises `UnlikeProtocols` for a curve whose runs
    were measured differently, or trained longer or with other settings than others, unless `mix_protocols`.
    """
    rows = finished(runs if runs.index.is_unique else runs.reset_index(drop=True))
    groups: list[tuple[pd.DataFrame, dict[str, Fit]]] = []
    unclaimed = pd.Series(True, rows.index)
    for fit in fits:
        claimed = rows[_sharing(rows, fit.curve)]
        twin = next((known for part, known in groups if part.index.equals(claimed.index)), None)
        if twin is not None and fit.target not in twin:
            twin[fit.target] = fit
        elif len(claimed):
            groups.append((claimed, {fit.target: fit}))
            unclaimed &= ~rows.index.isin(claimed.index)
    groups += [(part, {}) for part in _grouped(rows[unclaimed], by)]
    position = {label: place for place, label in enumerate(rows.index)}
    groups.sort(key=lambda group: position[group[0].index[0]])

    columns = curve_columns(rows, target_named("error"), by)
    keys = [describe_curve(part, columns) for part, _ in groups]
    labels = _unique(
        [
            next((fit.label for fit in known.values()), computed)
            for (_, known), computed in zip(groups, label_curves(keys, columns), strict=True)
        ]
    )
    if not mix_protocols:
        for (part, _), label in zip(groups, labels, strict=True):
            refuse_unlike(part, PROTOCOL_COLUMNS, label, apart=BY)
    facets = [tuple(_named(name, key[name]) for name in FACET_COLUMNS if not missing(key.get(name))) for key in keys]
    colors = assign_colors([plain(key.get("model")) for key in keys])
    return [
        Curve(
            key=keys[index],
            facet=facets[index],
            label=labels[index],
            color=colors[index],
            runs=part.sort_values("patch_size", ascending=False, kind="stable"),
            fits=known,
        )
        for index, (part, known) in enumerate(groups)
    ]


def why_not_fitted(curve: Curve, target: TargetName) -> str:
    """Why `curve` has no law, in the fitter's own words."""
    from patchscale.laws.fit import fit_law

    try:
        fit_law(curve.runs, target=target, label=curve.label, mix_protocols=True)
    except UserError as error:
        return str(error).removeprefix(f"{curve.label}: ")
    return "no fit of this curve was given to the report"


def _sharing(rows: pd.DataFrame, values: Mapping[str, Any]) -> pd.Series:
    """Rows that have all these values; an empty cell agrees with an empty value only."""
    mask = pd.Series(True, rows.index)
    for name, value in values.items():
        if name in rows:
            mask &= rows[name].isna() if missing(value) else (rows[name] == value).fillna(False).astype(bool)
    return mask


def _grouped(rows: pd.DataFrame, by: Sequence[str] | None) -> list[pd.DataFrame]:
    columns = curve_columns(rows, target_named("error"), by)
    if not columns:
        return [rows] if len(rows) else []
    return [part for _, part in rows.groupby(columns, dropna=False, sort=False)]


def short_labels(curves: Sequence[Curve]) -> list[str]:
    """Names for the curves of one figure: the model, and whatever else tells them apart."""
    if len(curves) == 1:
        return [curves[0].label]
    keys = [curve.key for curve in curves]
    chosen = ["model"]
    for name in LABEL_COLUMNS[1:]:
        if len(set(_joined(keys, [*chosen, name]))) > len(set(_joined(keys, chosen))):
            chosen.append(name)
    return _unique([label or curve.label for label, curve in zip(_joined(keys, chosen), curves, strict=True)])


def _joined(keys: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    return [", ".join(_named(name, key[name]) for name in names if not missing(key.get(name))) for key in keys]


def _named(name: str, value: Any) -> str:
    text = plain(value)
    if name in PROTOCOL_COLUMNS and name != "eval_protocol":
        return f"{name} {text}"
    special = {"img_size": f"{text} px", "head": f"{text} head", "panel": f"panel {text}"}
    return special.get(name, text)


def _unique(labels: Sequence[str]) -> list[str]:
    """The labels, numbered where they repeat."""
    return [
        label if labels.count(label) == 1 else f"{label} ({labels[: index + 1].count(label)})"
        for index, label in enumerate(labels)
    ]
