"""Small data sets on disk, and configs that name them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchscale.config import RunConfig, build_config

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def make_config() -> MakeConfig:
    """A config for 16 px inputs from fields of its data section."""

    def make(
        *, task: str = "classification", img_size: int | list[int] = 16, patch_size: int = 4, seed: int = 0, **data: Any
    ) -> RunConfig:
        return build_config(
            {
                "task": task,
                "model": {"name": "vit_test", "patch_size": patch_size, "img_size": img_size},
                "data": data,
                "seed": seed,
            }
        )

    return make


def picture(seed: int, size: tuple[int, int] = (20, 24)) -> Image.Image:
    """A smooth random RGB picture of (height, width)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BILINEAR)


def write_classes(folder: Path, counts: Mapping[str, int], seed: int = 0) -> None:
    """`counts[c]` different PNG files in folder/c for every class c."""
    for number, (name, count) in enumerate(sorted(counts.items())):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            picture(seed + 1000 * number + k).save(folder / name / f"{k:03d}.png")


def write_pairs(root: Path, part: str, count: int, size: tuple[int, int] = (20, 24), classes: int = 3) -> None:
    """`count` JPEG pictures with PNG label maps of `classes` classes and some pixels of 255."""
    for kind in ("images", "masks"):
        (root / kind / part).mkdir(parents=True, exist_ok=True)
    for k in range(count):
        picture(k, size).save(root / "images" / part / f"{k}.jpg")
        labels = np.random.default_rng(k).integers(0, classes, size, dtype=np.uint8)
        labels[0, 0] = 255
        Image.fromarray(labels).save(root / "masks" / part / f"{k}.png")
