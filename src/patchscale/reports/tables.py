"""The report's tables, as headings and cells of plain text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from patchscale.reports import words
from patchscale.reports.answer import change, farthest_from_law, last_step, next_size, predicted_step, show, verdict
from patchscale.reports.chart import Chart
from patchscale.reports.curves import Curve, TargetName
from patchscale.reports.words import missing, plain

if TYPE_CHECKING:
    from patchscale.laws.fit import Fit

EMPTY = "–"


@dataclass(frozen=True)
class Cell:
    """One cell: what it says, a second quieter line, a class for its look, and a longer text for the pointer."""

    text: str
    note: str = ""
    look: str = ""
    title: str = ""


@dataclass(frozen=True)
class Table:
    """Headings with their look ("number" aligns right), and rows of cells; the first cell of a row is its heading."""

    headings: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]


STATES = {"ok": "✓", "warn": "!", "fail": "✕", "n/a": "–"}

CHECK_QUESTIONS = {
    "trend": "Does every finer patch help?",
    "mixed": "Does nothing but the patch size vary along the curve?",
    "levels": "Are there enough patch sizes?",
    "dof": "Are there enough runs for the number of parameters?",
    "weak-exponent": "Do the data bound the exponent?",
    "at-bound": "Are all parameters inside the range that was searched?",
    "conditioning": "Can the parameters be told apart?",
    "starts": "Do searches from different starts agree?",
    "replicates": "Are there several seeds, so that noise is measured?",
    "lack-of-fit": "Does the law follow the data as closely as the seeds agree?",
    "residual-runs": "Are the residuals free of a pattern?",
    "holdout": "Is the finest patch predicted from the others?",
    "extrapolation": "Which range was measured?",
}

# column of the runs table -> heading, and how a value is written
RUN_COLUMNS: dict[str, tuple[str, Any]] = {
    "model": ("model", plain),
    "head": ("head", plain),
    "img_size": ("image, px", plain),
    "patch_size": ("patch, px", plain),
    "tokens": ("tokens", words.integer),
    "seed": ("seed", plain),
    "status": ("status", plain),
    "test_loss": ("test loss", words.number),
    "metric": ("metric", lambda value: words.percent(value, 2)),
    "metric_name": ("metric name", plain),
    "train_loss": ("train loss", words.number),
    "val_loss": ("val. loss", words.number),
    "params_total": ("parameters", words.integer),
    "params_backbone": ("N (backbone)", words.integer),
    "flops_forward_per_image": ("FLOPs per image", words.scientific),
    "flops_train_total": ("training FLOPs", words.scientific),
    "epochs": ("epochs", plain),
    "steps": ("steps", words.integer),
    "images_seen": ("images seen", words.integer),
    "train_images": ("training images", words.integer),
    "test_images": ("test images", words.integer),
    "wall_time_s": ("wall time", words.duration),
    "peak_memory_bytes": ("peak memory", words.size_bytes),
    "study": ("study", plain),
    "task": ("task", plain),
    "dataset": ("data set", plain),
    "panel": ("panel", plain),
    "device": ("device", plain),
    "ssd_backend": ("scan", plain),
    "pos_embed": ("positions", plain),
    "recipe": ("recipe", plain),
    "eval_protocol": ("evaluation", plain),
    "failure_kind": ("failure", plain),
    "message": ("message", plain),
    "source": ("source", plain),
    "run_id": ("run", plain),
}
ALWAYS_SHOWN = ("model", "patch_size", "test_loss", "metric", "status", "failure_kind", "message", "run_id")
NUMBER_COLUMNS = (
    "img_size", "patch_size", "tokens", "seed", "test_loss", "metric", "train_loss", "val_loss", "params_total",
    "params_backbone", "flops_forward_per_image", "flops_train_total", "epochs", "steps", "images_seen", "train_images",
    "test_images", "wall_time_s", "peak_memory_bytes",
)  # fmt: skip


def answer_table(curves: Sequence[Curve], target: TargetName, quantity: str) -> Table:
    """What finer patches bought and would buy, a row per curve."""
    rows = []
    for curve in curves:
        means = curve.means(target)
        if not len(means):
            continue
        fit = curve.fits.get(target)
        rows.append((Cell(curve.label), *_measured_cells(curve, target), *_law_cells(curve, fit, target)))
    headings = (
        ("curve", ""),
        (f"{quantity}, measured", "number"),
        ("last measured step", "number"),
        ("next finer patch, predicted", "number"),
        ("floor E", "number"),
        ("the law is", ""),
    )
    return Table(headings, tuple(rows))


def _measured_cells(curve: Curve, target: TargetName) -> tuple[Cell, Cell]:
    means = curve.means(target)
    first, last = means.iloc[0], means.iloc[-1]
    sizes = f"{int(means.index[0])} px" + (f" → {int(means.index[-1])} px" if len(means) > 1 else "")
    course = show(first, target) + (f" → {show(last, target)}" if len(means) > 1 else "")
    step = last_step(curve, target)
    if step is None:
        return Cell(course, sizes), Cell(EMPTY)
    look = "bad" if step.after > step.before else ""
    return Cell(course, sizes), Cell(change(step.before, step.after, target), f"{step.large} → {step.small} px", look)


def _law_cells(curve: Curve, fit: "Fit | None", target: TargetName) -> tuple[Cell, ...]:
    if fit is None:
        return Cell(EMPTY), Cell(EMPTY), Cell("not fitted", look="muted")
    word = verdict(fit)
    step = predicted_step(curve, fit, target)
    if step is None:
        reason = "1 px is the end" if next_size(curve, target) is None and curve.means(target).index[-1] == 1 else ""
        following = Cell(EMPTY, reason)
    else:
        table = fit.predict([float(step.small)])
        interval = f"[{show(table['low'].iloc[0], target)}, {show(table['high'].iloc[0], target)}]"
        following = Cell(
            f"{show(step.after, target)} ({change(step.before, step.after, target)})",
            f"{interval} at {step.small} px",
        )
    floor = fit.parameters.get("E")
    floor_cell = Cell(EMPTY)
    if floor is not None:
        floor_cell = Cell(show(floor.value, target), f"[{show(floor.low, target)}, {show(floor.high, target)}]")
    return following, floor_cell, Cell(word, look=f"verdict {word}")


def parameter_table(curves: Sequence[Curve], target: TargetName) -> Table:
    """Parameters with their intervals, a row per curve."""
    fits = [(curve, curve.fits[target]) for curve in curves if target in curve.fits]
    names = list(dict.fromkeys(name for _, fit in fits for name in fit.parameters))
    rows = []
    for curve, fit in fits:
        cells = [
            Cell(words.number(estimate.value, 3), _interval_text(estimate))
            for estimate in (fit.parameters[name] for name in names)
        ]
        size, miss = farthest_from_law(fit)
        farthest = Cell(f"{100 * miss:+.2f} %".replace("-", "−"), f"at {size:g} px")
        rows.append((Cell(curve.label), *cells, Cell(str(len(fit.rows))), Cell(str(fit.dof)), farthest))
    headings = (
        ("curve", ""),
        *((_greek(name), "number") for name in names),
        ("runs fitted", "number"),
        ("degrees of freedom", "number"),
        ("farthest from the law", "number"),
    )
    return Table(headings, tuple(rows))


def _interval_text(estimate: Any) -> str:
    """An open end shows how far it was sought."""
    low, high = estimate.interval.searched
    left = f"<{words.number(low, 3)}" if estimate.low_open else words.number(estimate.low, 3)
    right = f">{words.number(high, 3)}" if estimate.high_open else words.number(estimate.high, 3)
    return f"[{left}, {right}]"


def holdout_table(curves: Sequence[Curve], target: TargetName) -> Table | None:
    """The finest patch predicted from the others; None if no law was tested in this way."""
    rows = []
    for curve in curves:
        fit = curve.fits.get(target)
        held = fit.holdout if fit is not None else None
        if held is None:
            continue
        inside = held.low <= held.measured <= held.high
        closer = abs(held.predicted - held.measured) <= abs(held.carried_forward - held.measured)
        found = "hit" if inside and closer else "inside, but no better than no law" if inside else "missed"
        rows.append(
            (
                Cell(curve.label),
                Cell(f"{held.patch_size:g} px"),
                Cell(show(held.predicted, target), f"[{show(held.low, target)}, {show(held.high, target)}]"),
                Cell(show(held.measured, target)),
                Cell(show(held.carried_forward, target)),
                Cell(found, look="" if inside and closer else "bad"),
            )
        )
    headings = (
        ("curve", ""),
        ("left out", "number"),
        ("predicted", "number"),
        ("measured", "number"),
        ("without a law", "number"),
        ("outcome", ""),
    )
    return Table(headings, tuple(rows)) if rows else None


def check_table(curves: Sequence[Curve], target: TargetName) -> Table | None:
    """The state of every named check (down) for every curve (across); None without laws."""
    fits = [(curve, curve.fits[target]) for curve in curves if target in curve.fits]
    if not fits:
        return None
    codes = list(dict.fromkeys(check.code for _, fit in fits for check in fit.checks))
    rows = []
    for code in codes:
        cells = []
        for curve, fit in fits:
            found = next((check for check in fit.checks if check.code == code), None)
            state = found.state if found else "n/a"
            look = {"n/a": "state none"}.get(state, f"state {state}")
            cells.append(
                Cell(
                    STATES.get(state, state),
                    look=look,
                    title=f"{curve.label}: {state}. {found.message}" if found else "",
                )
            )
        rows.append((Cell(CHECK_QUESTIONS.get(code, code), code), *cells))
    return Table((("check", ""), *((curve.label, "center") for curve, _ in fits)), tuple(rows))


def runs_table(runs: pd.DataFrame) -> tuple[Table, list[tuple[str, str]]]:
    """All rows, finished or not, with the columns in which they differ; and what is the same wherever it is known."""
    present = [name for name in RUN_COLUMNS if name in runs and not all(missing(cell) for cell in runs[name])]
    same, shown = [], []
    for name in present:
        heading, write = RUN_COLUMNS[name]
        texts = {write(cell) for cell in runs[name] if not missing(cell)}
        if len(texts) == 1 and len(runs) > 1 and name not in ALWAYS_SHOWN:
            same.append((heading, texts.pop()))
        else:
            shown.append(name)
    rows = []
    for record in _in_order(runs).to_dict("records"):
        cells = [Cell(RUN_COLUMNS[name][1](record[name]), look=_run_look(name, record[name])) for name in shown]
        rows.append(tuple(cells))
    headings = tuple((RUN_COLUMNS[name][0], "number" if name in NUMBER_COLUMNS else "") for name in shown)
    return Table(headings, tuple(rows)), same


def _in_order(runs: pd.DataFrame) -> pd.DataFrame:
    """Curve by curve as they appear, from the coarsest patch to the finest, by seed."""
    keys = pd.DataFrame(index=runs.index)
    for name in ("study", "task", "dataset", "panel", "model", "head", "img_size"):
        if name in runs:
            keys[name] = pd.factorize(runs[name].map(plain))[0]
    for name, sign in (("patch_size", -1), ("seed", 1)):
        if name in runs:
            keys[name] = sign * pd.to_numeric(runs[name], errors="coerce").astype(float)
    if keys.columns.empty:
        return runs
    return runs.iloc[keys.reset_index(drop=True).sort_values(list(keys.columns), kind="stable").index]


def _run_look(name: str, value: Any) -> str:
    if name == "status":
        return "" if value == "done" else "bad"
    return "long" if name in ("message", "source", "eval_protocol") else ""


def numbers_table(chart: Chart) -> Table:
    """The runs of a chart as numbers."""
    frame = chart.frame()
    frame = frame[frame["kind"] == "run"]
    tokens = "tokens" in frame and bool(frame["tokens"].notna().any())
    seeds = "seed" in frame and bool(frame["seed"].notna().any())
    price = chart.x.column if chart.x.column != "patch_size" else None
    headings = [("curve", ""), ("patch, px", "number")]
    headings += [("tokens", "number")] * tokens + [("seed", "number")] * seeds
    headings += [(RUN_COLUMNS[price][0], "number")] if price else []
    headings += [(chart.y.label, "number")]
    rows = []
    for row in frame.to_dict("records"):
        cells = [Cell(row["series"]), Cell(plain(row["patch_size"]))]
        cells += [Cell(words.integer(row["tokens"]))] if tokens else []
        cells += [Cell(plain(row["seed"]))] if seeds else []
        cells += [Cell(RUN_COLUMNS[price][1](row[price]))] if price else []
        value = row[chart.y.column]
        cells += [Cell(words.percent(value, 2) if chart.y.percent else words.number(value))]
        rows.append(tuple(cells))
    return Table(tuple(headings), tuple(rows))


def _greek(name: str) -> str:
    return {"alpha": "α", "beta": "β", "gamma": "γ"}.get(name, name)
