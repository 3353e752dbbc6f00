"""The report: one HTML file that holds everything, opens offline, runs no script and asks no network."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup, escape

from patchscale import __version__
from patchscale.files import write_text
from patchscale.reports import tables
from patchscale.reports.answer import MEANINGS, law_sentences, lede, quantity_name, verdict
from patchscale.reports.chart import Chart
from patchscale.reports.curves import Curve, TargetName, collect_curves, finished
from patchscale.reports.decoders import decoder_charts
from patchscale.reports.figures import charts_of, main_target
from patchscale.reports.notices import notices
from patchscale.reports.page import data_uri, render_page, tied
from patchscale.reports.words import missing, number, plain, plural

if TYPE_CHECKING:
    from patchscale.laws.fit import Fit


def write_report(
    runs: pd.DataFrame,
    fits: "Sequence[Fit]",
    path: Path | str,
    *,
    title: str,
    provenance: Mapping[str, Any] | None = None,
    target: TargetName | None = None,
    by: Sequence[str] | None = None,
    mix_protocols: bool = False,
) -> Path:
    """Write the report on `runs` (one row per run, finished or not) and the laws fitted to them; returns `path`.

    `fits` may be empty: the report then says why each curve has no law. `provenance` adds named facts (source, command)
    to what the table itself tells. `target` is what the report is about, by default what the laws describe; `by` tells
    curves apart as in `fit_curves`. The file is written whole or not at all. Raises `UnlikeProtocols` for a curve whose
    runs were measured differently or trained longer than others, unless `mix_protocols`: a notice then names them.
    """
    path = Path(path)
    text = render_report(
        runs, fits, title=title, provenance=provenance, target=target, by=by, mix_protocols=mix_protocols
    )
    write_text(path, text)
    return path


def render_report(
    runs: pd.DataFrame,
    fits: "Sequence[Fit]",
    *,
    title: str,
    provenance: Mapping[str, Any] | None = None,
    target: TargetName | None = None,
    by: Sequence[str] | None = None,
    mix_protocols: bool = False,
) -> str:
    """The text of the report; see `write_report`."""
    target = target or main_target(runs, fits)
    curves = collect_curves(runs, fits, by=by, mix_protocols=mix_protocols)
    charts = [*charts_of(curves, target), *decoder_charts(runs)]
    all_runs, same = tables.runs_table(runs)
    laws = [curve for curve in curves if target in curve.fits]
    quantity = quantity_name(target, curves)
    return render_page(
        "template.html",
        title=title,
        lede=tied(" ".join(lede(curves, target))),
        law_sentences=[(label, tied(sentence)) for label, sentence in law_sentences(curves, target)],
        facts=_facts(runs, curves, target),
        answer=tables.answer_table(curves, target, quantity),
        meanings={
            word: text for word, text in MEANINGS.items() if any(verdict(curve.fits[target]) == word for curve in laws)
        },
        notices=notices(runs, curves, target),
        figures=[_figure(index, chart) for index, chart in enumerate(charts, start=1)],
        missing_figures=_missing_figures(charts),
        quantity=quantity,
        formula=formula_html(laws[0].fits[target].formula) if laws else None,
        parameter_meanings=_parameter_meanings(laws[0].fits[target]) if laws else [],
        parameters=tables.parameter_table(laws, target) if laws else None,
        in_words=[_in_words(curve, target) for curve in laws],
        level=f"{100 * laws[0].fits[target].level:g} %" if laws else None,
        holdout=tables.holdout_table(curves, target),
        checks=tables.check_table(curves, target),
        runs=all_runs,
        same=same,
        csv=data_uri(runs_csv(runs), "text/csv"),
        fit_conventions=laws[0].fits[target].conventions if laws else {},
        provenance=_provenance(runs, provenance or {}),
    )


def runs_csv(runs: pd.DataFrame) -> str:
    """All columns of the table in plain units, but for the place on this machine."""
    table = runs.drop(columns="path", errors="ignore")
    nested = table.map(lambda cell: json.dumps(cell, sort_keys=True) if isinstance(cell, dict | list) else cell)
    return nested.to_csv(index=False)


def formula_html(formula: str) -> Markup:
    """A law's formula with its powers raised."""
    text = str(escape(formula)).replace(" * ", " · ")
    for name, letter in {"alpha": "α", "beta": "β", "gamma": "γ"}.items():
        text = re.sub(rf"\b{name}\b", letter, text)
    text = re.sub(r"\^([\w.−-]+)", r"<sup>\1</sup>", text)
    return Markup(re.sub(r"\b([A-Za-z])\b(?![^<]*>)", r"<i>\1</i>", text))


def _facts(runs: pd.DataFrame, curves: Sequence[Curve], target: TargetName) -> list[tuple[str, str]]:
    """The few numbers that say what this report rests on."""
    done = finished(runs)
    facts = [("finished", f"{len(done)} of {plural(len(runs), 'run')}"), ("compared", plural(len(curves), "curve"))]
    sizes = sorted({int(size) for size in done["patch_size"]}, reverse=True) if len(done) else []
    if sizes:
        span = f"{sizes[0]} to {sizes[-1]} px" if len(sizes) > 1 else f"{sizes[0]} px"
        facts.append((plural(len(sizes), "patch size"), span))
    seeds = done["seed"].nunique() if "seed" in done else 0
    if seeds:
        facts.append(("seeds", str(seeds)))
    tokens = done["tokens"].dropna() if "tokens" in done else pd.Series(dtype=float)
    if len(tokens):
        facts.append(("tokens per image", f"{int(min(tokens)):,} to {int(max(tokens)):,}".replace(",", "\u202f")))
    laws = sum(target in curve.fits for curve in curves)
    facts.append(("laws", str(laws) if laws else "none"))
    return facts


def _figure(index: int, chart: Chart) -> dict[str, Any]:
    return {
        "id": f"figure-{index}",
        "title": f"Figure {index}. {chart.title}",
        "caption": chart.caption,
        "svg": Markup(chart.svg(inline=True, prefix=f"f{index}")),
        "numbers": tables.numbers_table(chart),
        "csv": data_uri(chart.frame().to_csv(index=False), "text/csv"),
        "file": f"{chart.name}.csv",
    }


def _missing_figures(charts: Sequence[Chart]) -> list[str]:
    names = " ".join(chart.name for chart in charts)
    reasons = {
        "loss-by-patch-size": "no row has a test loss, so it is not drawn against the patch size",
        "metric-by-patch-size": "no row has a metric, so it is not drawn against the patch size",
        "by-price": "no row has training FLOPs or a wall time, so the price of finer patches is not drawn",
    }
    return [reason for name, reason in reasons.items() if name not in names]


def _parameter_meanings(fit: "Fit") -> list[tuple[str, str]]:
    return [(str(row["parameter"]), str(row["meaning"])) for row in fit.frame().to_dict("records")]


def _in_words(curve: Curve, target: TargetName) -> dict[str, Any]:
    fit = curve.fits[target]
    formula = fit.formula
    for name, estimate in fit.parameters.items():
        formula = re.sub(rf"\b{name}\b", number(estimate.value, 3), formula)
    sentence = str(fit).removeprefix(f"{fit.label}: ")
    return {
        "label": curve.label,
        "verdict": verdict(fit),
        "formula": formula_html(formula),
        "sentence": tied(sentence[:1].upper() + sentence[1:]),
        "checks": [(check.code, check.state, check.message) for check in fit.checks],
        "summary": _count_states([check.state for check in fit.checks]),
    }


def _count_states(states: Sequence[str]) -> str:
    words = {"fail": "failed", "warn": "with a warning", "ok": "passed", "n/a": "not applicable"}
    parts = [f"{states.count(state)} {word}" for state, word in words.items() if state in states]
    return f"{plural(len(states), 'check')}: {', '.join(parts)}"


def _provenance(runs: pd.DataFrame, given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the numbers come from: what was given, then what the table itself records."""
    facts = {"report written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), **given}
    for name, words in (("study", "study"), ("recipe", "recipe"), ("device", "device"), ("ssd_backend", "scan")):
        if name in runs and runs[name].notna().any():
            facts.setdefault(words, ", ".join(sorted({plain(value) for value in runs[name].dropna()})))
    if "versions" in runs:
        versions: dict[str, set[str]] = {}
        for record in runs["versions"]:
            for package, version in record.items() if isinstance(record, dict) else ():
                versions.setdefault(str(package), set()).add(str(version))
        if versions:
            facts["trained with"] = ", ".join(f"{name} {'/'.join(sorted(found))}" for name, found in versions.items())
    facts |= {
        name: runs.attrs[key] for name, key in (("table", "name"), ("published in", "source")) if key in runs.attrs
    }
    if "run_id" in runs:
        facts["runs"] = "named by model, patch, image size, seed and the hash of their settings; see the table of runs"
    facts["reported with"] = f"patchscale {__version__}"
    return [(name, plain(value)) for name, value in facts.items() if not missing(value)]
