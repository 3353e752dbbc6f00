"""`patchscale runs --verify`, `--archive` and `--delete-failed`."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from patchscale.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def verify_runs(table: "pd.DataFrame", *, json: bool) -> None:
    """Print what is wrong with finished runs, and which cannot be read, one line each; exit code 1 if there is any."""
    import sys

    from patchscale.cli.output import print_json
    from patchscale.runs.checksums import problems
    from patchscale.runs.store import UNREADABLE

    finished = table[table["status"] == "done"]
    found = {path: problems(Path(path)) for path in finished["path"]}
    unreadable = table[table["status"] == UNREADABLE]
    found |= {path: [message] for path, message in zip(unreadable["path"], unreadable["message"], strict=True)}
    wrong = {path: texts for path, texts in found.items() if texts}
    unrecorded = [path for path, texts in found.items() if texts is None]
    if json:
        print_json([{"path": path, "verified": texts == [], "problems": texts} for path, texts in found.items()])
    else:
        for path, texts in wrong.items():
            print(f"{path}: {'; '.join(texts or ())}")
    whole = len(found) - len(wrong) - len(unrecorded)
    print(
        f"{whole} of {len(found)} finished runs are whole, {len(wrong)} are not"
        + (f", {len(unrecorded)} have no checksums" if unrecorded else ""),
        file=sys.stderr,
    )
    if wrong:
        print("restore these files, or delete the run's folder: the sweep does it again", file=sys.stderr)
        raise typer.Exit(1)


def archive_runs(table: "pd.DataFrame", file: Path) -> None:
    """Write the runs of the table into one file."""
    from patchscale.reports.words import plural, size_bytes
    from patchscale.runs.archive import archive

    if not len(table):
        raise UserError(f"--archive {file}: no such runs")
    size = archive([Path(path) for path in table["path"]], file)
    print(f"{plural(len(table), 'run')}, {size_bytes(size)} -> {file}")


def delete_failed_runs(table: "pd.DataFrame", *, really: bool) -> None:
    """Remove the failed runs of the table, or say which they are."""
    from patchscale.reports.words import plural
    from patchscale.runs.archive import delete

    failed = table[table["status"] == "failed"]
    for path, kind in zip(failed["path"], failed["failure_kind"], strict=True):
        if not really:
            print(f"{path}: {kind}")
        elif delete(Path(path)):
            print(f"deleted {path}")
        else:
            print(f"left: {path} is being carried out")
    if not really:
        print(f"{plural(len(failed), 'failed run')}" + ("; add --yes to delete" if len(failed) else ""))
