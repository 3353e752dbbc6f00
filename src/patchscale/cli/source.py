"""Where verbs take their rows from: a folder of runs, a published table, or a CSV file."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def load_table(source: str) -> "pd.DataFrame":
    """The rows that `source` names; raises `UserError` if there are none."""
    from pathlib import Path

    import pandas as pd

    from patchscale.errors import UserError

    if source.startswith("published:"):
        from patchscale.published_tables.tables import published

        return published(source.removeprefix("published:"))
    path = Path(source)
    if path.is_dir():
        from patchscale.runs.store import load_runs

        runs = load_runs(path)
        if not len(runs):
            raise UserError(
                f"{path}: no runs below this folder; start some with `patchscale sweep` or `patchscale train`"
            )
        return runs
    if not path.exists():
        raise UserError(f"{path}: no such folder or file (a published table is written published:NAME)")
    try:
        return pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV table with a header line ({error})") from None
