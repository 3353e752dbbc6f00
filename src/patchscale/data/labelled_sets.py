"""Segmentation data sets in the layouts in which they are released: files of each part, classes, and what labels mean.

Every label map is checked when it is read: its size is its picture's, and it holds no number but those named here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchscale.data.folders import (
    IGNORE_INDEX,
    FileList,
    ReadLabels,
    list_pictures,
    open_label_map,
    pixels_of,
    read_label_map,
    read_numbers,
)
from patchscale.errors import UserError

ADE20K_CLASSES = tuple(
    """wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person,
    earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror,
    rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column,
    signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path,
    stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee
    table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair,
    boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth,
    television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle,
    buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool,
    barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave,
    pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray,
    ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag""".replace(
        "\n    ", " "
    ).split(", ")
)
"""The first name of each of the 150 classes of SceneParsing (ADEChallengeData2016), in the order of their numbers."""

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

CITYSCAPES_CLASSES = {
    **{"road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19},
    **{"traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26},
    **{"truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33},
}
"""The 19 classes that count, in the order of their train ids, and the number of each in labelIds files."""
CITYSCAPES_IDS = 34
"""Numbers in labelIds files are below; a licence plate is -1, 255 in a file."""


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """A listed data set."""

    parts: dict[str, FileList]
    class_names: list[str]
    read_labels: ReadLabels
    layout: str
    """Which of the released layouts was found."""


def list_ade20k(root: Path) -> LabelledSet:
    """ADE20K: `ADEChallengeData2016` (150 classes) or the full release (`ADE20K_2021_17_01`), in `root` or below it.

    Of the challenge, label 0 ("other") is ignored and 1 to 150 are classes 0 to 149. Raises `UserError` naming the
    folder or file that is missing.
    """
    challenge = _first_folder(root, ("annotations", "ADEChallengeData2016/annotations"))
    full = _first_folder(root, ("images/ADE", "ADE20K_2021_17_01/images/ADE"))
    if challenge is None and full is None:
        raise UserError(
            f"{root}: neither layout of ADE20K is there; expected {root}/images/training/x.jpg with "
            f"annotations/training/x.png (ADEChallengeData2016), or {root}/images/ADE/training (the full release)"
        )
    parts = {}
    if challenge is not None:
        base, layout, read = challenge.parent, "ADEChallengeData2016", partial(_read_by_table, table=_ade20k_table())
        for part, folder in (("train", "training"), ("val", "validation")):
            pictures = _pictures(base / "images" / folder, root)
            labels = base / "annotations" / folder
            masks = [_partner(labels / f"{Path(name).stem}.png", root, name) for name in pictures]
            parts[part] = _files(root, pictures, masks)
        return LabelledSet(parts=parts, class_names=list(ADE20K_CLASSES), read_labels=read, layout=layout)
    assert full is not None
    for part, folder in (("train", "training"), ("val", "validation")):
        pictures = [name for name in _pictures(full / folder, root) if name.endswith(".jpg")]
        masks = [_partner((root / name).with_name(f"{Path(name).stem}_seg.png"), root, name) for name in pictures]
        parts[part] = _files(root, pictures, masks)
    return LabelledSet(
        parts=parts, class_names=list(ADE20K_CLASSES), read_labels=read_full_ade20k, layout="ADE20K_2021_17_01, by name"
    )


def read_full_ade20k(path: Path, picture_size: tuple[int, int]) -> Image.Image:
    """A `*_seg.png` of the full release: its objects as the 150 classes, all others ignored.

    The object's number in a pixel is R // 10 * 256 + G; its name stands in the JSON file of the picture. It is class k
    if the first of its names is `ADE20K_CLASSES[k]`. The challenge merged further names into some classes, by a list
    that is not part of the release, so numbers measured here are not those of the challenge.
    """
    with open_label_map(path, picture_size) as file:
        if file.mode not in ("RGB", "RGBA"):
            raise UserError(f"{path}: {file.mode} file as a label map; the full release of ADE20K has colours")
        colours = pixels_of(file, path).astype(np.int64)
    numbers = colours[..., 0] // 10 * 256 + colours[..., 1]
    table = np.full(26 * 256, IGNORE_INDEX, np.uint8)
    described = path.with_name(f"{path.name.removesuffix('_seg.png')}.json")
    try:
        objects = json.loads(described.read_bytes().decode("latin-1"))["annotation"]["object"]
        for each in objects:
            name, number = str(each["name"]).split(",")[0].strip(), int(each["name_ndx"])
            if number < 0:
                raise ValueError(f"name_ndx {number}")
            if name in ADE20K_CLASSES:
                table[number] = ADE20K_CLASSES.index(name)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{described}: no names of objects can be read from it ({type(error).__name__}: {error}); the label map "
            f"{path.name} needs them"
        ) from None
    return Image.fromarray(table[numbers])


def list_voc(root: Path) -> LabelledSet:
    """Pascal VOC: JPEGImages, SegmentationClass, and lists in ImageSets/Segmentation; `root` is VOC2012 or VOCdevkit.

    train.txt and val.txt are the parts. Labels 0 to 20 are classes, 255 (the outlines) is ignored. Raises `UserError`
    naming the list or file that is missing.
    """
    lists = _first_folder(root, ("ImageSets/Segmentation", "VOC2012/ImageSets/Segmentation"))
    if lists is None:
        raise UserError(f"{root / 'ImageSets/Segmentation'}: no such folder; data.root must name the folder VOC2012")
    base, parts = lists.parents[1], {}
    for part in ("train", "val"):
        file = lists / f"{part}.txt"
        names = [line.strip() for line in _text(file).splitlines() if line.strip()]
        if not names:
            raise UserError(f"{file}: no names of images in it")
        pictures = [_partner(base / "JPEGImages" / f"{name}.jpg", root, f"{name} in {file}") for name in names]
        masks = [_partner(base / "SegmentationClass" / f"{name}.png", root, f"{name} in {file}") for name in names]
        parts[part] = _files(root, pictures, masks)
    table = _table({label: label for label in range(len(VOC_CLASSES))})
    read = partial(_read_by_table, table=table)
    return LabelledSet(parts=parts, class_names=list(VOC_CLASSES), read_labels=read, layout="VOC")


def list_cityscapes(root: Path) -> LabelledSet:
    """Cityscapes: leftImg8bit/{train,val}/<city> with gtFine; labelTrainIds files if there are, else labelIds.

    Its 19 classes are those with a train id; all else is ignored. The published test part has no labels and is left
    out. Raises `UserError` naming the folder or file that is missing.
    """
    parts: dict[str, FileList] = {}
    suffix = "_gtFine_labelTrainIds.png"
    if not any((root / "gtFine" / "train").glob(f"*/*{suffix}")):
        suffix = "_gtFine_labelIds.png"
    for part in ("train", "val"):
        pictures = _pictures(root / "leftImg8bit" / part, root)
        masks = []
        for name in pictures:
            path = Path(name)
            stem = path.name.removesuffix("_leftImg8bit.png")
            masks.append(_partner(root / "gtFine" / part / path.parent.name / f"{stem}{suffix}", root, name))
        parts[part] = _files(root, pictures, masks)
    if suffix == "_gtFine_labelIds.png":
        table = _table(dict.fromkeys(range(CITYSCAPES_IDS), IGNORE_INDEX))
        table[list(CITYSCAPES_CLASSES.values())] = range(len(CITYSCAPES_CLASSES))
    else:
        table = _table({label: label for label in range(len(CITYSCAPES_CLASSES))})
    return LabelledSet(
        parts=parts,
        class_names=list(CITYSCAPES_CLASSES),
        read_labels=partial(_read_by_table, table=table),
        layout=suffix.removeprefix("_gtFine_").removesuffix(".png"),
    )


LABELLED_SETS = {"ade20k": list_ade20k, "voc": list_voc, "cityscapes": list_cityscapes}


def mask_reader(num_classes: int) -> ReadLabels:
    """Of `mask_folder`: classes as they are numbered, 255 ignored."""
    return partial(read_label_map, num_classes=num_classes)


def _read_by_table(path: Path, picture_size: tuple[int, int], table: NDArray[np.int64]) -> Image.Image:
    """The class of every number by `table`, in which -1 is for numbers that must not occur."""
    numbers = read_numbers(path, picture_size)
    unknown = (numbers < 0) | (numbers >= len(table))
    unknown |= table[np.where(unknown, 0, numbers)] < 0
    if unknown.any():
        known = np.flatnonzero(table[:IGNORE_INDEX] >= 0)
        raise UserError(
            f"{path}: label {numbers[unknown][0]} in it; labels are {known[0]} to {known[-1]}, and {IGNORE_INDEX} for "
            "ignored"
        )
    return Image.fromarray(table[numbers].astype(np.uint8))


def _table(classes: dict[int, int]) -> NDArray[np.int64]:
    """By number: its class, `IGNORE_INDEX`, or -1 where it must not occur."""
    table = np.full(256, -1, np.int64)
    table[IGNORE_INDEX] = IGNORE_INDEX
    table[list(classes)] = list(classes.values())
    return table


def _ade20k_table() -> NDArray[np.int64]:
    return _table({0: IGNORE_INDEX} | {label + 1: label for label in range(len(ADE20K_CLASSES))})


def _first_folder(root: Path, places: Sequence[str]) -> Path | None:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; data.root must name the folder of the data set")
    return next((root / place for place in places if (root / place).is_dir()), None)


def _pictures(folder: Path, root: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; the data set is not complete")
    pictures, _ = list_pictures(folder, root, (".jpg", ".png"))
    if not pictures:
        raise UserError(f"{folder}: no images in it")
    return pictures


def _partner(path: Path, root: Path, of: str) -> str:
    if not path.is_file():
        raise UserError(f"{path}: no such file; it belongs to {of}")
    return path.relative_to(root).as_posix()


def _files(root: Path, pictures: list[str], masks: list[str]) -> FileList:
    return FileList(root=root, pictures=pictures, labels=np.zeros(len(pictures), np.int64), masks=masks)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
