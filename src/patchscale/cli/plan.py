"""`patchscale plan`: the best model, image size and patch size that budgets allow, by a law fitted to a table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from patchscale.laws.result import Fit
    from patchscale.planner.plan import Plan
    from patchscale.planner.space import Space
    from patchscale.planner.vision_language import VisionLanguageSpace

ROWS = 8
"""Rows of each printed table."""


def plan(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(help="A folder of runs, `published:NAME`, or a CSV file with a row per run.")
    ] = "",
    budget: Annotated[
        list[str] | None,
        typer.Option(help="PRICE=LIMIT, may be repeated: train_gpu_hours=200, peak_memory_bytes=80GB, latency_s=10ms."),
    ] = None,
    form: Annotated[str, typer.Option(help="The law; `patchscale fit --list-forms` shows all.")] = "relative-patch",
    target: Annotated[
        str, typer.Option(help="What it describes: loss, error or logit-error. Default: what the table has.")
    ] = "",
    where: Annotated[list[str] | None, typer.Option(help="Keep rows with `column=value`; may be repeated.")] = None,
    groups: Annotated[str, typer.Option(help="Columns whose values have a floor of their own.")] = "",
    factors: Annotated[str, typer.Option(help="Columns whose values multiply the law.")] = "",
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Fit rows that differ in recipe or protocol too.")
    ] = False,
    mix_protocols: Annotated[
        bool, typer.Option("--mix-protocols", help="Fit rows of other protocols, lengths or settings too.")
    ] = False,
    model: Annotated[str, typer.Option(help="Names or patterns: vit_*. Default: the models of the table.")] = "",
    img_size: Annotated[str, typer.Option(help="Pixels: 128,224. Default: those of the table.")] = "",
    patch_size: Annotated[str, typer.Option(help="Pixels: 16,8,4. Default: all that divide the image.")] = "",
    images_seen: Annotated[str, typer.Option(help="Images of the whole training, all epochs: 1e8,3e8.")] = "",
    vlm: Annotated[
        str, typer.Option(help="Vision-language models to vary: qwen2.5-vl-7b; `patchscale vlm --list-models`.")
    ] = "",
    llm: Annotated[
        list[str] | None,
        typer.Option(help="Language model: NAME=PARAMS, such as 7B=7e9; with --vlm a NAME, such as qwen2.5-3b."),
    ] = None,
    visual_tokens: Annotated[
        str, typer.Option(help="With --llm, instead of images: 1,4,16. Default of a table with llm_params: its own.")
    ] = "",
    merge_factor: Annotated[
        str, typer.Option(help="With --llm or --vlm: patches merged s x s: 1,2. Default: as the model does, or 1.")
    ] = "",
    text_tokens: Annotated[int, typer.Option(min=0, help="With --llm or --vlm: tokens of the text.")] = 50,
    fixed: Annotated[
        list[str] | None, typer.Option(help="column=value that the law wants to know, such as a group.")
    ] = None,
    device: Annotated[str, typer.Option(help="For time: h100, a100, rtx4090, ...")] = "",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images of a training step, for its memory (64); with --vlm requests at a time (1)."),
    ] = None,
    rank_by: Annotated[str, typer.Option(help="The price that ties are ranked by. Default: the first budget.")] = "",
    schedule: Annotated[
        bool,
        typer.Option("--schedule", help="Plan patch sizes coarse to fine during training; --budget train_flops=..."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a page that opens offline, with a slider of budgets."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Plan within budgets: the best configuration with interval and ties, what binds, and what more would buy.

    Prices that can be budgeted: train_flops, train_gpu_hours, infer_flops, latency_s, peak_memory_bytes (of training),
    visual_tokens, params_total; with --vlm infer_flops, latency_s (to the first token) and peak_memory_bytes are those
    of a request, and kv_cache_bytes is known. FLOPs are 2 x MACs.
    """
    from patchscale.cli.advice import GROUPS, in_options
    from patchscale.cli.ignored import refuse_ignored, typed
    from patchscale.cli.output import print_json
    from patchscale.cli.source import load_table, select_rows
    from patchscale.errors import UserError
    from patchscale.laws.design import with_tokens
    from patchscale.laws.fit import fit_law
    from patchscale.laws.forms import law_named
    from patchscale.laws.table import require_columns, target_named
    from patchscale.planner.plan import plan as make_plan

    if not source:
        raise UserError("nothing to plan from: give a folder of runs, published:NAME, or a CSV file")
    spaces = {
        "--model": model,
        "--img-size": img_size,
        "--patch-size": patch_size,
        "--images-seen": images_seen,
        "--vlm": vlm,
        "--llm": llm,
        "--visual-tokens": visual_tokens,
        "--merge-factor": merge_factor,
        "--fixed": fixed,
    }
    laws = {"--groups": groups, "--factors": factors, "--allow-mixed": allow_mixed, "--mix-protocols": mix_protocols}
    prices = {"--device": device, "--batch-size": batch_size, "--rank-by": rank_by}
    limits = _budgets(budget or [])
    _refuse_page(report)
    table = select_rows(load_table(source), where or [])
    target = target or ("error" if "metric" in table and table["metric"].notna().any() else "loss")
    if schedule:
        others = spaces | laws | prices | typed(context, "--form", "--seed", "--text-tokens")
        refuse_ignored("--schedule follows from the checkpoints of the table alone", others)
        _schedule(table, limits, target, report, source, json=json)
        return
    # what could be built first: a mistake in it should not wait for the fit
    law = law_named(form)
    require_columns(with_tokens(table, law), law, target_named(target))
    constants: dict[str, Any] = dict(_pair("--fixed", text, "architecture=vit") for text in fixed or [])
    space: Space | VisionLanguageSpace
    if llm or vlm or any(axis.column == "llm_params" for axis in law.axes):
        refuse_ignored("requests to vision-language models are planned, no training", {"--images-seen": images_seen})
        if vlm:
            images = {"--visual-tokens": visual_tokens, "--model": model}
            refuse_ignored("--vlm names whole models, with encoder and tokens of their own", images)
        sides = {"img_size": img_size, "patch_size": patch_size, "merge_factor": merge_factor}
        if vlm:
            space = _named_vision_language(vlm, llm or [], sides, text_tokens, constants)
        else:
            space = _vision_language(table, llm or [], visual_tokens, model, sides, text_tokens, constants)
        pricing: dict[str, Any] = {"device": device or None, "batch_size": batch_size or 1}
    else:
        tokens = {"--visual-tokens": visual_tokens, "--merge-factor": merge_factor, **typed(context, "--text-tokens")}
        refuse_ignored("these options are for vision-language models, given with --vlm or --llm", tokens)
        space = _vision(table, model, img_size, patch_size, images_seen, constants)
        pricing = {"device": device or None, "batch_size": batch_size or 64}
    with in_options(GROUPS):
        fit = fit_law(
            table,
            form=form,
            target=target,
            groups=_names(groups),
            factors=_names(factors),
            allow_mixed=allow_mixed,
            mix_protocols=mix_protocols,
            seed=seed,
        )
    made = make_plan(fit, space, budgets=limits, rank_by=rank_by or None, **pricing)
    if report is not None:
        from patchscale.reports.plan_page import write_plan_page

        write_plan_page(made, report, provenance=_provenance(source))
    if json:
        page = {} if report is None else {"report": str(report)}
        print_json({"law": fit.to_dict(), "plan": made.to_dict(), **page})
    else:
        _print_plan(fit, made)
        if report is not None:
            print(f"The page: {report}")


def _refuse_page(page: Path | None) -> None:
    """Before anything is computed: `UserError` for a page that cannot be written."""
    from patchscale.errors import UserError

    if page is None:
        return
    if page.is_dir():
        raise UserError(f"--report {page}: this is a folder; give the name of a file, such as {page / 'plan.html'}")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--report {page}: {page.parent} cannot be used as a folder ({error.strerror})") from None


def _provenance(source: str) -> dict[str, str]:
    import shlex
    import sys

    return {"source": source, "command": shlex.join(["patchscale", *sys.argv[1:]])}


def _budgets(texts: list[str]) -> dict[str, float]:
    from patchscale.errors import UserError

    if not texts:
        raise UserError("no budget is given; give one or more, such as --budget train_gpu_hours=200")
    limits: dict[str, float] = {}
    for text in texts:
        name, value = _pair("--budget", text, "latency_s=10ms")
        if name in limits:
            raise UserError(f"--budget {name} is given twice; give one limit")
        limits[name] = _number("--budget", value)
        if not 0 < limits[name] < float("inf"):
            raise UserError(f"--budget {text[:60]}: the limit is not a positive number")
    return limits


def _pair(option: str, text: str, example: str) -> tuple[str, str]:
    from patchscale.errors import UserError

    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals and value):
        raise UserError(f"{option} {text!r} is not of the form name=value, such as {example}")
    return name, value


UNITS = {"ms": 1e-3, "s": 1.0, "h": 1.0, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def _number(option: str, text: str) -> float:
    """A number, with a unit of time or memory or without; hours stay hours."""
    from patchscale.errors import UserError

    unit = next((unit for unit in UNITS if text.endswith(unit)), "")
    try:
        return float(text.removesuffix(unit)) * UNITS.get(unit, 1.0)
    except ValueError:
        raise UserError(f"{option}: {text[:60]!r} is not a number such as 200, 2e21, 80GB or 10ms") from None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _vision(
    table: "pd.DataFrame", model: str, img_size: str, patch_size: str, images_seen: str, fixed: dict[str, Any]
) -> "Space":
    from patchscale.cli.lists import listed_numbers
    from patchscale.errors import UserError
    from patchscale.planner.space import Space

    models = _names(model) or _models_of(table)
    if not models:
        raise UserError("the table names no built-in model; say with --model which to plan with, such as vit_*")
    sizes = listed_numbers("--img-size", img_size) if img_size else _img_sizes_of(table)
    if not sizes:
        raise UserError("the table has no img_size; say with --img-size which to plan with, such as 128,224")
    return Space(
        models=models,
        img_sizes=sizes,
        patch_sizes=listed_numbers("--patch-size", patch_size) if patch_size else (),
        images_seen=[_number("--images-seen", part) for part in _names(images_seen)],
        fixed=fixed,
    )


def _named_vision_language(
    vlm: str, llm: list[str], sides: dict[str, str], text_tokens: int, fixed: dict[str, Any]
) -> "VisionLanguageSpace":
    from patchscale.planner.vision_language import VisionLanguageSpace

    return VisionLanguageSpace(
        models=_names(vlm), llms=[name.strip() for name in llm], text_tokens=text_tokens, fixed=fixed, **_sides(sides)
    )


def _vision_language(
    table: "pd.DataFrame",
    llm: list[str],
    visual_tokens: str,
    model: str,
    sides: dict[str, str],
    text_tokens: int,
    fixed: dict[str, Any],
) -> "VisionLanguageSpace":
    from patchscale.cli.lists import listed_numbers
    from patchscale.errors import UserError
    from patchscale.planner.vision_language import VisionLanguageSpace

    pairs = [_pair("--llm", text, "7B=7e9") for text in llm]
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise UserError(f"--llm {next(one for one in names if names.count(one) > 1)} is given twice; name each once")
    tokens = listed_numbers("--visual-tokens", visual_tokens) if visual_tokens else []
    if not (tokens or model) and "visual_tokens" in table:
        tokens = sorted({int(number) for number in table["visual_tokens"].dropna()})
    return VisionLanguageSpace(
        llms={name: _number("--llm", value) for name, value in pairs} or _llms_of(table),
        visual_tokens=tokens,
        encoders=_names(model),
        text_tokens=text_tokens,
        fixed=fixed,
        **_sides(sides),
    )


def _sides(texts: dict[str, str]) -> dict[str, Any]:
    """img_size, patch_size, merge_factor as lists, under the names that spaces have for them."""
    from patchscale.cli.lists import listed_numbers

    options = {name: "--" + name.replace("_", "-") for name in texts}
    return {f"{name}s": listed_numbers(options[name], text) if text else () for name, text in texts.items()}


def _llms_of(table: "pd.DataFrame") -> dict[str, float]:
    """Language models of the table: by the name of its model where that tells them apart, else 7B."""
    if "llm_params" not in table:
        return {}
    rows = table.dropna(subset=["llm_params"]).drop_duplicates(subset=["llm_params"])
    sizes = [float(number) for number in rows["llm_params"]]
    names = [str(name) for name in rows["model"]] if "model" in rows else []
    if len(set(names)) < len(sizes):
        names = [f"{size / 1e9:g}B" for size in sizes]
    return dict(zip(names, sizes, strict=True))


def _models_of(table: "pd.DataFrame") -> list[str]:
    """Built-in names of the table's models; DeiT-Base of the paper is deit_base."""
    from patchscale.shapes import SHAPES

    if "model" not in table:
        return []
    names = [str(name).lower().replace("-", "_") for name in table["model"].dropna().unique()]
    return [name for name in names if name in SHAPES]


def _img_sizes_of(table: "pd.DataFrame") -> list[int]:
    """Sides of the square images of the table."""
    import pandas as pd

    if "img_size" not in table:
        return []
    return sorted({int(side) for side in pd.to_numeric(table["img_size"], errors="coerce").dropna()})


def _schedule(
    table: "pd.DataFrame", limits: dict[str, float], target: str, page: Path | None, source: str, *, json: bool
) -> None:
    from patchscale.cli.output import print_json, print_table
    from patchscale.errors import UserError
    from patchscale.planner.compute_curve import fit_compute_curves
    from patchscale.planner.rows import records
    from patchscale.planner.schedule import schedule

    if list(limits) != ["train_flops"]:
        raise UserError("a schedule is planned within one budget: --budget train_flops=...")
    curves = fit_compute_curves(table, target=target)
    made = schedule(curves, flops=limits["train_flops"])
    if page is not None:
        from patchscale.reports.schedule_page import write_schedule_page

        write_schedule_page(made, curves, page, provenance=_provenance(source))
    if json:
        stages = records(made.frame())
        told = {name: value for name, value in vars(made).items() if name != "stages"}
        told |= {} if page is None else {"report": str(page)}
        print_json({"sentence": str(made), "stages": stages, "curves": [vars(c) for c in curves], **told})
        return
    print(made)
    print_table(
        [{name: f"{value:.4g}" for name, value in row.items()} for row in records(made.frame())],
        title="stages",
    )
    if page is not None:
        print(f"The page: {page}")


def _print_plan(fit: "Fit", made: "Plan") -> None:
    print(f"The law. {fit}")
    print()
    print(f"The plan. {made}")
    print()
    prices = list(dict.fromkeys([*made.budgets, made.rank_by]))
    _print_rows("tied with the best, cheapest first", made.ties, made, [*prices, "prob_best"])
    for name in made.binds:
        rows = made.frontier[made.frontier["budget"] == name]
        inside, beyond = rows[rows["within_budget"]], rows[~rows["within_budget"]]
        shown = rows.loc[[*inside.index[-ROWS // 2 :], *beyond.index[: ROWS // 2]]]
        _print_rows(f"frontier of {name}, around the budget", shown, made, [name])
    if len(made.steps):
        _print_rows("next step along each axis", made.steps, made, ["axis", "gain", "price_ratio", "exceeds"])
    for check in fit.checks:
        if check.state in ("warn", "fail"):
            print(f"{check.state}: {check.code}: {check.message}")


def _note(row: dict[str, Any]) -> str | None:
    notes = [
        *([f"outside: {row['outside']}"] if row["extrapolated"] else []),
        *(["little is known"] if row.get("poorly_known") else []),
    ]
    return "; ".join(notes) or None


def _print_rows(title: str, rows: "pd.DataFrame", made: "Plan", more: list[str]) -> None:
    from patchscale.cli.output import print_table
    from patchscale.planner.rows import records
    from patchscale.planner.words import say_price

    def say(name: str, value: Any) -> str:
        if name in made.budgets or name == made.rank_by:
            return say_price(name, value)
        if name == "gain":
            return made.quality.show_gain(value)
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [
        {
            **{name: say(name, row[name]) for name in more if name == "axis"},
            **{name: f"{row[name]:,.6g}" if not isinstance(row[name], str) else row[name] for name in made.axes},
            "predicted": made.quality.show(row["predicted"]),
            "low": made.quality.show(row["low"]),
            "high": made.quality.show(row["high"]),
            **{name: say(name, row[name]) for name in more if name != "axis"},
            "note": _note(row),
        }
        for row in records(rows.head(ROWS))
    ]
    left = f" ({ROWS} of {len(rows)})" if len(rows) > ROWS else ""
    print(f"{title}{left}:")
    print_table(lines)
    print()
