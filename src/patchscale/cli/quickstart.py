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
    from patchscale.sweeps.runner import run_study
    from patchscale.sweeps.stop import SweepInterrupted
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
    fits = fit_curves(runs)
    report = write_report(runs, fits, folder / "report.html", title="How finely should the image be cut?")
    _print_summary(runs, fits, report, minutes=(time.perf_counter() - started) / 60)
    unfinished = int((runs["status"] != "done").sum())
    if unfinished:
        print(f"{unfinished} of {len(runs)} runs did not finish; see `patchscale runs {folder}`", file=sys.stderr)
        raise typer.Exit(1)


def _print_summary(runs: "pd.DataFrame", fits: "FitList", report: Path, *, minutes: float) -> None:
    """One screen in plain words."""
    import textwrap

    from patchscale.reports.answer import law_sentences, lede
    from patchscale.reports.curves import collect_curves

    curves = collect_curves(runs, fits)
    metric_name = ", ".join(sorted(set(runs["metric_name"].dropna()))) or "metric"
    print(f"\nTest loss and {metric_name}, from coarse to fine cuts:\n")
    print("  patch  tokens" + "".join(f"   {curve.label:<22}" for curve in curves))
    sizes = sorted({size for curve in curves for size in curve.means("loss").index}, reverse=True)
    for size in sizes:
        cells, tokens = [], ""
        for curve in curves:
            rows = curve.runs[curve.runs["patch_size"] == size]
            found = f"{rows['test_loss'].mean():.3f}  {rows['metric'].mean():6.1%}" if len(rows) else "-"
            cells.append(f"   {found:<22}")
            tokens = f"{rows['tokens'].iloc[0]:.0f}" if len(rows) else tokens
        print(f"  {size:>2.0f} px {tokens:>7}" + "".join(cells))
    paragraphs = [" ".join(lede(curves, "loss"))]
    paragraphs += [f"{label}: {sentence}" for label, sentence in law_sentences(curves, "loss")]
    paragraphs += [f"not fitted: {refused.reason}" for refused in fits.refused]
    for paragraph in paragraphs:
        print("\n" + textwrap.fill(paragraph, width=90))
    done = int((runs["status"] == "done").sum())
    print(f"\n{done} runs in {minutes:.1f} min. Curves, intervals and every run are in the report:")
    print(f"  {report.resolve()}")
