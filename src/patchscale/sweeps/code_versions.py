"""Runs of different code do not belong on one curve: what made the runs in a study's folder, and what would go on."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from patchscale.errors import UserError
from patchscale.provenance import code_version
from patchscale.runs.record import RunDirectory
from patchscale.runs.store import find_runs
from patchscale.sweeps.plan import PlannedRun


def refuse_mixed_code(planned: Sequence[PlannedRun], todo: Sequence[PlannedRun], folder: Path) -> None:
    """Raise `UserError` if runs to do share a curve with runs, begun or finished, of other code.

    Those are all in `folder`, the study's: also runs that another grid of it has made.
    """
    if not todo or not folder.is_dir():
        return
    now = code_version()
    runs = {item.run.path for item in planned} | {*find_runs(folder)}
    made_by = {path: version for path in runs if (version := version_of(RunDirectory(path))) not in (None, now)}
    curves = {item.config.settings for item in todo} if made_by else {}
    other = {path: version for path, version in made_by.items() if _settings(RunDirectory(path)) in curves}
    if other:
        path, version = min(other.items())
        raise UserError(
            f"{len(other)} of {len(runs)} runs were made by other code ({path.name}: {version}, here: {now}), and "
            "runs of a curve should differ in nothing else: go on with that code, choose another study name, or "
            "give --mix-code"
        )


def _settings(run: RunDirectory) -> str | None:
    with suppress(UserError):
        return run.config().settings
    return None


def version_of(run: RunDirectory) -> str | None:
    """The version of the code that last worked on the run; None if none was recorded."""
    with suppress(UserError):
        code = (run.read_json("environment.json") or {}).get("code")
        return None if code is None else str(code)
    return None
