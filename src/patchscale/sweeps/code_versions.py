"""Runs of different code do not belong on one curve: what made the finished runs of a study, and what would go on."""

from collections.abc import Sequence
from contextlib import suppress

from patchscale.errors import UserError
from patchscale.provenance import code_version
from patchscale.runs.record import RunDirectory
from patchscale.sweeps.plan import PlannedRun


def refuse_mixed_code(planned: Sequence[PlannedRun], todo: Sequence[PlannedRun]) -> None:
    """Raise `UserError` if runs to do share a curve with runs, begun or finished, of another version of the code."""
    now = code_version()
    curves = {item.config.settings for item in todo}
    other = {
        item.run_id: version
        for item in planned
        if item.config.settings in curves and (version := version_of(item.run)) not in (None, now)
    }
    if other:
        run_id, version = next(iter(other.items()))
        raise UserError(
            f"{len(other)} of {len(planned)} runs were made by other code ({run_id}: {version}, here: {now}), and "
            "runs of a curve should differ in nothing else: go on with that code, choose another study name, or "
            "give --mix-code"
        )


def version_of(run: RunDirectory) -> str | None:
    """The version of the code that last worked on the run; None if none was recorded."""
    with suppress(UserError):
        code = (run.read_json("environment.json") or {}).get("code")
        return None if code is None else str(code)
    return None
