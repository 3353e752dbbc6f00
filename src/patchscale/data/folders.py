"""Your own pictures: folders of classes, or pictures with label maps. Nothing is skipped silently."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchscale.data.decoding import DEEP_MODES, decode_rgb, open_picture, unreadable
from patchscale.data.splitting import hold_out
from patchscale.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
IGNORE_INDEX = 255
PARTS = ("train", "val", "test")
_MISNAMED_PARTS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Folder names that are meant as a part, in any case; taken for a class they would make nonsense."""


@dataclass(frozen=True, kw_only=True)
class FileList:
    """Files of one part of a data set, relative to its root, in sorted order."""

    root: Path
    pictures: list[str]
    labels: NDArray[np.int64]
    """Class of each picture; zeros for pairs."""
    masks: list[str] | None = None
    """Label map of each picture, for `mask_folder`."""

    def __len__(self) -> int:
        return len(self.pictures)

    def name(self, index: int) -> str:
        """The path of a picture."""
        return str(self.root / self.pictures[index])

    def content(self, index: int) -> bytes:
        """The file of a picture."""
        return (self.root / self.pictures[index]).read_bytes()

    def picture(self, index: int) -> Image.Image:
        """A picture, decoded to 8-bit RGB; raises `UserError` that names it."""
        return read_rgb(self.root / self.pictures[index])

    def take(self, indices: NDArray[np.int64]) -> "FileList":
        """The files at these places."""
        chosen = indices.tolist()
        return FileList(
            root=self.root,
            pictures=[self.pictures[i] for i in chosen],
            labels=self.labels[indices],
            masks=None if self.masks is None else [self.masks[i] for i in chosen],
        )

    def lines(self) -> Iterator[str]:
        """One line per item, for the fingerprint."""
        for place, picture in enumerate(self.pictures):
            yield picture if self.masks is None else f"{picture}\t{self.masks[place]}"


@dataclass(frozen=True, kw_only=True)
class Division:
    """Which items of which published part make up a split, and the rule in words."""

    splits: dict[str, tuple[str, NDArray[np.int64]]]
    rule: str


def divide(labels: Mapping[str, NDArray[np.int64]], val_fraction: float, split_seed: int) -> Division:
    """Make train, val and test from the parts there are, given the labels of each part's items.

    Items are held out by class and by `split_seed` alone. Raises `UserError` if too little is left to train on.
    """
    everything = {part: np.arange(len(of_part), dtype=np.int64) for part, of_part in labels.items()}
    if "val" in labels and "test" in labels:
        return Division(splits={part: (part, everything[part]) for part in PARTS}, rule="as published")
    test_part = next((part for part in ("test", "val") if part in labels), None)
    if test_part is not None:
        kept, held = hold_out(labels["train"], val_fraction, split_seed, "val")
        test = (test_part, everything[test_part])
        rule = f"val is {val_fraction:g} of the published train, test is the published {test_part}"
    else:
        if 2 * val_fraction >= 1:
            raise UserError(
                f"data.val_fraction={val_fraction:g} is held out twice, for val and for test, as the data has neither; "
                "choose less than 0.5"
            )
        rest, tested = hold_out(labels["train"], val_fraction, split_seed, "test")
        kept, held = hold_out(labels["train"][rest], val_fraction / (1 - val_fraction), split_seed, "val")
        kept, held, test = rest[kept], rest[held], ("train", tested)
        rule = f"val and test are {val_fraction:g} of all images each"
    return Division(splits={"train": ("train", kept), "val": ("train", held), "test": test}, rule=rule)


def list_image_folder(root: Path) -> tuple[dict[str, FileList], list[str], int]:
    """Parts (train and, if there, val and test), class names, and the number of files that are no pictures.

    Accepts root/<part>/<class>/... and root/<class>/...; classes are the folders of train in sorted order. Raises
    `UserError` naming the folder for whatever does not fit.
    """
    folders = _part_folders(root)
    found: dict[str, dict[str, list[str]]] = {}
    ignored = 0
    for part, folder in folders.items():
        found[part] = {}
        for class_name in _subfolders(folder):
            pictures, others = list_pictures(folder / class_name, root)
            ignored += others
            if not pictures:
                raise UserError(
                    f"{folder / class_name}: no images in this class folder; "
                    f"add some ({', '.join(SUFFIXES)}) or remove it"
                )
            found[part][class_name] = pictures
        if not found[part]:
            raise UserError(f"{folder}: no class folders in it; expected {folder}/<class>/<image>")
    class_names = list(found["train"])
    for part, by_class in found.items():
        unknown = [name for name in by_class if name not in found["train"]]
        if unknown:
            raise UserError(
                f"{folders[part] / unknown[0]}: class {unknown[0]!r} is in {part} but not in train; "
                "remove it or add training images"
            )
    if len(class_names) < 2:
        raise UserError(f"{folders['train']}: only one class ({class_names[0]!r}); classification needs two or more")
    parts = {}
    for part, by_class in found.items():
        pictures = [path for name in class_names for path in by_class.get(name, [])]
        counts = [len(by_class.get(name, [])) for name in class_names]
        parts[part] = FileList(root=root, pictures=pictures, labels=np.repeat(np.arange(len(counts)), counts))
    return parts, class_names, ignored


def list_mask_folder(root: Path) -> tuple[dict[str, FileList], int]:
    """Parts of root/images/<part>/x.jpg with root/masks/<part>/x.png, and the number of files without a partner.

    Raises `UserError` naming the file for a missing mask, or the folder for what does not fit.
    """
    for name in ("images", "masks"):
        if not (root / name).is_dir():
            raise UserError(f"{root / name}: no such folder; expected images/train/x.jpg with masks/train/x.png")
    parts, ignored = {}, 0
    for part, folder in _part_folders(root / "images", classes=False).items():
        pictures, others = list_pictures(folder, root)
        masks, other_masks = list_pictures(root / "masks" / part, root, (".png",))
        of_stem = {_stem(mask, part): mask for mask in masks}
        partners = []
        for picture in pictures:
            stem = _stem(picture, part)
            if stem not in of_stem:
                raise UserError(f"{root / picture}: it has no label map; expected {root / 'masks' / part / stem}.png")
            partners.append(of_stem[stem])
        if not pictures:
            raise UserError(f"{folder}: no images in it; expected {', '.join(SUFFIXES)}")
        twice = first_repeated(partners)
        if twice is not None:
            raise UserError(f"{root / twice}: two images share this label map; give them different names")
        ignored += others + other_masks + len(masks) - len(partners)
        parts[part] = FileList(root=root, pictures=pictures, labels=np.zeros(len(pictures), np.int64), masks=partners)
    return parts, ignored


def read_rgb(path: Path) -> Image.Image:
    """Decode a picture to 8-bit RGB; raises `UserError` naming the file if that cannot be done."""
    return decode_rgb(path, str(path))


ReadLabels = Callable[[Path, tuple[int, int]], Image.Image]
"""From a label map's file and its picture's (width, height) to classes and `IGNORE_INDEX`, one byte a pixel."""


def read_label_map(path: Path, picture_size: tuple[int, int], num_classes: int) -> Image.Image:
    """Decode a label map to one byte per pixel: 0 to num_classes - 1, or 255 for ignored.

    Grey and palette files are read as they number their pixels. `picture_size` is (width, height). Raises `UserError`
    naming the file for another size, a label out of range, or a file with several channels.
    """
    labels = read_numbers(path, picture_size)
    wrong = (labels >= num_classes) & (labels != IGNORE_INDEX)
    wrong |= labels < 0
    if wrong.any():
        given = f"with data.num_classes={num_classes} " if num_classes < IGNORE_INDEX else ""
        raise UserError(
            f"{path}: label {labels[wrong][0]} in it; {given}labels are 0 to {num_classes - 1}, and "
            f"{IGNORE_INDEX} for ignored"
        )
    return Image.fromarray(labels.astype(np.uint8))


def read_numbers(path: Path, picture_size: tuple[int, int]) -> NDArray[Any]:
    """The whole numbers [h, w] of a label map of one channel; raises `UserError` as `read_label_map`."""
    with open_label_map(path, picture_size) as file:
        if file.mode not in ("1", "L", "P", *DEEP_MODES):
            raise UserError(f"{path}: {file.mode} file as a label map; expected one channel that holds the class")
        numbers = pixels_of(file, path)
    if numbers.dtype.kind in "iu":
        return numbers
    broken = ~(numbers % 1 == 0)  # true of what is no number, too
    if broken.any():
        raise UserError(f"{path}: {numbers[broken][0]} in it; labels are whole numbers, one for each class")
    return numbers.astype(np.int64)  # of floats, and of the yes and no of one bit


def open_label_map(path: Path, picture_size: tuple[int, int]) -> Image.Image:
    """Raises `UserError` for a file of another size than its picture, or none at all."""
    file = open_picture(path, str(path))
    if file.size != picture_size:
        file.close()
        raise UserError(
            f"{path}: label map of {file.width}x{file.height} px for an image of "
            f"{picture_size[0]}x{picture_size[1]} px; they must be the same size"
        )
    return file


def pixels_of(file: Image.Image, path: Path) -> NDArray[Any]:
    """Raises `UserError` for a damaged file."""
    try:
        return np.array(file)
    except Exception as error:
        raise unreadable(str(path), path, error) from error


def _part_folders(root: Path, *, classes: bool = True) -> dict[str, Path]:
    """Folders of the parts of a data set; `root` itself is the only one if it holds class folders directly."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; data.root must name the folder of the data set")
    folders = {part: root / part for part in PARTS if (root / part).is_dir()}
    strange = [name for name in _subfolders(root) if name not in PARTS and name.lower() in _MISNAMED_PARTS]
    if strange:
        meant = _MISNAMED_PARTS[strange[0].lower()]
        raise UserError(f"{root / strange[0]}: not the name of a part; rename it to {meant}")
    if folders and "train" not in folders:
        raise UserError(f"{root}: there is {next(iter(folders))}/ but no train/ in it; add the training images")
    if not folders and not classes:
        raise UserError(f"{root / 'train'}: no such folder; expected images/train/x.jpg with masks/train/x.png")
    same = first_repeated([str(folder.resolve()) for folder in folders.values()])
    if same is not None:
        raise UserError(f"{same}: two parts of {root} are this same folder; test must not overlap train")
    return folders or {"train": root}


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def list_pictures(folder: Path, root: Path, suffixes: tuple[str, ...] = SUFFIXES) -> tuple[list[str], int]:
    """Pictures anywhere below a folder, relative to `root` and sorted, and the number of other files."""
    pictures, others = [], 0
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(place).relative_to(root).as_posix()
        for name in names:
            if name.startswith("."):
                continue
            if name.lower().endswith(suffixes):
                pictures.append(f"{relative}/{name}")
            else:
                others += 1
    return sorted(pictures), others


def _stem(path: str, part: str) -> str:
    """`images/train/a/x.jpg` -> `a/x`."""
    return os.path.splitext(path)[0].split(f"/{part}/", 1)[1]  # noqa: PTH122


def first_repeated(names: list[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]
