"""Which tables can support which law: what cannot be told apart is refused by name, with what to run next."""

import numpy as np
import pandas as pd

from patchscale.errors import UserError
from patchscale.laws.forms import Law
from patchscale.laws.forms.needs import COLLINEAR, log_correlations
from patchscale.laws.table import distinct, listed, plain, shorten, suggest_patch_sizes, varying


def refuse_what_cannot_be_told_apart(rows: pd.DataFrame, dropped: pd.DataFrame, law: Law, label: str) -> None:
    """Raise `UserError` for too few levels, collinear axes and what the law itself refuses."""
    refuse_too_few_levels(rows, dropped, law, label)
    _refuse_collinear(rows, law, label)
    law.refuse(rows, label)


def collinear_pairs(rows: pd.DataFrame, law: Law, limit: float) -> list[tuple[str, str, float]]:
    """Pairs of axes whose logarithms correlate beyond `limit`, strongest first."""
    columns = varying(rows, [axis.column for axis in law.axes])
    if len(columns) < 2:
        return []
    table = log_correlations(rows, columns).to_numpy()
    pairs = [(a, b, float(table[i, j])) for i, a in enumerate(columns) for j, b in enumerate(columns) if i < j]
    return sorted((pair for pair in pairs if abs(pair[2]) > limit), key=lambda pair: -abs(pair[2]))


def dependent_axis(rows: pd.DataFrame, law: Law, limit: float) -> tuple[str, float] | None:
    """An axis that follows from the others together: the multiple correlation of the logarithms exceeds `limit`."""
    columns = varying(rows, [axis.column for axis in law.axes])
    if len(columns) < 3:
        return None
    inverse = np.linalg.pinv(log_correlations(rows, columns).to_numpy())
    # 1 - 1/diagonal is the squared multiple correlation; a singular matrix shows by its eigenvalue instead
    smallest, vector = _weakest(log_correlations(rows, columns).to_numpy())
    if smallest < 1e-9:
        return columns[int(np.argmax(np.abs(vector)))], 1.0
    multiple = np.sqrt(np.clip(1 - 1 / np.diagonal(inverse), 0, 1))
    worst = int(np.argmax(multiple))
    return (columns[worst], float(multiple[worst])) if multiple[worst] > limit else None


def _weakest(matrix: np.ndarray) -> tuple[float, np.ndarray]:
    values, vectors = np.linalg.eigh(matrix)
    return float(values[0]), vectors[:, 0]


def constant_tokens(rows: pd.DataFrame) -> bool:
    """Whether patch size and image size vary but their ratio does not."""
    if not {"patch_size", "img_size"} <= set(rows.columns):
        return False
    ratio = rows["img_size"].astype(float) / rows["patch_size"].astype(float)
    return bool(varying(rows, ["patch_size"]) and ratio.max() < 1.01 * ratio.min())


def refuse_too_few_levels(rows: pd.DataFrame, dropped: pd.DataFrame, law: Law, label: str) -> None:
    """Raise `UserError` for the first axis with fewer values than the law needs, naming values to add."""
    for axis in law.axes:
        have = distinct(rows[axis.column])[::-1]
        if len(have) >= axis.min_levels:
            continue
        found = ", ".join(f"{value:g}" for value in have) or "none"
        lost = f" ({len(dropped)} rows dropped: {shorten(dropped['reason'])})" if len(dropped) else ""
        remedy = f"add {axis.min_levels - len(have)} or more values of {axis.column}"
        if axis.column == "patch_size":
            img_size = rows["img_size"].iloc[0] if "img_size" in rows.columns and len(rows) else None
            add = suggest_patch_sizes(have, axis.min_levels - len(have), plain(img_size))
            remedy = f"add patch_size {listed(add)}" if add else remedy
        elif len(have) == 1 and len(law.axes) > 1:
            others = ",".join(a.column for a in law.axes if a.column != axis.column)
            remedy += f", or leave it out: form 'additive:{others}'"
        raise UserError(
            f"{label}: {len(have)} distinct {axis.column} ({found}){lost}; "
            f"form {law.name!r} needs at least {axis.min_levels}; {remedy}"
        )


def _refuse_collinear(rows: pd.DataFrame, law: Law, label: str) -> None:
    columns = {axis.column for axis in law.axes}
    if {"patch_size", "img_size"} <= columns and constant_tokens(rows):
        ratio = float(rows["img_size"].iloc[0]) / float(rows["patch_size"].iloc[0])
        raise UserError(
            f"{label}: patch_size and img_size vary together, so there are {ratio**2:.0f} tokens in every row and "
            "their effects cannot be told apart; run other patch sizes at one of the image sizes"
        )
    pairs = collinear_pairs(rows, law, COLLINEAR)
    if pairs:
        first, second, rho = pairs[0]
        raise UserError(
            f"{label}: {first} and {second} vary together (correlation of their logarithms {rho:+.2f}), so their "
            f"effects cannot be told apart; run several {first} at one {second}"
        )
    dependent = dependent_axis(rows, law, COLLINEAR)
    if dependent:
        name, rho = dependent
        others = listed([c for c in varying(rows, sorted(columns)) if c != name])
        raise UserError(
            f"{label}: {name} follows from {others} (multiple correlation of the logarithms {rho:.2f}), so their "
            f"effects cannot be told apart; run several {name} with the others fixed"
        )
