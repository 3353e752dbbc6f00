"""`patchscale eval`: a trained run, or any file of weights, on data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchscale.errors import UserError

if TYPE_CHECKING:
    from patchscale.config import RunConfig

SPLITS = ("val", "test", "all")
NORMALISATIONS = ("imagenet", "inception")


def evaluate(
    run_dir: Annotated[str | None, typer.Argument(help="Directory of a finished run.", show_default=False)] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings such as data.name=image_folder data.root=DIR; they win over the run's."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File of weights instead: .pth, .pt or .safetensors.", show_default=False)
    ] = None,
    patch_size: Annotated[int | None, typer.Option(help="Convert to this patch size, in pixels.")] = None,
    img_size: Annotated[str | None, typer.Option(help="Convert to this image size in pixels: 224, or 224x448.")] = None,
    crop_ratio: Annotated[
        float | None, typer.Option(help="data.eval_crop_ratio, the centre crop's share of the resized picture.")
    ] = None,
    split: Annotated[str, typer.Option(help="val, test, or all: with the training images, unaugmented.")] = "test",
    model: Annotated[
        str | None, typer.Option(help="Name of the model, where the file does not tell: a timm ViT.")
    ] = None,
    flip_schedule: Annotated[
        str | None,
        typer.Option(help="Adventurer: alternate, released, pairs or none. Default: the file's own, else released."),
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the moving average of the weights.")] = False,
    normalisation: Annotated[
        str, typer.Option(help="What the weights were trained with: imagenet, or inception (mean and deviation 0.5).")
    ] = "imagenet",
    per_class: Annotated[bool, typer.Option("--per-class", help="Print the metric of every class, too.")] = False,
    batch_size: Annotated[int | None, typer.Option(help="Images at a time; default: what fits into memory.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Evaluate the final weights of a run, or any file of weights; print loss and metric (fractions in [0, 1]).

    A file needs data: patchscale eval --checkpoint FILE data.name=image_folder data.root=DIR
    """
    settings = list(overrides or [])
    if run_dir is not None and "=" in run_dir and not Path(run_dir).exists():
        settings.insert(0, run_dir)
        run_dir = None
    if (run_dir is None) == (checkpoint is None):
        raise UserError("give one of a run's directory and --checkpoint FILE")
    if split not in SPLITS:
        raise UserError(f"--split {split!r}: choose val, test or all")
    if normalisation not in NORMALISATIONS:
        raise UserError(f"--normalisation {normalisation!r}: choose {', '.join(NORMALISATIONS)}")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: at least 1 is needed")
    if crop_ratio is not None:
        settings.append(f"data.eval_crop_ratio={crop_ratio}")

    from patchscale.requirements import require_training_half
    from patchscale.shapes import parse_img_size

    size = None if img_size is None else parse_img_size(img_size, name="--img-size")
    require_training_half()

    from patchscale.models.checkpoints import name_of
    from patchscale.runs.record import RunDirectory
    from patchscale.training.checkpoint import WEIGHTS
    from patchscale.training.device import resolve_device
    from patchscale.training.evaluate import evaluate as evaluate_task
    from patchscale.training.evaluate_file import batch_size_that_fits, load_file, normalise_as, split_of
    from patchscale.training.summary import memory_of_last_attempt

    where = resolve_device(device, option="--device ")
    run = None if run_dir is None else RunDirectory(Path(run_dir))
    if run is not None:
        config = _config(settings, run.config())
        file = run.checkpoint_dir / WEIGHTS
        if not file.exists():
            raise UserError(
                f"{run.path}: no final weights (the run is {run.status()['state']}); "
                f"finish it with: patchscale train --run-dir {run.path}"
            )
        named = {"run_id": run.config().run_id}
    else:
        assert checkpoint is not None
        config, file, named = _config(settings, None), checkpoint, {"checkpoint": str(checkpoint)}
    loaded = load_file(
        file,
        config,
        patch_size=patch_size,
        img_size=size,
        name=model,
        flip_schedule=flip_schedule,  # type: ignore[arg-type]
        ema=ema,
    )
    task, splits = loaded.task, loaded.splits
    precision = config.training.precision
    if batch_size is None and run is not None and not loaded.resampled:
        # What fitted in training; on another kind of device that says nothing.
        batch_size = (memory_of_last_attempt(run, where) or {}).get("micro_batch_size")
    if batch_size is None:
        batch_size = batch_size_that_fits(loaded, where)
    normalise_as(task, normalisation)  # type: ignore[arg-type]
    dataset = split_of(splits, split)
    measured = evaluate_task(
        task.to(where),
        dataset,
        batch_size=batch_size,
        device=where,
        precision=precision,
        num_workers=config.execution.num_workers,
    )
    by_class = {name: values for name, values in measured.items() if isinstance(values, list)}
    sizes = loaded.config.model
    row = {
        **named,
        "model": name_of(task.backbone),
        "patch_size": sizes.patch_size,
        "img_size": "x".join(map(str, sizes.img_size)) if isinstance(sizes.img_size, tuple) else sizes.img_size,
        "dataset": config.data.name,
        "split": split,
        "images": len(dataset),  # type: ignore[arg-type]
        "metric_name": task.metric_name,
        "metric": measured.pop("metric"),
        "loss": measured.pop("loss"),
        **{name: value for name, value in measured.items() if name not in by_class},
        "eval_protocol": task.eval_protocol,
        "normalisation": normalisation,
        "precision": precision,
        "resampled": [str(tensor) for tensor in loaded.resampled],
    }
    _print(row, by_class if per_class else {}, splits.class_names, json=json)


def _config(settings: list[str], of_run: "RunConfig | None") -> "RunConfig":
    """What is evaluated and how, of a run or else of these settings alone."""
    from patchscale.config import build_config

    for setting in settings:
        if setting.startswith("execution.device="):
            raise UserError(f"{setting!r}: give --device here")
        if not setting.startswith(("data.", "execution.", "training.precision=", "task=")):
            raise UserError(
                f"{setting!r}: settings of data and execution, training.precision and task count here; sizes are "
                "--patch-size and --img-size"
            )
    if of_run is None and not any(setting.startswith("data.name=") for setting in settings):
        raise UserError("name the data: data.name=image_folder data.root=DIR (docs/data.md lists the data sets)")
    values: dict[str, Any] = {} if of_run is None else of_run.to_dict()
    # Where its weights came from does not matter any more, and may be gone by now.
    values.get("training", {}).update(
        init_from=None, init_sha256=None, init_run=None, init_weights="final", init_settings=None, quirks=[]
    )
    return build_config(values, settings, source="settings")


def _print(row: dict[str, Any], by_class: dict[str, list[Any]], class_names: list[str], *, json: bool) -> None:
    from patchscale.cli.output import print_json, print_table

    classes = [
        {"class": name, **{of: values[label] for of, values in by_class.items()}}
        for label, name in enumerate(class_names)
    ]
    if json:
        print_json({**row, **({"classes": classes} if by_class else {})})
        return
    print_table(
        [{"name": name, "value": "; ".join(value) if isinstance(value, list) else value} for name, value in row.items()]
    )
    if by_class:
        print_table(classes)
