"""From a table of runs (or a published table) to the points of one curve: which rows, which not, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from patchscale.errors import UserError

if TYPE_CHECKING:
    from patchscale.laws.forms import Law

CURVE_COLUMNS = (
    "study", "task", "dataset", "panel", "model", "head", "img_size", "recipe", "pos_embed",
)  # fmt: skip
"""Columns that tell curves apart, when they are present and vary; `metric_name` too when the target is the error."""

PROTOCOL_COLUMNS = (
    "eval_protocol", "eval_mode", "eval_crop_ratio", "eval_stride", "eval_flip", "eval_scales", "label_size",
    "mask_size", "crop_ratio", "crop", "flip", "test_images", "train_images", "iterations", "steps", "images_seen",
    "epochs", "settings",
)  # fmt: skip
"""How a run was measured, and how long and with what settings it was trained: runs that differ in one of these alone
are not one curve, and hardly two. They are refused unless somebody says what is meant (`protocols.py`)."""

LENGTH_COLUMNS = ("epochs", "images_seen", "train_images", "steps", "iterations")
"""How long a run was trained, and on how much."""

STANDS_FOR = {"params_backbone": ("model",), "llm_params": ("model",), "flops_train_total": LENGTH_COLUMNS}
"""Axes from which settings follow in tables without these columns."""

HELD_FIXED = (*CURVE_COLUMNS[1:], "architecture", *PROTOCOL_COLUMNS)
"""Columns that must not vary along one curve: a patch-size effect could be theirs. (Studies may be pooled.)"""


@dataclass(frozen=True)
class Target:
    """What the law describes."""

    name: str
    column: str
    """The column it is read from."""
    is_error: bool
    logit: bool = False
    """Whether the law describes log(y / (1 - y)) instead of y."""

    def values(self, table: pd.DataFrame) -> pd.Series:
        """The target of every row; NaN where the cell is empty or no number."""
        cells = pd.to_numeric(table[self.column], errors="coerce").astype(float)
        return 1 - cells if self.is_error else cells


MOST, LEAST = 1e30, 1e-30
"""Numbers beyond these are slips; their powers leave what floating point holds, so they are refused by name."""

TARGETS = {
    "loss": Target("loss", "test_loss", is_error=False),
    "error": Target("error", "metric", is_error=True),
    "logit-error": Target("logit-error", "metric", is_error=True, logit=True),
}


def target_named(name: str) -> Target:
    """The target called `name`; raises `UserError` with the known names."""
    if name not in TARGETS:
        raise UserError(f"target {name!r} is not known; use one of {', '.join(TARGETS)}")
    return TARGETS[name]


def require_columns(table: pd.DataFrame, law: "Law", target: Target, extra: Sequence[str] = ()) -> None:
    """Raise `UserError` if a column that the fit reads is absent, naming the columns there are."""
    for column in (*(axis.column for axis in law.axes), target.column, *extra):
        if column in table.columns:
            continue
        other = next((t for t in TARGETS.values() if t is not target and t.column in table.columns), None)
        if column == target.column and other is not None:
            remedy = f"it has {other.column!r}: use target {other.name!r}"
        else:
            close = get_close_matches(column, [str(name) for name in table.columns], n=1)
            remedy = f"rename {close[0]!r}" if close else "add it"
        present = ", ".join(str(name) for name in table.columns)
        raise UserError(f"the table has no column {column!r}; {remedy} (columns: {present})")


def split_usable(table: pd.DataFrame, law: "Law", target: Target) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows that can be fitted, and the others with a column `reason`: the first that applies."""
    reasons = pd.Series([""] * len(table), index=table.index, dtype=object)

    def because(mask: pd.Series, text: Any) -> None:
        reasons[mask & (reasons == "")] = text[mask & (reasons == "")] if isinstance(text, pd.Series) else text

    if "status" in table.columns:
        status = table["status"].astype(object).where(table["status"].notna(), "unknown")
        because(status != "done", status.map(lambda state: f"status is {state}, not done"))
    for axis in law.axes:
        cells = pd.to_numeric(table[axis.column], errors="coerce").astype(float)
        because(~cells.between(0, np.inf, inclusive="neither"), _why_unusable(table, axis.column))
    because(~target.values(table).between(-np.inf, np.inf, inclusive="neither"), _why_unusable(table, target.column))
    if "run_id" in table.columns:
        usable = table["run_id"].where(reasons == "")
        because(usable.notna() & usable.duplicated(), "the same run is in the table twice")
    used = reasons == ""
    numbers = {axis.column: pd.to_numeric(table.loc[used, axis.column]) for axis in law.axes}
    rows = table[used].assign(**numbers)
    for column in (*numbers, target.column):
        refuse_extremes(rows, column)
    return rows, table[~used].assign(reason=reasons[~used])


def refuse_extremes(rows: pd.DataFrame, column: str) -> None:
    """Raise `UserError` for the first number in `column` that is far too large or, but for 0, far too small."""
    sizes = pd.to_numeric(rows[column], errors="coerce").astype(float).abs()
    wrong = rows[(sizes > MOST) | ((sizes < LEAST) & (sizes > 0))]
    if len(wrong):
        raise UserError(
            f"{column}={float(wrong[column].iloc[0]):g} in row {wrong.index[0]} (index of the table): numbers lie "
            f"between {LEAST:g} and {MOST:g}; correct it, or leave the row out"
        )


def _why_unusable(table: pd.DataFrame, column: str) -> pd.Series:
    """For every row, what is wrong with its cell in `column`, supposing that something is."""
    cells = table[column].astype(object)
    return cells.map(
        lambda cell: f"no {column}" if pd.isna(cell) else f"{column} is not a number a law takes ({cell!r})"
    )


def constant(cells: pd.Series) -> bool:
    """Whether all cells hold the same value, or all are empty."""
    return len(cells.drop_duplicates()) <= 1


def varying(table: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Those of `columns` that are present and hold more than one value."""
    return [name for name in columns if name in table.columns and not constant(table[name])]


def undescribed_columns(rows: pd.DataFrame, law: "Law", target: Target, keys: Sequence[str] = ()) -> list[str]:
    """Columns that vary and that neither the axes of the law nor the `keys`, groups and factors, describe.

    The model and its image size may vary where the law has an axis for them. A column whose value follows from the
    keys is described by them; so are settings that follow from model, image size, length and keys, as far as these are
    described.
    """
    axes = {axis.column for axis in law.axes}
    described = {*axes, *keys}
    if axes & {"params_backbone", "llm_params", "flops_train_total"}:
        described.add("model")
    if axes & {"tokens", "visual_tokens"}:
        described.add("img_size")
    if axes & {"flops_train_total", *LENGTH_COLUMNS}:
        described |= set(LENGTH_COLUMNS)
    names = [name for name in ("model", "img_size", *LENGTH_COLUMNS, *keys) if name in described]
    names += [axis for axis, meant in STANDS_FOR.items() if axis in axes and not rows.columns.isin(meant).any()]
    decisive = varying(rows, names)
    if decisive and not any(varying(group, ["settings"]) for _, group in rows.groupby(decisive, dropna=False)):
        described.add("settings")
    candidates = (*HELD_FIXED, "task_group", "family", "pretrain_tag", *(["metric_name"] if target.is_error else []))
    left = [name for name in varying(rows, candidates) if name not in described]
    if not keys:
        return left
    groups = [group for _, group in rows.groupby(list(keys), dropna=False)]
    return [name for name in left if any(varying(group, [name]) for group in groups)]


def measured_values(rows: pd.DataFrame, law: "Law", target: Target, label: str) -> NDArray[np.float64]:
    """The target of every row; raises `UserError` for values that no law reaches, naming the first row's place."""
    values = target.values(rows).to_numpy(float)
    if target.is_error:
        refuse_percentages(rows, target.column)
    reached = (values > 0) & (values < (1.0 if target.logit else np.inf))
    if not reached.all():
        first = rows[~reached].iloc[0]
        place = ", ".join(f"{axis.column.removesuffix('_size')} {first[axis.column]:g}" for axis in law.axes)
        what = "between 0 and 1" if target.logit else "positive"
        remedy = "fit the loss, or leave the row out" if target.is_error else "a cross-entropy is positive; check it"
        raise UserError(f"{label}: the {target.name} at {place} is not {what}, the law cannot reach it; {remedy}")
    return values


def refuse_percentages(rows: pd.DataFrame, column: str) -> None:
    """Raise `UserError` for the first number in `column` that is no fraction, naming it and its row."""
    cells = pd.to_numeric(rows[column], errors="coerce").astype(float)
    wrong = cells[(cells < 0) | (cells > 1)]
    if len(wrong):
        raise UserError(
            f"{column}={wrong.iloc[0]:g} in row {wrong.index[0]} (index of the table) is not a fraction: metrics lie "
            "in [0, 1]; divide per cent by 100"
        )


def known_noise(rows: pd.DataFrame, column: str | None, label: str) -> NDArray[np.float64] | None:
    """The standard deviations in `column`, None without one; raises `UserError` for cells that are none."""
    if not column:
        return None
    noise = pd.to_numeric(rows[column], errors="coerce").to_numpy(float)
    if not (np.isfinite(noise) & (noise > 0)).all():
        raise UserError(f"{label}: column {column!r} must hold a positive standard deviation in every fitted row")
    refuse_extremes(rows, column)
    return noise


def curve_columns(table: pd.DataFrame, target: Target, by: Sequence[str] | None) -> list[str]:
    """The columns to group by: those asked for, or those of `CURVE_COLUMNS` that vary; `+column` adds one to these."""
    usual = varying(table, (*CURVE_COLUMNS, "metric_name") if target.is_error else CURVE_COLUMNS)
    if by is None:
        return usual
    names = [name.removeprefix("+") for name in by]
    for name in names:
        if name not in table.columns:
            close = get_close_matches(name, [str(column) for column in table.columns], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"cannot group by {name!r}: no such column{hint} (columns: {', '.join(table.columns)})")
    return list(dict.fromkeys([*usual, *names] if any(name.startswith("+") for name in by) else names))


def describe_curve(rows: pd.DataFrame, grouped_by: Sequence[str]) -> dict[str, Any]:
    """The values that are the same in all rows of a curve and tell what it is; None for an empty cell."""
    names = dict.fromkeys((*grouped_by, *CURVE_COLUMNS, "eval_protocol", "architecture", "metric_name"))
    present = [name for name in names if name in rows.columns and len(rows) and constant(rows[name])]
    return {name: plain(rows[name].iloc[0]) for name in present}


def label_curves(curves: Sequence[dict[str, Any]], grouped_by: Sequence[str] = ()) -> list[str]:
    """Short names: model and image size, and as many of the grouping columns as it takes to tell the curves apart."""
    shown = ["model", "img_size"]
    labels = [_label(curve, shown) for curve in curves]
    for name in sorted(grouped_by, key=_label_order):
        if len(set(labels)) == len(labels):
            break
        longer = [_label(curve, [*shown, name]) for curve in curves]
        if len(set(longer)) > len(set(labels)):
            shown, labels = [*shown, name], longer
    return labels


def _label(curve: dict[str, Any], shown: Sequence[str]) -> str:
    names = list(shown) if curve.get("model") is not None else ["dataset", "task", *shown]
    parts = [_label_part(name, curve[name]) for name in dict.fromkeys(names) if curve.get(name) is not None]
    return ", ".join(parts) or "all rows"


def plain(value: Any) -> Any:
    """A cell as a plain Python value; None if it is empty."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return None
    return value.item() if hasattr(value, "item") else value


def distinct(cells: pd.Series) -> list[float]:
    """Distinct values of an axis, ascending; those within 5 % count as one (models differ a little by patch size)."""
    found: list[float] = []
    for value in np.unique(pd.to_numeric(cells).to_numpy(float)):
        if not found or value > 1.05 * found[-1]:
            found.append(float(value))
    return found


def listed(items: Sequence[Any]) -> str:
    """`a, b and c`."""
    texts = [str(item) for item in items]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def shorten(cells: pd.Series, limit: int = 4) -> str:
    """The first few distinct values of a column, as text."""
    texts = ["none" if pd.isna(value) else str(value) for value in cells.drop_duplicates()]
    return ", ".join(texts[:limit]) + (", ..." if len(texts) > limit else "")


def suggest_patch_sizes(have: Sequence[float], needed: int, img_size: Any = None) -> list[int]:
    """Which `needed` patch sizes to run next: fill gaps first, then smaller, then larger.

    Only divisors of a square `img_size` that leave at least 2 x 2 tokens, when it is known; else powers of two.
    """
    side = plain(img_size)
    if isinstance(side, int | float) and side >= 2:
        choices = [p for p in range(1, int(side) // 2 + 1) if int(side) % p == 0]
    else:
        choices = [2**power for power in range(7)]
    known = [float(p) for p in have]
    added: list[int] = []
    for _ in range(needed):
        left = [p for p in choices if p not in known]
        if not left:
            break
        best = max(left, key=lambda p: _usefulness(p, known))
        added.append(best)
        known.append(float(best))
    return sorted(added, reverse=True)


def _usefulness(patch_size: int, known: list[float]) -> tuple[float, float]:
    if not known:
        return (0.0, -abs(np.log2(patch_size / 8)))
    octaves = min(abs(np.log2(patch_size / other)) for other in known)
    inside = min(known) < patch_size < max(known)
    below = patch_size < min(known)
    # a whole octave from every known size is far enough; beyond the ends, the nearest such size comes first
    return (min(octaves, 1.0), (2.0 if inside else 1.0 if below else 0.0) - (0.0 if inside else octaves / 100))


LABEL_ORDER = ("panel", "head", "metric_name", "task", "dataset", "study")
"""Which columns say most about a curve; others follow."""


def _label_order(name: str) -> int:
    return LABEL_ORDER.index(name) if name in LABEL_ORDER else len(LABEL_ORDER)


def _label_part(name: str, value: Any) -> str:
    if name == "img_size":
        return f"{value} px"
    return str(value) if name in ("model", "task", "dataset", "metric_name", "study") else f"{name} {value}"


def accuracy_noise(metric: Any, images: float, *, seed_points: float = 0.15, rounded_points: float = 0.0) -> Any:
    """Standard deviation of an accuracy (fraction): binomial over `images`, seeds, rounding.

    `metric` is a number, array or column. `seed_points` is the spread between seeds in percentage points (0.1 to 0.2 is
    usual on ImageNet); `rounded_points` the step a table is rounded to (0.1 adds 0.03 points). Its result can be the
    `noise` column of a fit. Raises `UserError` for no images or a metric that is no fraction.
    """
    values = np.asarray(metric, dtype=float)
    if not images > 0:
        raise UserError(f"images={images}: give the number of evaluated images, such as 50000 for ImageNet")
    if not ((values >= 0) & (values <= 1)).all():
        raise UserError("the metric is not a fraction between 0 and 1; divide percentages by 100")
    # a rounded number is uniform over the step
    variance = values * (1 - values) / images + (seed_points / 100) ** 2 + (rounded_points / 100) ** 2 / 12
    return np.sqrt(variance)
