"""`patchscale eval`: a trained run on one of its splits."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    run_dir: Annotated[Path, typer.Argument(help="Directory of a finished run.", show_default=False)],
    split: Annotated[str, typer.Option(help="val or test.")] = "test",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Evaluate the final weights of a run; print loss and metric (fractions in [0, 1])."""
    from patchscale.errors import UserError

    if split not in ("val", "test"):
        raise UserError(f"--split {split!r}: choose val or test")

    from patchscale.requirements import require_training_half

    require_training_half()

    from patchscale.cli.output import print_json, print_table
    from patchscale.runs.record import RunDirectory
    from patchscale.training.device import resolve_device
    from patchscale.training.evaluate import evaluate as evaluate_task
    from patchscale.training.evaluate import load_trained
    from patchscale.training.summary import memory_of_last_attempt

    run = RunDirectory(run_dir)
    config = run.config()
    where = resolve_device(device)
    task, splits = load_trained(run)
    memory = memory_of_last_attempt(run, where) or {}  # what fitted; on another kind of device it says nothing
    dataset = splits.val if split == "val" else splits.test
    measured = evaluate_task(
        task.to(where),
        dataset,
        batch_size=memory.get("micro_batch_size", config.training.batch_size),
        device=where,
        precision=config.training.precision,
        num_workers=config.execution.num_workers,
    )
    row = {
        "run_id": config.run_id,
        "split": split,
        "images": len(dataset),
        "metric_name": task.metric_name,
        "metric": measured.pop("metric"),
        "loss": measured.pop("loss"),
        **measured,
        "eval_protocol": task.eval_protocol,
    }
    if json:
        print_json(row)
    else:
        print_table([{"name": name, "value": value} for name, value in row.items()])
