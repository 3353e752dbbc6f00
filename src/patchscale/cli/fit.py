"""`patchscale fit`: the law behind a set of runs, a published table or a CSV file."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from patchscale.laws.fit import Fit, FitList


def fit(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(help="A folder of runs, `published:NAME`, or a CSV file with a row per run.")
    ] = "",
    form: Annotated[str, typer.Option(help="The law, with options after a colon; --list-forms shows all.")] = "patch",
    target: Annotated[
        str, typer.Option(help="What it describes: loss (`test_loss`), error (1 - `metric`) or logit-error.")
    ] = "loss",
    by: Annotated[
        str,
        typer.Option(
            help="Columns, comma-separated, that split the table into fits; default: for form patch those that vary, "
            "to which `+column` adds one."
        ),
    ] = "",
    groups: Annotated[
        str, typer.Option(help="Columns whose values have a floor of their own; the exponents are shared.")
    ] = "",
    factors: Annotated[
        str, typer.Option(help="Columns whose values multiply the law by a number each; `+column` adds one.")
    ] = "",
    where: Annotated[list[str] | None, typer.Option(help="Keep rows with `column=value`; may be repeated.")] = None,
    predict: Annotated[
        str,
        typer.Option(help="Patch sizes to predict, comma-separated (default: the measured ones), or a CSV of points."),
    ] = "",
    noise: Annotated[str, typer.Option(help="Column with a known standard deviation of the target.")] = "",
    level: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.95,
    draws: Annotated[int, typer.Option(help="Bootstrap draws, where the intervals are a bootstrap's.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the starts and the draws.")] = 0,
    cluster_by: Annotated[
        str, typer.Option(help="Columns whose rows are drawn together; default: groups and curves.")
    ] = "",
    huber: Annotated[
        float, typer.Option(help="Residual beyond which a row counts linearly, such as 1e-3 for losses; 0: squares.")
    ] = 0.0,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Fit rows that differ in recipe or protocol too; a check says so.")
    ] = False,
    mix_protocols: Annotated[
        bool,
        typer.Option(
            "--mix-protocols",
            help="Fit runs of one curve together that were measured differently, or trained longer or with other "
            "settings; a check says so.",
        ),
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare laws: AICc, and levels of each axis left out and predicted.")
    ] = False,
    forms: Annotated[
        str,
        typer.Option(help="With --compare: laws, semicolons between; default: all the table has columns for."),
    ] = "",
    design: Annotated[
        list[str] | None,
        typer.Option(
            help="Propose runs that settle a parameter (a), a prediction (patch_size=4,img_size=224,model=vit_base) "
            "or, repeated, which of several such configurations is better."
        ),
    ] = None,
    models: Annotated[str, typer.Option(help="With --design: models that could be run. Default: the table's.")] = "",
    img_sizes: Annotated[str, typer.Option(help="With --design: pixels, 128,224. Default: the table's.")] = "",
    patch_sizes: Annotated[str, typer.Option(help="With --design: pixels, 8,4,2. Default: the table's.")] = "",
    images_seen: Annotated[
        str, typer.Option(help="With --design: training images. Default: the table's, or one pass over ImageNet.")
    ] = "",
    device: Annotated[str, typer.Option(help="With --design: h100, a100, ...; prices are then GPU-hours.")] = "",
    fixed: Annotated[
        list[str] | None, typer.Option(help="With --design: column=value of all candidates, such as a group.")
    ] = None,
    candidates: Annotated[
        str, typer.Option(help="With --design: a CSV of runs with axes and a price, instead of a grid.")
    ] = "",
    runs: Annotated[int, typer.Option(min=1, help="With --design: how many to propose.")] = 3,
    design_method: Annotated[
        str, typer.Option(help="With --design: draws (of the fit) or linear (Gauss-Newton).")
    ] = "draws",
    list_forms: Annotated[bool, typer.Option("--list-forms", help="Show the laws that can be fitted.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Fit a scaling law to every curve of a table, or one law to all of it: intervals, named checks, predictions.

    With --compare, which law; with --design, which runs to make next, from a grid of candidates priced in GPU-hours.
    """
    import sys

    from patchscale.cli.advice import BY, GROUPS, in_options
    from patchscale.cli.ignored import refuse_ignored, typed
    from patchscale.cli.output import print_json
    from patchscale.cli.source import load_table, select_rows
    from patchscale.errors import UserError
    from patchscale.laws.fit import fit_curves, fit_parts
    from patchscale.laws.forms import law_named
    from patchscale.laws.table import shorten

    if list_forms:
        _print_forms(json)
        return
    if not source:
        raise UserError("nothing to fit: give a folder of runs, published:NAME, or a CSV file")
    points = load_table(predict) if predict.endswith(".csv") else None
    sizes = [] if points is not None else _patch_sizes(predict)
    table = select_rows(load_table(source), where or [])
    options: dict[str, Any] = {
        "form": form,
        "target": target,
        "level": level,
        "noise": noise or None,
        "allow_mixed": allow_mixed,
        "mix_protocols": mix_protocols,
    }
    if not compare:
        refuse_ignored("forms are compared with --compare; one is named by --form", {"--forms": forms})
    if not design:
        grid_options = {
            "--models": models,
            "--img-sizes": img_sizes,
            "--patch-sizes": patch_sizes,
            "--images-seen": images_seen,
            "--device": device,
            "--fixed": fixed,
            "--candidates": candidates,
            **typed(context, "--runs", "--design-method"),
        }
        refuse_ignored("these options are of the runs that --design proposes", grid_options)
    if compare or design:
        refuse_ignored("only a fit predicts", {"--predict": predict})
        if by:
            raise UserError("--by does not go with --compare or --design: choose one part with --where")
        if compare and design:
            raise UserError("--compare and --design are two questions; ask one at a time")
        options |= {"groups": _names(groups), "factors": _names(factors), "seed": seed}
    if compare:
        from patchscale.cli.fit_compare import compare as compare_forms

        for name in ("form", "level"):
            options.pop(name)
        unused = typed(context, "--form", "--level", "--draws", "--huber", "--cluster-by")
        refuse_ignored("--compare fits every law of --forms by least squares, without intervals", unused)
        with in_options(GROUPS):
            compare_forms(table, forms, options, json=json)
        return
    if design:
        if candidates:
            grid_options = {
                "--models": models,
                "--img-sizes": img_sizes,
                "--patch-sizes": patch_sizes,
                "--images-seen": images_seen,
                "--device": device,
            }
            refuse_ignored("--candidates brings its own runs and prices", grid_options)
        from patchscale.cli.fit_design import Grid
        from patchscale.cli.fit_design import design as design_runs

        grid = Grid(
            models=models,
            img_sizes=img_sizes,
            patch_sizes=patch_sizes,
            images_seen=images_seen,
            device=device,
            fixed=tuple(fixed or ()),
            file=candidates,
        )
        options |= {"draws": draws, "huber": huber or None, "cluster_by": _names(cluster_by) or None}
        with in_options(GROUPS):
            design_runs(table, design, grid, options, runs=runs, method=design_method, json=json)
        return
    if law_named(form).one_curve and target != "logit-error" and not (groups or factors or huber):
        unused = typed(context, "--draws", "--seed", "--cluster-by")
        refuse_ignored("the intervals of a single curve are profiles, without draws", unused)
        with in_options(BY):
            fits = fit_curves(table, by=_names(by) or None, **options)
    else:
        options |= {"groups": _names(groups), "factors": _names(factors), "cluster_by": _names(cluster_by) or None}
        with in_options(f"{GROUPS} or {BY}"):
            fits = fit_parts(table, by=_names(by), draws=draws, seed=seed, huber=huber or None, **options)
    if not fits:
        raise UserError(fits.why_empty())
    if len(fits.dropped):
        reasons = shorten(fits.dropped["reason"])
        print(f"{len(fits.dropped)} of {len(table)} rows are left out: {reasons}", file=sys.stderr)
    idle = [name for name, given in typed(context, "--draws", "--cluster-by").items() if given]
    if idle and not any(one.bootstrap for one in fits):
        print(f"{' and '.join(idle)}: without effect, the intervals are profiles (few rows)", file=sys.stderr)
    if json:
        print_json(_as_json(fits, points if points is not None else sizes))
    else:
        for one in fits:
            if one.design is None and points is None:
                _print_fit(one, sizes)
            else:
                _print_joint(one, points if points is not None else sizes)
    for refused in fits.refused:
        print(f"not fitted: {refused.reason}", file=sys.stderr)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _patch_sizes(text: str) -> list[float]:
    from patchscale.errors import UserError

    try:
        sizes = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"--predict {text!r} is not a list of patch sizes such as 4,2,1") from None
    if any(not 0 < size < float("inf") for size in sizes):
        raise UserError(f"--predict {text!r}: patch sizes are positive numbers of pixels")
    return sizes


def _predictions(fit: "Fit", points: "list[float] | pd.DataFrame") -> "pd.DataFrame":
    """At the points asked for; otherwise at the measured patch sizes, or for joint laws nowhere."""
    if not isinstance(points, list) or points:
        return fit.predict(points)
    if fit.design is None:
        return fit.predict(sorted(set(fit.points()["patch_size"]), reverse=True))
    return fit.predict(fit.rows.head(0))


def _as_json(fits: "FitList", points: "list[float] | pd.DataFrame") -> dict[str, Any]:
    return {
        "fits": [{**one.to_dict(), "predictions": _predictions(one, points).to_dict("records")} for one in fits],
        "refused": [{"label": one.label, "curve": one.curve, "reason": one.reason} for one in fits.refused],
        "rows_left_out": len(fits.dropped),
    }


def _print_fit(fit: "Fit", sizes: list[float]) -> None:
    from patchscale.cli.output import print_table

    print(fit)
    measured = fit.points().groupby("patch_size")["measured"].mean()
    rows = [
        {
            "patch_size": f"{row['patch_size']:g}",
            "measured": fit.show(measured[row["patch_size"]]) if row["patch_size"] in measured.index else None,
            "predicted": fit.show(row["predicted"]),
            "low": fit.show(row["low"]),
            "high": fit.show(row["high"]),
            "note": "extrapolated" if row["extrapolated"] else None,
        }
        for row in _predictions(fit, sizes).to_dict("records")
    ]
    print_table(rows)
    for check in fit.checks:
        if check.state in ("warn", "fail"):
            print(f"{check.state}: {check.code}: {check.message}")
    print()


def _print_joint(fit: "Fit", points: "list[float] | pd.DataFrame") -> None:
    from patchscale.cli.output import print_table

    print(fit)
    print_table(
        [
            {
                "parameter": name,
                "value": f"{one.value:.3g}",
                "low": f"<{one.interval.searched[0]:.3g}" if one.low_open else f"{one.low:.3g}",
                "high": f">{one.interval.searched[1]:.3g}" if one.high_open else f"{one.high:.3g}",
                "meaning": fit.problem.law.meanings[name],
            }
            for name, one in fit.parameters.items()
        ]
    )
    predicted = _predictions(fit, points)
    if len(predicted):
        columns = fit.design.columns if fit.design else ["patch_size"]
        rows = [
            {
                **{name: f"{row[name]:g}" if isinstance(row[name], float) else row[name] for name in columns},
                **{name: fit.show(row[name]) for name in ("predicted", "low", "high")},
                "note": f"extrapolated in {row['outside'].replace(',', ', ')}" if row.get("outside") else None,
            }
            for row in predicted.to_dict("records")
        ]
        print_table(rows)
    for check in fit.checks:
        if check.state in ("warn", "fail"):
            print(f"{check.state}: {check.code}: {check.message}")
    print()


def _print_forms(as_json: bool) -> None:
    from patchscale.cli.output import print_json, print_table
    from patchscale.laws.forms import LAWS

    rows = [
        {
            "form": name,
            "formula": law.formula,
            "needs": ", ".join(
                f"{axis.min_levels} values of {axis.column}" for axis in law.axes if axis.min_levels > 1
            ),
            "source": law.source,
        }
        for name, law in LAWS.items()
    ]
    print_json(rows) if as_json else print_table(rows)
