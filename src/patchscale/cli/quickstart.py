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

    done = runs[runs["status"] == "done"]
    models = list(dict.fromkeys(done["model"]))
    print("\nTest loss and mean IoU, from coarse to fine cuts:\n")
    print("  patch  tokens" + "".join(f"   {model:<17}" for model in models))
    for size, rows in sorted(done.groupby("patch_size"), reverse=True):
        cells = []
        for model in models:
            of_model = rows[rows["model"] == model]
            found = f"{of_model['test_loss'].mean():.3f}  {of_model['metric'].mean():6.1%}" if len(of_model) else "-"
            cells.append(f"   {found:<17}")
        print(f"  {size:>2.0f} px {rows['tokens'].iloc[0]:>7.0f}" + "".join(cells))
    curves = collect_curves(runs, fits)
    paragraphs = [" ".join(lede(curves, "loss"))]
    paragraphs += [f"{label}: {sentence}" for label, sentence in law_sentences(curves, "loss")]
    paragraphs += [f"not fitted: {refused.reason}" for refused in fits.refused]
    for paragraph in paragraphs:
        print("\n" + textwrap.fill(paragraph, width=90))
    print(f"\n{len(done)} runs in {minutes:.1f} min. Curves, intervals and every run are in the report:")
    print(f"  {report.resolve()}")
