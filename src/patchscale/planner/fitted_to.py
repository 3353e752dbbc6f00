"""What a fit was fitted to, where its law does not say: one model, one image size, or one family of models."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from patchscale.errors import UserError
from patchscale.laws.design import labels_of
from patchscale.laws.result import Fit
from patchscale.laws.table import listed, plain
from patchscale.shapes import SHAPES

DESCRIBED_BY = {
    "model": {"params_backbone", "llm_params", "flops_train_total"},
    "img_size": {"img_size", "tokens", "visual_tokens"},
    "patch_size": {"patch_size", "tokens", "visual_tokens"},
}
"""Axes of a law that tell one value of these columns from another."""
FAMILY = "model family"
"""What `outside` says of a model of another family than those fitted."""


def refuse_undescribed(fit: Fit, table: pd.DataFrame) -> None:
    """Raise `UserError` for models, image or patch sizes of which the law says nothing: it would predict all the same.

    A law without an axis for one of these columns, such as that of one curve, holds for the value it was fitted to.
    Where the fitted rows do not name it, one value is taken to be that, and several are refused.
    """
    axes = {axis.column for axis in fit.problem.law.axes}
    for column, by in DESCRIBED_BY.items():
        if column not in table or column in _keys(fit) or axes & by:
            continue
        asked = _values(table, column)
        fitted = _values(fit.rows, column) if column in fit.rows else []
        others = {_key(value) for value in asked} - {_key(value) for value in fitted}
        if len(asked) <= 1 and not (fitted and others):
            continue
        given = f"fitted to {column} {_some(fitted)}" if fitted else f"of a table that names no {column}"
        one = _one(column, fitted[0]) if len(fitted) == 1 else "by itself, one at a time"
        raise UserError(
            f"the law {fit.form!r}, {given}, predicts the same for every {column} (asked: {_some(asked)}); plan "
            f"{column} {one}, or fit a law that describes it to a table with several, such as relative-patch"
        )


def other_families(fit: Fit, table: pd.DataFrame) -> list[str]:
    """For each row `FAMILY` if no model of its family was fitted (in its group, where there are groups), else empty.

    The family is the architecture, or the first word of a name that is not built in. Language models are not looked at.
    """
    if "model" not in table or "model" not in fit.rows or "llm" in table or "model" in _keys(fit):
        return [""] * len(table)
    groups = [] if fit.design is None else list(fit.design.group_columns)
    fitted: dict[str, set[str]] = {}
    families = fit.rows["architecture"] if "architecture" in fit.rows else [None] * len(fit.rows)
    for group, model, family in zip(labels_of(fit.rows, groups), fit.rows["model"], families, strict=True):
        fitted.setdefault(group, set()).update(map(family_of, (name for name in (model, family) if _named(name))))
    if not any(fitted.values()):
        return [""] * len(table)
    return [
        "" if family_of(model) in fitted[group] else FAMILY
        for group, model in zip(labels_of(table, groups), table["model"], strict=True)
    ]


def family_of(name: Any) -> str:
    """adventurer of Adventurer-Base, vit of deit_small; of a name that is not built in its first word."""
    key = _key(name)
    return SHAPES[key].architecture if key in SHAPES else key.split("_")[0]


def _keys(fit: Fit) -> set[str]:
    """Columns of groups and factors."""
    return set() if fit.design is None else {*fit.design.group_columns, *(one.column for one in fit.design.factors)}


def _values(table: pd.DataFrame, column: str) -> list[Any]:
    return [plain(value) for value in table[column].dropna().unique()]


def _key(value: Any) -> str:
    """Names as the built-in ones are written, numbers without a fraction."""
    if isinstance(value, int | float | np.number):
        return f"{float(value):g}"
    return str(value).lower().replace("-", "_")


def _one(column: str, value: Any) -> str:
    """What can be planned with: a model by its built-in name."""
    if column != "model" or _key(value) in SHAPES:
        return _key(value)
    return f"{value} (if that is a built-in model, give it that name in the table)"


def _named(name: Any) -> bool:
    return plain(name) is not None


def _some(values: Iterable[Any]) -> str:
    texts = [str(value) for value in values]
    return listed(texts[:4]) if len(texts) <= 4 else ", ".join(texts[:4]) + ", ..."
