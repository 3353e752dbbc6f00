"""Which runs belong together: one curve per configuration that differs in patch size and seed alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from patchscale.reports.palette import Style, assign_styles
from patchscale.reports.words import missing, plain

if TYPE_CHECKING:
    from patchscale.laws.fit import Fit

Target = Literal["loss", "error"]

# what makes two runs members of different curves, in the order in which a label needs it
CURVE_COLUMNS = (
    "model", "img_size", "head", "pos_embed", "task", "dataset", "recipe", "eval_protocol", "study", "panel",
)  # fmt: skip
# curves that may share a pair of axes: a loss is comparable within one of these only
FACET_COLUMNS = ("task", "dataset", "metric_name")


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """The runs of one configuration over patch size, and the law fitted to them if there is one.

    `label` is unique in the report, `short_label` among the curves that share its `facet`.
    """

    key: Mapping[str, Any]
    facet: tuple[str, ...]
    label: str
    short_label: str
    style: Style
    runs: pd.DataFrame = field(repr=False)
    fit: "Fit | None" = None

    @property
    def measured(self) -> pd.DataFrame:
        """Finished runs, sorted from the coarsest to the finest patch."""
        runs = self.runs
        if "status" in runs:
            runs = runs[runs["status"].isna() | (runs["status"] == "done")]
        return runs.sort_values("patch_size", ascending=False, kind="stable")


def value_column(target: Target) -> str:
    """The column of the runs table that a target is computed from."""
    return "test_loss" if target == "loss" else "metric"


def target_values(runs: pd.DataFrame, target: Target) -> pd.Series:
    """`test_loss`, or `1 - metric`; not-a-number where the table has none."""
    name = value_column(target)
    values = pd.to_numeric(runs[name], errors="coerce") if name in runs else pd.Series(float("nan"), runs.index)
    return values if target == "loss" else 1 - values


def collect_curves(runs: pd.DataFrame, fits: Sequence["Fit"] = ()) -> list[Curve]:
    """Group `runs` into curves, in the order of the table, each with the fit of `fits` whose values it has."""
    columns = [name for name in CURVE_COLUMNS if name in runs and runs[name].notna().any()]
    groups: list[tuple[dict[str, Any], pd.DataFrame]] = []
    if not columns:
        groups = [({}, runs)] if len(runs) else []
    else:
        for values, part in runs.groupby(columns, dropna=False, sort=False):
            key = dict(zip(columns, values, strict=True))
            groups.append(({name: None if missing(value) else value for name, value in key.items()}, part))
    keys = [key for key, _ in groups]
    facets = [tuple(plain(key[name]) for name in FACET_COLUMNS if not missing(key.get(name))) for key in keys]
    labels = distinct_labels(keys)
    short = dict[int, str]()
    for facet in dict.fromkeys(facets):
        members = [index for index, other in enumerate(facets) if other == facet]
        short |= dict(zip(members, distinct_labels([keys[index] for index in members]), strict=True))
    styles = assign_styles([plain(key.get("model")) for key in keys])
    return [
        Curve(
            key=key,
            facet=facets[index],
            label=labels[index],
            short_label=short[index],
            style=styles[index],
            runs=part,
            fit=_fit_of(key, part, fits),
        )
        for index, (key, part) in enumerate(groups)
    ]


def distinct_labels(keys: Sequence[Mapping[str, Any]]) -> list[str]:
    """The shortest labels that tell `keys` apart: the model, then whatever else differs."""
    chosen: list[str] = []
    for name in CURVE_COLUMNS:
        tried = [*chosen, name]
        informative = len(set(_labels(keys, tried))) > len(set(_labels(keys, chosen)))
        if informative or (name == "model" and any(not missing(key.get(name)) for key in keys)):
            chosen = tried
    labels = _labels(keys, chosen)
    if not any(labels):
        labels = _labels(keys, ["task", "dataset"])
    return [label or "all runs" for label in labels]


def _labels(keys: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    return [", ".join(_named(name, key[name]) for name in names if not missing(key.get(name))) for key in keys]


def _named(name: str, value: Any) -> str:
    text = plain(value)
    return {
        "img_size": f"{text} px",
        "head": f"{text} head",
        "panel": f"panel {text}",
        "pos_embed": f"{text} positions",
    }.get(name, text)


def _fit_of(key: Mapping[str, Any], runs: pd.DataFrame, fits: Sequence["Fit"]) -> "Fit | None":
    """The fit whose grouping values are those of the curve."""
    for fit in fits:
        shared = [name for name in fit.curve if name in key]
        if all(plain(fit.curve[name]) == plain(key[name]) for name in shared):
            return fit
    return None
