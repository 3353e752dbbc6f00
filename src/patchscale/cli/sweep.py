"""`patchscale sweep`: carry out a study, or show what it would do."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchscale.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from patchscale.costs.estimate import Cost
    from patchscale.sweeps.plan import PlannedRun
    from patchscale.sweeps.study import Study

OF_A_START = (
    *("--executor", "--workers", "--runs-per-gpu", "--budget", "--retry-failed", "--keep-going", "--wait"),
    *("--mix-code", "--early-fit", "--ray-address"),
)
"""Options without effect where nothing is started."""
PREFIXES = {"M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}


def sweep(
    context: typer.Context,
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study: a recipe and a grid.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes such as training.epochs=1, or of the grid: patch_size=[8,4] seed=[0,1]."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print every run with its cost; start nothing.")] = False,
    device: Annotated[
        str | None,
        typer.Option(
            help="With --dry-run or --budget: hours on h100, a100, ..., or a profile (patchscale cost --list-devices)."
        ),
    ] = None,
    executor: Annotated[
        str, typer.Option(help="Where runs are carried out: local, slurm or ray (docs/clusters.md).")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time. Default: one per GPU, else one per core.")
    ] = None,
    runs_per_gpu: Annotated[
        int, typer.Option(min=1, help="At most so many runs share a GPU, as their predicted memory allows.")
    ] = 1,
    budget: Annotated[
        float | None,
        typer.Option(min=0, metavar="HOURS", help="Start nothing that would exceed so many device hours in all."),
    ] = None,
    runs_root: Annotated[Path, typer.Option(help="Folder of all studies.")] = Path("runs"),
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed runs again, except those that became non-finite.")
    ] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Go on after a mistake in the configuration.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for runs of other sweeps, and take them over if those die.")
    ] = False,
    mix_code: Annotated[
        bool, typer.Option("--mix-code", help="Go on although runs of the study were made by other code.")
    ] = False,
    early_fit: Annotated[
        bool, typer.Option("--early-fit", help="Fit the law again as runs finish, at most once a minute.")
    ] = False,
    ray_address: Annotated[
        str | None, typer.Option(help="With --executor ray: the cluster's. Default: $RAY_ADDRESS, or this machine.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the runs as JSON.")] = False,
) -> None:
    """Train every combination of a study; finished runs are skipped, interrupted ones resumed.

    Ctrl-C lets the running ones save and stop; the same command goes on. FLOPs are 2 x MACs, training is forward and
    backward.
    """
    import shlex
    import sys

    from patchscale.cli.ignored import refuse_ignored, typed
    from patchscale.costs.time import find_device
    from patchscale.sweeps.study import load_study

    if dry_run:
        refuse_ignored("--dry-run starts nothing", typed(context, *OF_A_START))
    if executor != "ray":
        refuse_ignored("only --executor ray has an address", {"--ray-address": ray_address})
    if executor == "slurm":
        refuse_ignored("Slurm gives every run GPUs of its own", typed(context, "--runs-per-gpu"))
    loaded = load_study(study, overrides or [])
    _tell_what_was_left_out(loaded)
    if dry_run:
        _print_plan(loaded, runs_root, device, json=json)
        return
    if device is not None and budget is None:
        raise UserError(
            f"--device {device} prices a study: give it with --dry-run; execution.device is where runs train"
        )
    if device is not None:
        find_device(device)  # a mistake in it is said at once

    from patchscale.cli.sweep_progress import watch_sweep
    from patchscale.sweeps.runner import run_study
    from patchscale.sweeps.stop import SweepInterrupted

    with watch_sweep(fit_in=runs_root / loaded.name if early_fit else None) as watcher:
        try:
            table = run_study(
                loaded,
                runs_root,
                executor=executor,
                workers=workers,
                runs_per_gpu=runs_per_gpu,
                retry_failed=retry_failed,
                keep_going=keep_going,
                wait=wait,
                mix_code=mix_code,
                budget_hours=budget,
                device=device,
                ray_address=ray_address,
                progress=watcher,
            )
        except SweepInterrupted as stopped:
            again = shlex.join(["patchscale", *sys.argv[1:]])
            watcher.message(f"stopped; finished runs are kept, the others go on with: {again}")
            raise typer.Exit(stopped.exit_code) from None
    _print_results(table, runs_root / loaded.name, has_budget=budget is not None, json=json)
    if not table["status"].isin(["done", "running"]).all():
        raise typer.Exit(1)


def _tell_what_was_left_out(study: "Study") -> None:
    import sys

    if study.left_out:
        print(f"left out, the patch does not divide the image: {'; '.join(study.left_out)}", file=sys.stderr)
    if study.duplicates:
        print(f"{study.duplicates} combinations are the same as others and are run once", file=sys.stderr)


def _print_plan(study: "Study", runs_root: Path, device: str | None, *, json: bool) -> None:
    from patchscale.cli.measuring import say
    from patchscale.cli.output import print_json, print_table
    from patchscale.costs.estimate import CONVENTIONS
    from patchscale.reports.words import integer, size_bytes
    from patchscale.sweeps.plan import plan_study, totals
    from patchscale.sweeps.price import price

    planned = plan_study(study, runs_root)
    costs = [price(item, device) for item in planned]
    hours = [_hours(item, cost) for item, cost in zip(planned, costs, strict=True)]
    summary = totals(planned)
    if device is not None:
        to_do = [each for item, each in zip(planned, hours, strict=True) if item.state != "done"]
        summary["device_hours"], summary["device_hours_to_do"] = _sum(hours), _sum(to_do)
    if json:
        runs = [
            item.row()
            | {"memory_bytes": cost.memory.parts(), "peak_memory_bytes": cost.memory.peak_bytes}
            | {"activation_checkpointing": cost.activation_checkpointing, "device_hours": each}
            for item, cost, each in zip(planned, costs, hours, strict=True)
        ]
        left_out = list(study.left_out)
        print_json(
            {"study": study.name, "runs": runs, "totals": summary, "left_out": left_out, "conventions": CONVENTIONS}
        )
        return
    unit = _unit(max(item.flops_train_total or 0 for item in planned))
    staged = any(item.stage > 1 for item in planned)
    headed = any(item.counts.head != "linear" for item in planned)
    rows = []
    for item, cost, each in zip(planned, costs, hours, strict=True):
        row = item.row()
        blocks = " (checkpointing)" if cost.activation_checkpointing else ""
        shown = {
            "model": row["model"],
            **({"head": row["head"]} if headed else {}),
            "img_size": row["img_size"],
            "patch_size": row["patch_size"],
            "seed": row["seed"],
            **({"stage": row["stage"]} if staged else {}),
            "tokens": integer(row["tokens"]),
            "params": integer(row["params_total"]),
            "GFLOPs/image": f"{row['flops_forward_per_image'] / 1e9:.4g}",
            f"train {unit}FLOPs": _in_unit(row["flops_train_total"], unit),
            "memory": size_bytes(cost.memory.peak_bytes) + blocks,
        }
        if device is not None:
            shown["hours"] = "?" if each is None else f"{each:.3g}"
        rows.append(shown | {"state": row["state"] + (f" ({row['failure_kind']})" if row["failure_kind"] else "")})
    print_table(rows)
    states = ", ".join(f"{count} {state}" for state, count in summary["states"].items())
    say(
        f"{summary['runs']} runs ({states}); training {_in_unit(summary['flops_train_total'], unit)} {unit}FLOPs "
        f"in all, {_in_unit(summary['flops_train_to_do'], unit)} not done yet"
    )
    if device is not None:
        say(
            f"hours of one {device}: {_hours_words(summary['device_hours'])} in all, "
            f"{_hours_words(summary['device_hours_to_do'])} not done yet; training steps only"
        )
        for source in dict.fromkeys(cost.time.source for cost in costs if cost.time is not None):
            say(f"time: {source}")
    say("GFLOPs/image: one forward pass, 2 FLOPs a multiply-add; training: forward and backward x images seen")
    say("memory: tensors of a training step at its peak" + ("" if device else ", on a GPU; --device adds hours"))
    if summary["flops_train_total"] is None:
        say("?: the number of training images is unknown here; training.steps or data.train_images fixes it")
    for item in planned:
        if item.message:
            say(f"{item.state}: {item.config.run_id}: {item.message}")


def _hours(item: "PlannedRun", cost: "Cost") -> float | None:
    images = item.workload.images_seen
    return None if images is None else cost.device_hours(images)


def _sum(hours: list[float | None]) -> float | None:
    return None if None in hours else sum(each for each in hours if each is not None)


def _hours_words(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:.3g}"


def _unit(largest: int) -> str:
    """The prefix that makes the largest number at least 1; P where no number is known."""
    if not largest:
        return "P"
    return next((unit for unit in "EPTG" if largest >= PREFIXES[unit]), "M")


def _in_unit(flops: int | None, unit: str) -> str:
    return "?" if flops is None else f"{flops / PREFIXES[unit]:.4g}"


def _print_results(table: "pd.DataFrame", folder: Path, *, has_budget: bool, json: bool) -> None:
    import sys

    from patchscale.cli.output import print_json, print_table
    from patchscale.cli.runs import as_records, readable
    from patchscale.reports.words import plural

    records = as_records(table)
    if json:
        print_json(records)
    else:
        staged = "stage" in table and (table["stage"] > 1).any()
        headed = (table["head"].dropna() != "linear").any()
        names: tuple[str, ...] = ("model", *(["head"] if headed else []), "img_size", "patch_size", "tokens", "seed")
        names += ("stage",) if staged else ()
        if table.duplicated(list(names)).any():
            names = ("run_id", *names)
        names += ("status", "metric", "test_loss", "wall_time_s")
        print_table([{name: readable(name, row[name], row) for name in names} for row in records], columns=names)
    counts = table["status"].value_counts().to_dict()
    print(f"{', '.join(f'{count} {state}' for state, count in counts.items())}; in {folder}", file=sys.stderr)
    broken = [row for row in records if row["status"] in ("failed", "blocked", "unreadable")]
    for row in broken:
        kind = f" ({row['failure_kind']})" if row["failure_kind"] else ""
        print(f"{row['status']}{kind}: {row['run_id']}: {row['message']}", file=sys.stderr)
    if any(_can_be_retried(row) for row in broken):
        print("to try failed runs again: add --retry-failed", file=sys.stderr)
    if counts.get("interrupted"):
        larger = ", and a larger --budget once this one is spent" if has_budget else ""
        print(f"interrupted runs go on with the same command{larger}", file=sys.stderr)
    elsewhere = counts.get("running", 0)
    if elsewhere:
        print(f"{plural(elsewhere, 'run')} left to another process that is carrying it out", file=sys.stderr)


def _can_be_retried(row: dict[str, Any]) -> bool:
    from patchscale.sweeps.plan import NOT_RETRIED

    return row["status"] == "failed" and row["failure_kind"] not in NOT_RETRIED
