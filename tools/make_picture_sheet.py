#!/usr/bin/env python3
"""Cut the garments that ship with patchscale out of Fashion-MNIST: one PNG sheet per split.

    apt-get install dataset-fashion-mnist
    .venv/bin/python tools/make_picture_sheet.py [FOLDER WITH THE FOUR .gz FILES]

A sheet has one row per class (0 to 9) and 28 x 28 px cells. Its first channel is the picture as published, its second
the garment's mask. Pictures are the first ones of each class in the published order, so there is nothing random:
train 0..199 and val 200..224 of the training file, test 0..49 of the test file.
"""

import gzip
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import label

OUTPUT = Path(__file__).parents[1] / "src/patchscale/data/pictures"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SPLITS = {"train": ("train", range(200)), "val": ("train", range(200, 225)), "test": ("t10k", range(50))}
FAINTEST_GARMENT = 10
"""Values up to here (of 255) are background noise of the published pictures."""
LARGEST_HOLE_PX = 12
"""A gap inside a garment up to this area is a light spot of its fabric; a larger one shows what is behind."""


def read_idx(path: Path, header_bytes: int) -> np.ndarray:
    """Content of a gzipped IDX file as flat bytes."""
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header_bytes)


def garment_mask(picture: np.ndarray) -> np.ndarray:
    """Where the garment is: every pixel above the background's noise, small holes filled."""
    mask = picture > FAINTEST_GARMENT
    gaps, _ = label(np.pad(~mask, 1, constant_values=True))
    areas = np.bincount(gaps.ravel())
    small = areas <= LARGEST_HOLE_PX
    small[[0, gaps[0, 0]]] = False  # the garment itself, and what surrounds it
    return mask | small[gaps[1:-1, 1:-1]]


def make_sheet(pictures: np.ndarray, labels: np.ndarray, which: range) -> Image.Image:
    """The pictures number `which` of every class, one row per class."""
    rows = []
    for class_index in range(10):
        chosen = pictures[labels == class_index][which.start : which.stop]
        cells = [np.stack([picture, garment_mask(picture) * np.uint8(255)], axis=-1) for picture in chosen]
        rows.append(np.concatenate(cells, axis=1))
    return Image.fromarray(np.concatenate(rows, axis=0), "LA")


def main() -> None:
    """Write the three sheets."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else DEBIAN
    for split, (file, which) in SPLITS.items():
        pictures = read_idx(source / f"{file}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        labels = read_idx(source / f"{file}-labels-idx1-ubyte.gz", 8)
        path = OUTPUT / f"{split}.png"
        make_sheet(pictures, labels, which).save(path, optimize=True)
        print(f"{path}: {10 * len(which)} pictures, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
