"""Scenes: garments pasted on a noisy background, with exact label maps, in any number and at any size.

A scene is a function of (seed, split, index). Its arrangement is drawn as fractions of the canvas, so scene number i
shows the same garments at the same places at every size, with more detail where it is larger. All pixel arithmetic is
on integers (Pillow's fixed-point resampling, NumPy), so the bytes are the same on every machine.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchscale.data.seeding import derive_seed
from patchscale.errors import UserError
from patchscale.shapes import image_height_width

SceneSplit = Literal["train", "val", "test"]

GARMENTS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Classes of the pictures, in Fashion-MNIST's order."""

SCENES_VERSION = 1
"""Raised whenever the same seed composes other scenes than before."""

PICTURES = Path(__file__).parent / "pictures"
PICTURE_SIDE = 28
SMALLEST_CANVAS = 16

# Sides of garments as parts of the canvas' shorter side: 24 to 32 and 16 to 24 px on 48 px. The main garment lies in
# front, within the middle half of where it could be: a small model finds it within some hundred steps.
_MAIN, _OTHER = (1 / 2, 2 / 3), (1 / 3, 1 / 2)
# A picture's mask is resized with it; half covered counts as garment.
_COVERED = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """One composed image of H x W pixels and the truth about its n visible garments, backmost first."""

    image: NDArray[np.uint8]
    """[H, W, 3]"""
    label_map: NDArray[np.int64]
    """[H, W]: 0 is background, 1 + class where a garment is on top."""
    image_class: int
    """Class of the garment with the largest visible area; the backmost of equals."""
    boxes: NDArray[np.float32]
    """[n, 4]: left, top, right, bottom edges in pixels, tight around the visible part."""
    masks: NDArray[np.bool_]
    """[n, H, W]: visible parts; no pixel is in two of them."""
    labels: NDArray[np.int64]
    """[n]: classes, 0 to 9."""


class SceneDataset:
    """`num_scenes` scenes of one split; garments of one split never appear in another.

    `img_size` is the canvas in pixels, a side or (height, width). Raises `UserError` for a canvas too small to show a
    garment, or an unknown split.
    """

    def __init__(
        self,
        split: SceneSplit,
        num_scenes: int,
        img_size: int | tuple[int, int],
        seed: int,
        *,
        max_garments: int = 4,
    ) -> None:
        if split not in get_args(SceneSplit):
            raise UserError(f"no scenes for split {split!r}; choose one of {', '.join(get_args(SceneSplit))}")
        self.height, self.width = image_height_width(img_size)
        if min(self.height, self.width) < SMALLEST_CANVAS:
            raise UserError(
                f"scenes of {self.height}x{self.width} px are too small to show a garment; "
                f"set model.img_size to {SMALLEST_CANVAS} or more"
            )
        self.split = split
        self.num_scenes = num_scenes
        self.seed = seed
        self.max_garments = max_garments

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.num_scenes:
            raise IndexError(f"scene {index} of {self.num_scenes}")
        generator = np.random.Generator(np.random.PCG64(derive_seed(self.seed, "scene", self.split, index)))
        pool = picture_pool(self.split)
        uniform = generator.random()
        num_garments = 1 + int(uniform * uniform * self.max_garments)  # few more often than many
        draws = generator.random((self.max_garments, 7))[:num_garments].tolist()
        background = _background(generator, self.height, self.width)

        # Paint from back to front; `owner` remembers which garment (1 + its place) is on top of each pixel.
        owner = np.zeros((self.height, self.width), np.uint8)
        brightness = np.zeros((self.height, self.width), np.uint8)
        classes = np.zeros(1 + num_garments, np.int64)
        tints = np.zeros((1 + num_garments, 3), np.uint16)
        for place, (which, size, down, across, *tint) in enumerate(draws, start=1):
            picture, classes[place] = pool[int(which * len(pool))]
            tints[place] = [160 + int(96 * part) for part in tint]
            is_main = place == num_garments
            if is_main:
                down, across = 0.25 + 0.5 * down, 0.25 + 0.5 * across
            side = _side(size, min(self.height, self.width), is_main=is_main)
            top = int(down * (self.height - side + 1))
            left = int(across * (self.width - side + 1))
            window = np.s_[top : top + side, left : left + side]
            cell = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))
            covered = cell[..., 1] >= _COVERED
            np.copyto(owner[window], np.uint8(place), where=covered)
            np.copyto(brightness[window], cell[..., 0], where=covered)
        painted = ((brightness[..., None] * tints.take(owner, axis=0)) >> 8).astype(np.uint8)
        # One of the two terms is 0 everywhere; arithmetic is twice as fast as a masked copy.
        return _with_truth(background * (owner == 0)[..., None] + painted, owner, classes)


def _background(generator: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """A dark random tint (8 to 71) with a smooth variation of up to 31 and noise of up to 15 on every value."""
    drawn = np.frombuffer(generator.bytes(3 + 48 + height * width * 3), np.uint8)
    coarse = 8 + drawn[:3] // 4 + drawn[3:51].reshape(16, 3) // 8
    smooth = Image.frombytes("RGB", (4, 4), coarse.tobytes()).resize((width, height), Image.Resampling.BILINEAR)
    noise = drawn[51:].reshape(height, width, 3) & np.uint8(15)
    return np.asarray(smooth) + noise


def _side(size: float, canvas_side: int, *, is_main: bool) -> int:
    smallest, largest = _MAIN if is_main else _OTHER
    return round((smallest + (largest - smallest) * size) * canvas_side)


def _with_truth(image: NDArray[np.uint8], owner: NDArray[np.uint8], classes: NDArray[np.int64]) -> Scene:
    areas = np.bincount(owner.ravel(), minlength=len(classes))
    areas[0] = 0
    visible = np.flatnonzero(areas)
    masks = owner == visible.astype(np.uint8)[:, None, None]
    label_of = classes + 1
    label_of[0] = 0
    return Scene(
        image=image,
        label_map=label_of.take(owner),
        image_class=int(classes[areas.argmax()]),
        boxes=_tight_boxes(masks),
        masks=masks,
        labels=classes[visible],
    )


def _tight_boxes(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    rows, columns = np.logical_or.reduce(masks, axis=2), np.logical_or.reduce(masks, axis=1)
    height, width = masks.shape[1:]
    return np.stack(
        [
            columns.argmax(axis=1),
            rows.argmax(axis=1),
            width - columns[:, ::-1].argmax(axis=1),
            height - rows[:, ::-1].argmax(axis=1),
        ],
        axis=1,
    ).astype(np.float32)


@cache
def picture_pool(split: SceneSplit) -> tuple[tuple[Image.Image, int], ...]:
    """All pictures of a split with their classes; bands are brightness, mask, mask.

    Three bands, because Pillow resamples those independently, and a mask as a fourth it would multiply in.
    """
    with Image.open(PICTURES / f"{split}.png") as file:
        brightness, mask = file.split()
    sheet = np.asarray(Image.merge("RGB", (brightness, mask, mask)))
    cells = sheet.reshape(len(GARMENTS), PICTURE_SIDE, -1, PICTURE_SIDE, 3).swapaxes(1, 2)
    return tuple(
        (Image.fromarray(np.ascontiguousarray(cell)), label) for label, row in enumerate(cells) for cell in row
    )


@cache
def pictures_fingerprint() -> str:
    """sha256 of all pictures and masks that scenes are made of."""
    digest = hashlib.sha256()
    for split in get_args(SceneSplit):
        for picture, _ in picture_pool(split):
            digest.update(picture.tobytes())
    return digest.hexdigest()
