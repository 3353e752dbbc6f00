"""The law, fitted to what a study has so far."""

from pathlib import Path


def early_fit(folder: Path) -> list[str]:
    """One line for every curve of the finished runs in `folder`: its fit, or why there is none yet."""
    import warnings

    from patchscale.cli.source import select_rows
    from patchscale.errors import UserError
    from patchscale.laws.fit import fit_curves
    from patchscale.runs.store import load_runs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = load_runs(folder)
        table = table[table["status"] == "done"]
        try:
            fits = fit_curves(select_rows(table, []))
        except UserError as error:
            return [f"early fit: {error}"]
    lines = [f"early fit: {' '.join(str(fit).split())}" for fit in fits]
    lines += [f"early fit: not yet: {refused.reason}" for refused in fits.refused]
    return lines or [f"early fit: not yet: {fits.why_empty()}"]
