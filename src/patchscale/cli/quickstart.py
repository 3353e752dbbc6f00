"""`patchscale quickstart`: train, measure, fit and report in one command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd

    from patchscale.laws.fit import FitList


def quickstart(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes of the study, such as patch_size=[12,8,6,4] or training.steps=200."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time. Default: one per GPU, else one per core.")
    ] = None,
    runs_root: Annotated[Path, typer.Option(help="Folder of all studies.")] = Path("runs"),
) -> None:
    """Train ViT and Adventurer at six patch sizes on real pictures, fit the patch-size law and write a report.

    Minutes on two CPU cores, no download. Ctrl-C saves; the same command goes on where it stopped.
    """
    import sys
    import time

    from patchscale.cli.sweep_progress import watch_sweep
    from patchscale.laws.fit import fit_curves
    from patchscale.recipes.quickstart import quickstart_study
    from patchscale.reports.html import write_report
    from patchscale.sweeps.executors.local import SweepInterrupted
    from patchscale.sweeps.runner import run_study
    from patchscale.sweeps.study import build_study

    started = time.perf_counter()
    study = build_study(quickstart_study(), overrides or [], source="quickstart")
    print("How finely should an image be cut? Training two small models at several patch sizes.", file=sys.stderr)
    with watch_sweep() as watcher:
        try:
            runs = run_study(study, runs_root, workers=workers, progress=watcher)
        except SweepInterrupted as stopped:
            watcher.message("stopped; finished runs are kept, the same command goes on with the others")
            raise typer.Exit(stopped.exit_code) from None
    folder = runs_root / study.name
    done = runs[runs["status"] == "done"]
    fits = fit_curves(done)
    report = write_report(runs, fits, folder / "report.html", title="How finely should the image be cut?")
    _print_summary(done, fits, report, minutes=(time.perf_counter() - started) / 60)
    if len(done) < len(runs):
        print(f"{len(runs) - len(done)} of {len(runs)} runs did not finish; see `patchscale runs`", file=sys.stderr)
        raise typer.Exit(1)


def _print_summary(done: "pd.DataFrame", fits: "FitList", report: Path, *, minutes: float) -> None:
    """One screen in plain words."""
    models = list(dict.fromkeys(done["model"]))
    print("\nTest loss (and mIoU) by patch size, finer cuts to the right:\n")
    sizes = sorted(set(done["patch_size"]), reverse=True)
    print("  patch, px        " + "".join(f"{size:>14.0f}" for size in sizes))
    for model in models:
        cells = []
        for size in sizes:
            rows = done[(done["model"] == model) & (done["patch_size"] == size)]
            text = f"{rows['test_loss'].mean():.3f} ({100 * rows['metric'].mean():.1f} %)" if len(rows) else "-"
            cells.append(f"{text:>14}")
        print(f"  {model:<17}" + "".join(cells))
    print()
    for fit in fits:
        print(f"  {fit}\n")
    for refused in fits.refused:
        print(f"  not fitted: {refused.reason}\n")
    print(f"{len(done)} runs in {minutes:.1f} min. The report, with curves and uncertainty:\n  {report.resolve()}")
