"""Rows of a table as plain values."""

from collections.abc import Mapping
from typing import Any

import pandas as pd


def plain_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """NumPy values as Python's."""
    return {str(name): value.item() if hasattr(value, "item") else value for name, value in row.items()}


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """All rows."""
    return [plain_row(row) for row in table.to_dict("records")]
