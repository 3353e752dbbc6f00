"""What all recipes for ImageNet-1k share, and how a recipe for one model size gets its documentation."""

from collections.abc import Callable
from functools import partial
from typing import Any

from patchscale.config import DataConfig, RunConfig, TrainingConfig

ROOT = "imagenet"
"""Folder with train/ and val/; give yours as data.root=FOLDER."""
FROM_WEIGHTS: set[str] = set()
"""Names of recipes that go on from the weights of another."""


def imagenet(**settings: Any) -> DataConfig:
    """ImageNet-1k in folders of classes. Tested on its `val`; a hundredth of `train`, our choice, is the validation."""
    return DataConfig(name="image_folder", root=ROOT, val_fraction=0.01, **settings)


def released_training(
    *, epochs: int, warmup_epochs: int, batch_size: int, learning_rate: float, **settings: Any
) -> TrainingConfig:
    """What DeiT, DeiT III and Adventurer have in common, as their code was released; `learning_rate` is the peak.

    Cosine from 1e-6 to 1e-5, mixup 0.8 and cutmix 1.0, no clipping; a moving average (0.99996) is kept and the raw
    weights are evaluated. Label smoothing goes into the soft targets of mixup. bf16, where DeiT had fp16.
    """
    defaults: dict[str, Any] = {
        "mixup": 0.8,
        "cutmix": 1.0,
        "ema_decay": 0.99996,
        "eval_weights": "raw",
        "precision": "bf16",
        "clip_grad_norm": None,
    }
    return TrainingConfig(
        epochs=epochs,
        warmup_fraction=warmup_epochs / epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        min_learning_rate=1e-5,
        warmup_learning_rate=1e-6,
        **(defaults | settings),
    )


def variant(
    make: Callable[..., RunConfig],
    *arguments: Any,
    about: str,
    expected: str,
    a100_hours: float,
    from_weights: bool = False,
) -> Callable[[], RunConfig]:
    """`make(*arguments)` as a recipe of its own, with a docstring of its own: what, command, expected result, cost."""
    recipe = partial(make, *arguments)
    config = recipe()
    model, training = config.model, config.training
    start = " training.init_from=FILE" if from_weights else ""
    if from_weights:
        FROM_WEIGHTS.add(config.recipe)
    recipe.__doc__ = f"""{about}

    Command: patchscale train --recipe {config.recipe} data.root=FOLDER{start} [--patch-size P] [--img-size S]
    Expected: {expected}
    Cost: {a100_hours:g} hours of one A100, from published hours and not measured:
    patchscale cost {model.name} --patch-size {model.patch_size} --img-size {model.img_size} --batch-size 64 --ema \\
        --images imagenet --epochs {training.epochs:g} --device a100
    """
    return recipe
