"""What the hash `settings` of a run is of, read from its config.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from patchscale.errors import UserError
from patchscale.runs.record import RunDirectory


def differing_settings(rows: pd.DataFrame) -> dict[str, list[str]]:
    """`{"training.learning_rate": ["0.001", "0.01"]}`: a value for each hash in `settings`, in the order of the table.

    Empty if the table does not know the places of such runs, or their configs are not those any more.
    """
    firsts = rows.drop_duplicates("settings")
    if "path" not in firsts or firsts[["path", "settings"]].isna().any(axis=None):
        return {}
    try:
        configs = [RunDirectory(Path(str(path))).config() for path in firsts["path"]]
    except (UserError, OSError):
        return {}
    if [config.settings for config in configs] != firsts["settings"].tolist():
        return {}
    found = [_by_name(config.curve_values()) for config in configs]
    names = dict.fromkeys(name for values in found for name in values)
    texts = {name: [_text(values.get(name)) for values in found] for name in names}
    return {name: values for name, values in texts.items() if len(set(values)) > 1}


def _by_name(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested values as one level: `training.learning_rate`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _by_name(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return found


def _text(value: Any) -> str:
    return "none" if value is None else str(value)
