"""The law, fitted to what a study has so far."""

import time
from pathlib import Path

EVERY_S = 60.0
"""A fit of many curves takes seconds, in which a sweep starts nothing."""


class EarlyFit:
    """Fits the runs of a folder again and again, at most once a minute."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ended_at: float | None = None

    def again(self, *, last: bool = False) -> list[str] | None:
        """The lines of `early_fit`; None if it is too soon, unless it is the `last` time."""
        if not last and self.ended_at is not None and time.monotonic() - self.ended_at < EVERY_S:
            return None
        lines = early_fit(self.folder)
        self.ended_at = time.monotonic()
        return lines


def early_fit(folder: Path) -> list[str]:
    """One line for every curve of the finished runs in `folder`: its fit, or why there is none yet. Raises nothing."""
    try:
        return [f"early fit: {line}" for line in _fits(folder)]
    except Exception as error:  # whatever it is, the runs go on
        return [f"early fit: {' '.join(str(error).split()) or type(error).__name__}"]


def _fits(folder: Path) -> list[str]:
    import shlex
    import warnings

    from patchscale.cli.source import select_rows
    from patchscale.laws.fit import fit_curves
    from patchscale.runs.store import load_runs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = load_runs(folder)
        fits = fit_curves(select_rows(table[table["status"] == "done"], []), refuse_alone=True)
    lines = [" ".join(str(fit).split()) for fit in fits]
    remedy = f"; `patchscale fit {shlex.quote(str(folder))}` says what can be done"
    lines += [f"not yet: {refused.reason}{remedy if refused.is_unlike else ''}" for refused in fits.refused]
    return lines or [f"not yet: {fits.why_empty()}"]
