"""Complete configs by name. To add one: a function in a file here, and an entry in `RECIPES`. No torch.

A recipe takes no arguments; its docstring gives the command, the expected result with its source, and the cost.
"""

from collections.abc import Callable

from patchscale.config import RunConfig
from patchscale.errors import UserError
from patchscale.recipes.fashion_mnist import fashion_mnist, fashion_mnist_adventurer
from patchscale.recipes.quickstart import scenes_segmentation

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "fashion-mnist": fashion_mnist,
    "fashion-mnist-adventurer": fashion_mnist_adventurer,
    "scenes-segmentation": scenes_segmentation,
}


def recipe(name: str) -> RunConfig:
    """The config of recipe `name`; raises `UserError` that lists the names."""
    if name not in RECIPES:
        raise UserError(f"recipe {name!r}: no such recipe; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()
