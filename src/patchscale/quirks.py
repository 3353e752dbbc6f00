"""Oddities of the released Adventurer and DeiT code that a run can repeat: the names in `training.quirks`. No torch.

All are off by default; docs/recipes.md says what each does and what is done without it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from patchscale.shapes import SHAPES

if TYPE_CHECKING:
    from patchscale.config import RunConfig

Quirk = Literal[
    "schedule_one_epoch_late",
    "repeated_augment_drops_rest",
    "positions_one_row_off",
    "patch_init_wide",
    "patch_bias_uniform",
    "ema_without_warmup",
]

SAMPLER_ROUNDS_TO = 256
"""The released sampler of repeated augmentation rounds an epoch's draws down to a multiple of this."""


def quirk_problems(config: "RunConfig") -> list[str]:
    """One line for every quirk of a run that would change nothing, or that the run is no case of."""
    given = dict.fromkeys(config.training.quirks)
    return [f"training.quirks: {name} {why}; leave it out" for name in given if (why := _MISFITS[name](config))]


def _schedule(config: "RunConfig") -> str | None:
    epochs = config.training.epochs
    if epochs is None or epochs != int(epochs):
        return "goes by whole epochs, and the run's length is not a whole number of training.epochs"
    return None


def _repeats(config: "RunConfig") -> str | None:
    return None if config.data.repeated_augment > 1 else "is about repeated augmentation, data.repeated_augment is 1"


def _positions(config: "RunConfig") -> str | None:
    if not _is_adventurer(config) or config.model.pos_embed != "learned":
        return "is about Adventurer's learned positions"
    return None if _starts_from_weights(config) else "is about going on from other weights, this run has none"


def _wide(config: "RunConfig") -> str | None:
    if not _is_adventurer(config):
        return "is about Adventurer's patch embedding"
    return "is about random weights, this run starts from trained ones" if _starts_from_weights(config) else None


def _bias(config: "RunConfig") -> str | None:
    if _is_adventurer(config):
        return "is about the patch embedding of ViTs"
    return "is about random weights, this run starts from trained ones" if _starts_from_weights(config) else None


def _ema(config: "RunConfig") -> str | None:
    return None if config.training.ema_decay is not None else "is about the moving average, training.ema_decay is unset"


def _is_adventurer(config: "RunConfig") -> bool:
    shape = SHAPES.get(config.model.name)
    return shape is not None and shape.architecture == "adventurer"


def _starts_from_weights(config: "RunConfig") -> bool:
    return config.training.init_from is not None or config.training.init_run is not None


_MISFITS: dict[str, Callable[["RunConfig"], str | None]] = {
    "schedule_one_epoch_late": _schedule,
    "repeated_augment_drops_rest": _repeats,
    "positions_one_row_off": _positions,
    "patch_init_wide": _wide,
    "patch_bias_uniform": _bias,
    "ema_without_warmup": _ema,
}
