"""Complete configs by name. To add one: a function in a file here, and an entry in `RECIPES`. No torch.

A recipe takes no arguments; its docstring gives the command, the expected result with its source, and the cost. Recipes
that come in several sizes are one function with arguments, and a table with an entry for every size.
"""

from collections.abc import Callable
from difflib import get_close_matches

from patchscale.config import RunConfig
from patchscale.errors import UserError
from patchscale.recipes.ade20k import ADE20K, ade20k
from patchscale.recipes.adventurer import ADVENTURER, adventurer, adventurer_stages
from patchscale.recipes.coco import COCO, coco
from patchscale.recipes.deit import DEIT, deit
from patchscale.recipes.deit3 import DEIT3, deit3_finetune, deit3_pretrain, deit3_stages
from patchscale.recipes.fashion_mnist import fashion_mnist, fashion_mnist_adventurer
from patchscale.recipes.quickstart import scenes_segmentation

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "fashion-mnist": fashion_mnist,
    "fashion-mnist-adventurer": fashion_mnist_adventurer,
    "scenes-segmentation": scenes_segmentation,
    **ADE20K,
    **ADVENTURER,
    **COCO,
    **DEIT,
    **DEIT3,
}

__all__ = [
    "RECIPES",
    "ade20k",
    "adventurer",
    "adventurer_stages",
    "coco",
    "deit",
    "deit3_finetune",
    "deit3_pretrain",
    "deit3_stages",
    "recipe",
]


def recipe(name: str) -> RunConfig:
    """The config of recipe `name`; raises `UserError` with the names that are close, or where all are listed."""
    if name not in RECIPES:
        close = get_close_matches(name, RECIPES, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(RECIPES)}"
        raise UserError(f"recipe {name!r}: no such recipe; {hint} `patchscale train --list-recipes` shows all")
    return RECIPES[name]()
