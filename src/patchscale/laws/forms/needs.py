"""What laws ask of rows beside enough levels of each axis: axes whose effects can be told apart."""

import numpy as np
import pandas as pd

from patchscale.errors import UserError

COLLINEAR = 0.95
"""Correlation of the logarithms of two axes from which their effects are not told apart."""
RATIO_LEVELS = 4
"""Distinct p/r that a floor and a power of it need."""


def log_correlations(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Correlations of the logarithms of the axes, each distinct place counted once."""
    places = rows[columns].astype(float).drop_duplicates()
    return pd.DataFrame(np.log(places)).corr().fillna(0.0)


def patch_ratios(rows: pd.DataFrame) -> pd.Series:
    """patch_size / img_size of each row, without the noise of division."""
    return (rows["patch_size"] / rows["img_size"]).round(9)


def refuse_few_ratios(rows: pd.DataFrame, form: str, label: str, remedy: str) -> None:
    """Raise `UserError` with the `remedy` if there are too few p/r for a floor and a power of it."""
    count = patch_ratios(rows).nunique()
    if count < RATIO_LEVELS:
        raise UserError(
            f"{label}: {count} distinct patch_size / img_size; form {form!r} needs at least {RATIO_LEVELS}; {remedy}"
        )
