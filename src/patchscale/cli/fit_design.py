"""`patchscale fit --design`: which runs next, for one decision, from a priced grid of runs that could be made."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from patchscale.laws.next_runs import NextRuns
    from patchscale.laws.result import Fit

IMAGENET = 1_281_167
"""Training images of ImageNet-1k: candidates are priced for one pass where the table does not say more."""
SHOWN = 8
"""Candidates of the printed ranking."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The runs that could be made, as given on the command line."""

    models: str = ""
    img_sizes: str = ""
    patch_sizes: str = ""
    images_seen: str = ""
    device: str = ""
    fixed: tuple[str, ...] = ()
    file: str = ""
    """A CSV of candidates with a price, instead of a grid."""


def design(
    table: "pd.DataFrame",
    decisions: list[str],
    grid: Grid,
    options: dict[str, Any],
    *,
    runs: int,
    method: str,
    json: bool,
) -> None:
    """Fit one law to the table, price the grid, propose runs, and print."""
    from patchscale.cli.output import print_json
    from patchscale.laws.fit import fit_law
    from patchscale.laws.next_runs import propose_runs

    # a single curve too is fitted as the joint laws are
    fit = fit_law(table, **options, residuals="log")
    fixed = _fixed(grid)
    candidates, note = _candidates(table, grid, fixed)
    found = propose_runs(fit, candidates, decision=_decision(fit, decisions, fixed), runs=runs, method=method)
    if json:
        print_json({"design": found.to_dict(), "prices": note, "law": fit.to_dict()})
        return
    print(f"The law. {fit}")
    print()
    print(found)
    print(f"Prices: {note}.")
    _print_rows("next runs, in order", found.runs, found)
    _print_rows("candidates as the first run", found.ranking.head(SHOWN), found)


def _print_rows(title: str, rows: "pd.DataFrame", found: "NextRuns") -> None:
    from patchscale.cli.output import print_table
    from patchscale.laws.next_runs import COLUMNS, UNITS

    axes = [name for name in rows.columns if name not in (found.price, *COLUMNS)]
    unit = found.unit.strip()
    lines = [
        {
            **{name: row[name] if isinstance(row[name], str) else f"{row[name]:.4g}" for name in axes},
            UNITS.get(found.price, found.price): f"{row[found.price]:.3g}",
            "width now": f"{row['width_before']:.3g}",
            "width after": f"{row['width_after']:.3g}",
            f"narrowing per {UNITS.get(found.price, 'price').removesuffix('s')}": f"{row['narrowing_per_price']:.3g}",
            "note": "extrapolated" if row["extrapolated"] else None,
        }
        for row in rows.to_dict("records")
    ]
    print()
    print(f"{title}{f' (widths in {unit})' if unit else ''}:")
    print_table(lines)


def _fixed(grid: Grid) -> dict[str, Any]:
    from patchscale.cli.plan import _pair

    return dict(_pair("--fixed", text, "architecture=vit") for text in grid.fixed)


def _candidates(table: "pd.DataFrame", grid: Grid, fixed: dict[str, Any]) -> tuple["pd.DataFrame", str]:
    """The priced grid, and where its prices come from."""
    from patchscale.cli.lists import listed_numbers
    from patchscale.cli.plan import _img_sizes_of, _models_of, _names, _number
    from patchscale.cli.source import load_table
    from patchscale.errors import UserError
    from patchscale.planner.prices import price
    from patchscale.planner.space import Space

    if grid.file:
        return load_table(grid.file).assign(**fixed), f"as given in {grid.file}"
    models = _names(grid.models) or _models_of(table)
    if not models:
        raise UserError("the table names no built-in model; say with --models which could be run, such as vit_*")
    img_sizes = listed_numbers("--img-sizes", grid.img_sizes) if grid.img_sizes else _img_sizes_of(table)
    if not img_sizes:
        raise UserError("the table has no img_size; say with --img-sizes which could be run, such as 128,224")
    patch_sizes = listed_numbers("--patch-sizes", grid.patch_sizes) if grid.patch_sizes else _patch_sizes_of(table)
    seen = [_number("--images-seen", part) for part in _names(grid.images_seen)] or [float(_images_seen_of(table))]
    space = Space(models=models, img_sizes=img_sizes, patch_sizes=patch_sizes, images_seen=seen, fixed=fixed)
    priced = price(space, device=grid.device or None)
    images = ", ".join(f"{one:,.0f}" for one in seen)
    time = priced.attrs["time"] if grid.device else "training FLOPs; --device gives hours"
    return priced, f"{images} images seen in training; {time}"


def _patch_sizes_of(table: "pd.DataFrame") -> list[int]:
    import pandas as pd

    if "patch_size" not in table:
        return []
    return sorted({int(side) for side in pd.to_numeric(table["patch_size"], errors="coerce").dropna()})


def _images_seen_of(table: "pd.DataFrame") -> float:
    """Of every run of the table, if that is one number; else one pass over ImageNet."""
    import pandas as pd

    if "images_seen" in table:
        seen = pd.to_numeric(table["images_seen"], errors="coerce").dropna().unique()
        if len(seen) == 1:
            return float(seen[0])
    return IMAGENET


def _decision(fit: "Fit", texts: list[str], fixed: dict[str, Any]) -> "str | pd.DataFrame":
    """A parameter's name, or one or more configurations; `model` may stand for its parameters."""
    import pandas as pd

    from patchscale.cli.plan import _pair
    from patchscale.errors import UserError

    if len(texts) == 1 and "=" not in texts[0]:
        return texts[0].strip()
    rows = []
    for text in texts:
        if "=" not in text:
            raise UserError(f"--design {text!r}: a parameter cannot be compared with a configuration; give one of them")
        pairs = [_pair("--design", part, "patch_size=4,img_size=224,model=vit_base") for part in text.split(",")]
        rows.append({**fixed, **{name: _as_number(name, value) for name, value in pairs}})
    points = pd.DataFrame(rows)
    needs = {axis.column for axis in fit.problem.law.axes}
    if (
        "params_backbone" in needs
        and "params_backbone" not in points
        and {"model", "img_size", "patch_size"} <= set(points)
    ):
        points["params_backbone"] = [_params_backbone(row) for row in points.to_dict("records")]
    return points


def _params_backbone(row: Mapping[Any, Any]) -> float:
    from patchscale.planner.prices import price
    from patchscale.planner.space import Space

    space = Space(models=[row["model"]], img_sizes=[int(row["img_size"])], patch_sizes=[int(row["patch_size"])])
    return float(price(space)["params_backbone"].iloc[0])


def _as_number(name: str, value: str) -> Any:
    from patchscale.errors import UserError

    try:
        number = float(value)
    except ValueError:
        return value
    if not math.isfinite(number):
        raise UserError(f"--design {name}={value[:40]}: give a finite number")
    return number
