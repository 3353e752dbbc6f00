"""The page of a schedule of patch sizes: one HTML file that opens offline, in words and tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from patchscale.files import write_text
from patchscale.planner.compute_curve import ComputeCurve
from patchscale.planner.schedule import Schedule
from patchscale.reports.page import data_uri, render_page, tied
from patchscale.reports.plan_page import provenance_facts
from patchscale.reports.tables import Cell, Table

STAGES = "In this order. The value is that of the law of the stage’s own patch size, from its start to its end."
CURVES = (
    "The law of each patch size, value = a (C + d)^-b + c in training FLOPs C, fitted to its checkpoints: c is what "
    "no training removes. The patch size that lowers the value most per FLOP is the one to train with."
)


def write_schedule_page(
    schedule: Schedule, curves: Sequence[ComputeCurve], path: Path | str, *, provenance: Mapping[str, Any] | None = None
) -> Path:
    """Write the page of `schedule`, planned with `curves`; returns `path`. Written whole or not at all."""
    tables = [
        ("stages", "Stages", STAGES, schedule.frame()),
        ("curves", "Curves", CURVES, pd.DataFrame([vars(curve) for curve in curves])),
    ]
    text = render_page(
        "schedule.html",
        title=f"Patch sizes coarse to fine within {schedule.flops:.3g} FLOPs",
        lede=tied(str(schedule)),
        tables=[(*told, _table(rows), data_uri(rows.to_csv(index=False), "text/csv")) for *told, rows in tables],
        provenance=provenance_facts(provenance or {}),
    )
    path = Path(path)
    write_text(path, text)
    return path


def _table(rows: pd.DataFrame) -> Table:
    headings = tuple((str(name).replace("_", " "), "number") for name in rows.columns)
    return Table(headings, tuple(tuple(Cell(f"{value:.4g}") for value in row) for row in rows.to_numpy(float)))
