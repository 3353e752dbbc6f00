"""What the hash `settings` of a run is of, read from its config.yaml."""

from pathlib import Path

import pandas as pd

from patchscale.config_differences import differing_values
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
    return differing_values(configs)
