"""`patchscale fit --compare`: which law describes the rows, and which foretells them."""

import math
from collections.abc import Mapping
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
    from patchscale.laws.left_out import CARRIED

    print(found)
    unit = found.unit.strip() or "loss"
    table = found.frame().to_dict("records")
    print_table(
        [
            {
                "form": row["form"],
                "parameters": row["parameters"],
                "AICc": _number(row["aicc"], ".1f"),
                "behind": _number(row["behind"], ".1f"),
                f"RMSE ({unit})": _number(row["rmse"], ".3g"),
                "inside levels": _number(row["inside"], ".3g"),
            }
            for row in table
            if row["form"] != CARRIED
        ]
    )
    if found.columns:
        print()
        print(f"Levels of each axis left out and predicted from the rest, RMSE ({unit}): those inside, and the end.")
        print_table([{"form": row["form"]} | _left_out(found, row) for row in table])
    for one in found.refused:
        print(f"not compared: {one.reason}")


def _left_out(found: "Comparison", row: Mapping[Any, Any]) -> dict[str, str]:
    """For each axis the error over its inside levels, and at the end one extrapolates to."""
    ends = found.holdouts[found.holdouts["side"] == "end"].drop_duplicates("column").set_index("column")["value"]
    line = {}
    for column in found.columns:
        line[f"{column} inside"] = _number(row[column], ".3g")
        if column in ends.index:
            line[f"{column} {ends[column]:.4g}"] = _number(row[f"{column}_end"], ".3g")
    return line


def _number(value: float, form: str) -> str:
    return "-" if not math.isfinite(value) else format(value, form)
