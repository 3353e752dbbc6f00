"""`patchscale fit --compare`: which law describes the rows, and which foretells them."""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from patchscale.laws.compare import Comparison


def compare(table: "pd.DataFrame", forms: str, options: dict[str, Any], *, json: bool) -> None:
    """Compare the laws named in `forms` (semicolons between; empty: those the table has columns for), and print."""
    from patchscale.cli.output import print_json
    from patchscale.laws.compare import compare_laws

    found = compare_laws(table, forms=[name.strip() for name in forms.split(";") if name.strip()], **options)
    print_json(found.to_dict()) if json else _print(found)


def _print(found: "Comparison") -> None:
    from patchscale.cli.output import print_table

    print(found)
    unit = found.unit.strip() or "loss"
    ends = found.holdouts[found.holdouts["side"] == "end"].drop_duplicates("column")
    rows = []
    for row in found.frame().to_dict("records"):
        line = {
            "form": row["form"],
            "parameters": row["parameters"] or None,
            "AICc": _number(row["aicc"], ".1f"),
            "behind": _number(row["behind"], ".1f"),
            f"RMSE ({unit})": _number(row["rmse"], ".3g"),
            "inside levels": _number(row["inside"], ".3g"),
        }
        for column, value in zip(ends["column"], ends["value"], strict=True):
            line[f"{column} {value:.4g}"] = _number(row[f"{column}_end"], ".3g")
        rows.append(line)
    print_table(rows)
    for one in found.refused:
        print(f"not compared: {one.reason}")


def _number(value: float, form: str) -> str:
    return "-" if not math.isfinite(value) else format(value, form)
