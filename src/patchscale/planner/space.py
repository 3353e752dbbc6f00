"""What can be built: all combinations of model, image size, patch size and training length that fit. No torch.

Only whole patches are possible, so patch sizes that do not divide an image size are left out for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import filter as matching
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pandas as pd

from patchscale.errors import UserError
from patchscale.shapes import SHAPES, ModelShape, ViTShape, shape_name

AXES = ("model", "img_size", "patch_size", "images_seen", "merge_factor", "visual_tokens", "llm")
"""Columns that a plan chooses; those that a table lacks, or that do not vary, are not chosen."""
NOT_FOR_USE = ("_test", "_nano")
"""Endings of built-in names that patterns leave out: models for tests and demonstrations."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """Vision models: names or patterns such as vit_*, image sizes and patch sizes (px), images seen in training.

    `shapes` adds models that are not built in, by the names they get, such as `free_vits(...)`.
    Empty `patch_sizes` mean all that divide the image, down to 1 px. Without `images_seen` no training is planned.
    `fixed` holds columns that a law wants to know and that do not vary, such as {"recipe": "..."}.
    Raises `UserError` for unknown names, sizes that are not positive, and patch sizes that divide no image.
    """

    models: Sequence[str] = ()
    img_sizes: Sequence[int] = ()
    patch_sizes: Sequence[int] = ()
    images_seen: Sequence[float] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    shapes: Mapping[str, ModelShape] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = sorted(set(self.shapes) & set(SHAPES))
        if taken:
            raise UserError(f"shapes: {taken[0]!r} is a built-in model; give the shape another name")
        names = expand_models(self.models) if self.models or not self.shapes else []
        object.__setattr__(self, "models", (*names, *self.shapes))
        for name in ("img_sizes", "patch_sizes", "images_seen"):
            object.__setattr__(self, name, ordered(name, getattr(self, name)))
        refuse_fixed(self.fixed)
        if not self.img_sizes:
            raise UserError("the space has no img_sizes; give at least one, in pixels")
        for patch_size in self.patch_sizes:
            if all(img_size % patch_size for img_size in self.img_sizes):
                sizes = ", ".join(str(size) for size in self.img_sizes)
                raise UserError(f"patch size {patch_size} divides none of the image sizes {sizes}; leave it out")

    def grids(self) -> list[tuple[int, int]]:
        """(img_size, patch_size) of all whole grids of patches."""
        return [
            (img_size, patch_size)
            for img_size in self.img_sizes
            for patch_size in (self.patch_sizes or divisors(img_size))
            if img_size % patch_size == 0
        ]

    def frame(self) -> pd.DataFrame:
        """One row per configuration: model, img_size, patch_size, tokens, images_seen if planned, and what is fixed."""
        return grid_frame(self.models, self.grids(), {"images_seen": self.images_seen}, self.fixed)


COUNTED = ("tokens", "llm_params", "params_backbone", "params_total", "train_flops", "flops_train_total")
"""Columns that follow from a configuration."""


def refuse_fixed(fixed: Mapping[str, Any]) -> None:
    """Raise `UserError` for a fixed column that is chosen or counted; others only tell a law what it wants to know."""
    wrong = [name for name in fixed if name in (*AXES, *COUNTED)]
    if wrong:
        raise UserError(f"fixed {wrong[0]}={fixed[wrong[0]]}: {wrong[0]} is chosen or counted, it cannot be fixed too")


def grid_frame(
    models: Sequence[str],
    grids: Sequence[tuple[int, int]],
    others: Mapping[str, Sequence[Any]],
    fixed: Mapping[str, Any],
) -> pd.DataFrame:
    """The product of models, grids and all `others` that are not empty; the last varies fastest."""
    others = {name: values for name, values in others.items() if len(values)}
    lengths = [len(models), len(grids), *(len(values) for values in others.values())]
    places = [np.arange(prod(lengths)) // prod(lengths[i + 1 :]) % length for i, length in enumerate(lengths)]
    img_size, patch_size = (np.array(sides, dtype=np.int64) for sides in zip(*grids, strict=True))
    columns: dict[str, Any] = {
        "model": _named(models, places[0]),
        "img_size": img_size[places[1]],
        "patch_size": patch_size[places[1]],
        "tokens": ((img_size // patch_size) ** 2)[places[1]],
    }
    for (name, values), place in zip(others.items(), places[2:], strict=True):
        if isinstance(values[0], str):
            columns[name] = _named(values, place)
        else:
            columns[name] = np.asarray(values)[place]
    return pd.DataFrame(columns | dict(fixed))


def _named(names: Sequence[str], places: np.ndarray) -> Any:
    return pd.Categorical.from_codes(places.astype(np.int32), dtype=pd.CategoricalDtype(list(names)))


def expand_models(names: Sequence[str]) -> list[str]:
    """Names as they are, patterns as the built-in models that match them; each once, in order."""
    if isinstance(names, str):
        names = [names]
    known = [name for name in SHAPES if not name.endswith(NOT_FOR_USE)]
    models: list[str] = []
    for name in names:
        found = matching(known, name) if any(sign in name for sign in "*?[") else [name]
        if not found:
            raise UserError(f"no built-in model matches {name!r} (models: {', '.join(known)})")
        models += found
    if not models:
        raise UserError("the space has no models; give names such as vit_base, or a pattern such as vit_*")
    for name in models:
        close = get_close_matches(name, SHAPES, n=1, cutoff=0.75)
        if name not in SHAPES and close:
            raise UserError(f"model {name!r} is unknown; did you mean {close[0]!r}?")
    return list(dict.fromkeys(models))


def free_vits(
    embed_dims: Sequence[int], depths: Sequence[int], *, mlp_ratio: float = 4, head_dim: int = 64
) -> dict[str, ViTShape]:
    """Plain ViTs of every width and depth, for `Space(shapes=...)`: vit_d640_l16 has 640 channels and 16 blocks.

    Raises `UserError` for a width that is no multiple of `head_dim`.
    """
    shapes = {}
    for embed_dim, depth in product(ordered("embed_dims", embed_dims), ordered("depths", depths)):
        if embed_dim % head_dim:
            raise UserError(f"width {embed_dim} is not a multiple of head_dim={head_dim}; round it, or change head_dim")
        shape = ViTShape(
            embed_dim=embed_dim, depth=depth, num_heads=embed_dim // head_dim, mlp_dim=round(mlp_ratio * embed_dim)
        )
        plain = mlp_ratio == 4 and head_dim == 64
        shapes[shape_name(shape) + ("" if plain else f"_m{mlp_ratio:g}_h{head_dim}")] = shape
    return shapes


def divisors(number: int) -> list[int]:
    """Proper divisors, largest first."""
    return [one for one in range(number // 2, 0, -1) if number % one == 0]


MOST = 1e18
"""Larger ones are slips, and products of them are no numbers any more."""


def ordered(name: str, values: Sequence[Any]) -> tuple[Any, ...]:
    """Positive numbers, each once, ascending; raises `UserError` about `name` for others."""
    for value in values:
        if not (isinstance(value, int | float | np.integer | np.floating) and 0 < value < MOST):
            raise UserError(f"{name}: {value!r} is not a positive number below {MOST:g}")
    return tuple(sorted(set(values)))
