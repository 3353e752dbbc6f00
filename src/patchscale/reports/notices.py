"""What a reader must know before trusting the figures: broken trends, missing runs, rows left out, laws not fitted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from patchscale.laws.protocols import difference, unlike
from patchscale.reports.answer import farthest_from_law, quantity_name, seeds_spread, show
from patchscale.reports.curves import Curve, TargetName, why_not_fitted
from patchscale.reports.words import listed, missing, plain, plural

MAX_ITEMS = 12
"""Longer lists end in a count; the table of runs has them all."""


@dataclass(frozen=True)
class Notice:
    """A short heading and what is behind it."""

    heading: str
    items: tuple[str, ...]
    remark: str = ""


def notices(runs: pd.DataFrame, curves: Sequence[Curve], target: TargetName) -> list[Notice]:
    """Every notice that applies, gravest first."""
    found = [
        _unlike_protocols(curves),
        _failed_checks(curves, target),
        _broken_trends(curves, target),
        _off_the_law(curves, target),
        _missing_runs(runs),
        _left_out(curves, target),
        _not_fitted(curves, target),
        _notice("Known limits of this table", runs.attrs.get("confounds", [])),
    ]
    return [notice for notice in found if notice is not None]


def _unlike_protocols(curves: Sequence[Curve]) -> Notice | None:
    found = [(curve, unlike(curve.runs)) for curve in curves]
    items = [f"{curve.label}: {difference(curve.runs, columns)}" for curve, columns in found if columns]
    what = "settings" if all(columns in ([], ["settings"]) for _, columns in found) else "protocols"
    remark = (
        "Runs that were measured differently, or trained longer or with other settings, are drawn as one curve because "
        "it was asked for."
    )
    return _notice(f"Unlike {what} on one curve", items, remark)


def _failed_checks(curves: Sequence[Curve], target: TargetName) -> Notice | None:
    items = [
        f"{curve.label}: {check.message}"
        for curve in curves
        if target in curve.fits
        for check in curve.fits[target].checks
        if check.state == "fail"
    ]
    return _notice("Laws that must not be used", items, "A check of these laws failed.")


def _broken_trends(curves: Sequence[Curve], target: TargetName) -> Notice | None:
    items = []
    quantity = quantity_name(target, curves)
    for curve in curves:
        means = curve.means(target)
        for large, small in curve.rises(target):
            spread = max(seeds_spread(curve, target, size) for size in (large, small))
            noise = ""
            if spread:
                inside = means[small] - means[large] <= spread
                noise = f", a difference {'within' if inside else 'larger than'} the spread of the seeds"
            items.append(
                f"{curve.label}: {quantity} at {small} px is {show(means[small], target)}, at {large} px "
                f"{show(means[large], target)}{noise}"
            )
    return _notice(
        "Patch sizes that break the trend",
        items,
        "At these sizes a finer patch did worse than the next larger one. They have a ring in the figures and stay in "
        "the fits; more seeds or longer training would tell chance from cause.",
    )


def _off_the_law(curves: Sequence[Curve], target: TargetName) -> Notice | None:
    items = []
    for curve in curves:
        fit = curve.fits.get(target)
        misfit = [check for check in fit.checks if check.code == "lack-of-fit" and check.state == "warn"] if fit else []
        if fit is not None and misfit:
            size, miss = farthest_from_law(fit)
            where = f"farthest off is patch {size:g} px, {abs(100 * miss):.1f} % {'above' if miss > 0 else 'below'} it"
            items.append(f"{curve.label}: {misfit[0].message}; {where}")
    return _notice("Curves that do not follow their law", items)


def _missing_runs(runs: pd.DataFrame) -> Notice | None:
    if "status" not in runs:
        return None
    lost = runs[runs["status"].notna() & (runs["status"] != "done")]
    counts = lost["status"].value_counts(sort=False)
    heading = f"{len(lost)} of {plural(len(runs), 'run')} without a result: " + listed(
        [f"{count} {status}" for status, count in counts.items()]
    )
    return _notice(heading, [_describe(row) for row in lost.to_dict("records")], "They are in the table of runs only.")


def _describe(row: dict[Any, Any]) -> str:
    names = [plain(row["model"])] if not missing(row.get("model")) else [plain(row.get("run_id"))]
    for name, form in (("img_size", "{} px"), ("patch_size", "patch {}"), ("seed", "seed {}")):
        if not missing(row.get(name)):
            names.append(form.format(plain(row[name])))
    text = f"{', '.join(names)}: {row['status']}"
    if not missing(row.get("failure_kind")):
        text += f" ({row['failure_kind']})"
    return text if missing(row.get("message")) else f"{text}: {row['message']}"


def _left_out(curves: Sequence[Curve], target: TargetName) -> Notice | None:
    """Finished rows that the fitter dropped; those of unfinished runs have a notice of their own."""
    items = []
    for curve in curves:
        fit = curve.fits.get(target)
        dropped = fit.dropped if fit is not None else pd.DataFrame()
        if len(dropped) and "status" in dropped:
            dropped = dropped[dropped["status"].isna() | (dropped["status"] == "done")]
        if len(dropped):
            for reason, rows in dropped.groupby("reason", sort=False):
                sizes = listed([plain(size) for size in sorted(rows["patch_size"].dropna().unique(), reverse=True)])
                where = f" at patch {sizes}" if sizes else ""
                items.append(f"{curve.label}: {plural(len(rows), 'row')}{where} left out, {reason}")
    return _notice("Rows left out of the fits", items)


def _not_fitted(curves: Sequence[Curve], target: TargetName) -> Notice | None:
    items = [
        f"{curve.label}: {why_not_fitted(curve, target)}"
        for curve in curves
        if target not in curve.fits and len(curve.means(target))
    ]
    return _notice("Curves without a law", items, "Their points are drawn and joined by straight lines.")


def _notice(heading: str, items: Sequence[str], remark: str = "") -> Notice | None:
    if not items:
        return None
    more = (f"and {len(items) - MAX_ITEMS} more",) if len(items) > MAX_ITEMS else ()
    return Notice(heading, (*items[:MAX_ITEMS], *more), remark)
