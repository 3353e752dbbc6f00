"""`patchscale train`: one run, started, resumed or, if it is finished, reported."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchscale.config import RunConfig
from patchscale.errors import UserError
from patchscale.shapes import format_img_size, parse_img_size

if TYPE_CHECKING:
    from patchscale.runs.record import RunDirectory


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings such as training.batch_size=64; they win over everything else."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of a run.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Name of a recipe; see --list-recipes.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Go on with the run in this directory.")] = None,
    model: Annotated[str | None, typer.Option(help="model.name, such as vit_nano.")] = None,
    patch_size: Annotated[int | None, typer.Option(help="model.patch_size, in pixels.")] = None,
    img_size: Annotated[str | None, typer.Option(help="model.img_size in pixels: 28, or 28x56.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and augmentation.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the training images.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of epochs.")] = None,
    runs_root: Annotated[Path, typer.Option(help="Folder of all studies.")] = Path("runs"),
    study: Annotated[str, typer.Option(help="Folder of this run under it.")] = "default",
    list_recipes: Annotated[bool, typer.Option("--list-recipes", help="Print the recipes and stop.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the row of results as JSON.")] = False,
) -> None:
    """Train one model and measure it; the same settings again resume the run, or report it if it is finished.

    Settings: defaults, then --recipe or --config, then flags, then a.b=c.
    """
    if list_recipes:
        _print_recipes(json=json)
        return
    from patchscale.requirements import require_training_half

    require_training_half()
    with _told_once():
        flags = {
            "model.name": model,
            "model.patch_size": patch_size,
            "model.img_size": None if img_size is None else parse_img_size(img_size, name="--img-size"),
            "seed": seed,
            "training.epochs": epochs,
            "training.steps": steps,
        }
        given = {name: value for name, value in flags.items() if value is not None}
        if sum(source is not None for source in (config, recipe, run_dir)) > 1:
            raise UserError("give one of --config, --recipe and --run-dir, not several")
        if epochs is not None and steps is not None:
            raise UserError(f"--epochs {epochs:g} and --steps {steps}: give one of them")
        if run_dir is not None:
            settings = _changed(run_dir, given, overrides or [])
        else:
            settings = _resolve(config, recipe, given, overrides or [])
        _train(settings, run_dir, runs_root, study, json=json)


@contextmanager
def _told_once() -> Iterator[None]:
    """Of the processes that torchrun starts, one tells of a mistake; a run that was asked to stop has its exit code."""
    from patchscale.training.interrupt import Interrupted

    together: AbstractContextManager[None] = nullcontext()
    if "RANK" in os.environ:
        # Before torch is there: DDP's, on every rank, that it looked for unused parameters in vain.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from patchscale.training.distributed import connected

        together = connected()
    try:
        with together:
            yield
    except Interrupted as interruption:
        raise typer.Exit(interruption.exit_code) from None


def _resolve(config: Path | None, recipe: str | None, given: dict[str, Any], overrides: list[str]) -> RunConfig:
    """Defaults < recipe or file < flags < overrides."""
    from patchscale.config import build_config, read_yaml, set_by_path
    from patchscale.recipes import recipe as recipe_config
    from patchscale.recipes.imagenet import FROM_WEIGHTS

    values: dict[str, Any] = {}
    source = "settings"
    if config is not None:
        values, source = read_yaml(config), str(config)
    elif recipe is not None:
        values, source = recipe_config(recipe).to_dict(), f"recipe {recipe}"
    elif not given and not overrides:
        raise UserError(
            "nothing to train: give --config, --recipe (see --list-recipes) or --run-dir, or settings such as "
            "--model vit_nano --img-size 32"
        )
    for name, value in given.items():
        set_by_path(values, name, value)
    resolved = build_config(values, overrides, source=source)
    if recipe in FROM_WEIGHTS and resolved.training.init_from is None:
        raise UserError(
            f"recipe {recipe!r} goes on from the weights of the stage before: give training.init_from=FILE, or train "
            "all stages as a study (docs/recipes.md)"
        )
    return resolved


def _changed(run_dir: Path, given: dict[str, Any], overrides: list[str]) -> RunConfig:
    """The config of the run in `run_dir`, of whose settings only `execution` may be changed."""
    from patchscale.config import build_config, set_by_path
    from patchscale.runs.record import RunDirectory

    run = RunDirectory(run_dir)
    config = run.config()
    values = config.to_dict()
    for name, value in given.items():
        set_by_path(values, name, value)
    changed = build_config(values, overrides, source=str(run.config_path))
    if changed.identity != config.identity:
        settings = ", ".join([*(f"{name}={value}" for name, value in given.items()), *overrides])
        raise UserError(
            f"{run_dir}: {settings} would make it another run; only execution.* can change here, "
            "so leave out --run-dir to start a new run"
        )
    return changed


def _run_for(config: RunConfig, run_dir: Path | None, runs_root: Path, study: str) -> "RunDirectory":
    """The directory of this config, new or existing; the given `execution` settings hold for this attempt."""
    from patchscale.files import write_text
    from patchscale.runs.record import RunDirectory
    from patchscale.training.device import resolve_device

    if run_dir is not None:
        run = RunDirectory(run_dir)
    else:
        # An unknown model or a missing device is refused before a directory is made.
        _cost_words(config)
        resolve_device(config.execution.device)
        run = RunDirectory.create(runs_root, study, config)
    if run.config() != config and run.result() is None and not run.is_locked():
        write_text(run.config_path, config.to_yaml())
    return run


def _train(config: RunConfig, run_dir: Path | None, runs_root: Path, study: str, *, json: bool) -> None:
    from patchscale.cli.output import print_json
    from patchscale.cli.progress import watch
    from patchscale.training.collective import on_rank_0
    from patchscale.training.distributed import joined
    from patchscale.training.loop import run_training

    with joined(config.execution) as ranks:
        run = on_rank_0(lambda: _run_for(config, run_dir, runs_root, study))
        if not ranks.is_main:
            run_training(run)
            return
        with watch() as watcher:
            watcher.message(_cost_words(run.config()))
            if run.result() is not None:
                watcher.message(f"{run.path}: finished before, nothing to run")
            row = run_training(run, progress=watcher)
    if json:
        print_json({**row, "path": str(run.path)})
    else:
        print(_summary(row, run.path))


def _cost_words(config: RunConfig) -> str:
    """What the model costs, in a line; raises `UserError` for an unknown model."""
    from patchscale.costs.counts import count

    model = config.model
    cost = count(
        model.name,
        patch_size=model.patch_size,
        img_size=model.img_size,
        num_classes=0,
        pos_embed=model.pos_embed,
    )
    return (
        f"{model.name}, patch {model.patch_size} at {_size(model.img_size)} px: {cost.tokens:,} tokens, "
        f"{cost.params_total / 1e6:.3g} M parameters, {cost.flops_forward / 1e9:.3g} GFLOPs an image, without head"
    )


def _size(img_size: int | tuple[int, int]) -> str:
    return f"{img_size}" if isinstance(img_size, int) else "x".join(str(side) for side in img_size)


def _summary(row: dict[str, Any], path: Path) -> str:
    return (
        f"{row['model']} patch {row['patch_size']} at {row['img_size']} px, seed {row['seed']}: "
        f"{row['metric_name']} {100 * row['metric']:.2f}%, test loss {row['test_loss']:.4f} "
        f"after {row['epochs']:.3g} epochs in {row['wall_time_s']:.0f} s -> {path}"
    )


def _print_recipes(*, json: bool) -> None:
    from patchscale.cli.output import print_json, print_table
    from patchscale.recipes import RECIPES

    rows = []
    for name, make in RECIPES.items():
        config = make()
        about = (make.__doc__ or "").strip().partition("\n")[0]
        model = config.model
        sizes = {"model": model.name, "img_size": format_img_size(model.img_size), "patch_size": model.patch_size}
        rows.append({"recipe": name, "task": config.task, **sizes, "about": about})
    if json:
        print_json(rows)
    else:
        print_table(rows)
