"""Released layouts of segmentation data sets, written small with real pictures, and what is wrong with damaged ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from patchscale.costs.workload import workload
from patchscale.data.datasets import load_splits
from patchscale.data.labelled_sets import ADE20K_CLASSES, CITYSCAPES_CLASSES, VOC_CLASSES
from patchscale.errors import UserError

PICTURES = [
    *(Image.fromarray(picture) for picture in load_sample_images().images),
    *(Image.fromarray(picture[:, 200:500]) for picture in load_sample_images().images),
]


def picture(number: int) -> Image.Image:
    """A photograph, at most 96 pixels wide."""
    found = PICTURES[number % len(PICTURES)].copy()
    found.thumbnail((96, 96))
    return found


def label_map(size: tuple[int, int], labels: list[int]) -> np.ndarray:
    """Vertical stripes, as many as labels."""
    width, height = size
    return np.tile(np.array(labels, np.uint8)[np.arange(width) * len(labels) // width], (height, 1))


def write(path: Path, content: Image.Image | np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = content if isinstance(content, Image.Image) else Image.fromarray(content)
    if palette:
        image = image.convert("P") if image.mode != "L" else image.copy()
        image.putpalette([channel for k in range(256) for channel in (k, 255 - k, k // 2)])
    image.save(path)


def challenge(root: Path, labels: tuple[int, ...] = (0, 1, 150)) -> None:
    for part, stem, count in (("training", "ADE_train", 4), ("validation", "ADE_val", 2)):
        for number in range(count):
            write(root / f"images/{part}/{stem}_{number:08}.jpg", picture(number))
            write(root / f"annotations/{part}/{stem}_{number:08}.png", label_map(picture(number).size, list(labels)))


def full_ade20k(root: Path) -> None:
    for part, count in (("training", 4), ("validation", 2)):
        for number in range(count):
            place = root / f"images/ADE/{part}/urban/street/ADE_{number:08}"
            image = picture(number)
            write(place.with_suffix(".jpg"), image)
            stripes = label_map(image.size, [0, 1, 2])  # nothing, a building, a wheel of a car
            colours = np.zeros((*stripes.shape, 3), np.uint8)
            colours[stripes == 1] = (10, 56, 7)  # 1 * 256 + 56 = 312
            colours[stripes == 2] = (120, 3, 9)  # 12 * 256 + 3 = 3075
            write(Path(f"{place}_seg.png"), colours)
            objects = [{"name": "building, edifice", "name_ndx": 312}, {"name": "wheel", "name_ndx": 3075}]
            place.with_suffix(".json").write_text(json.dumps({"annotation": {"object": objects}}))
            write(root / f"images/ADE/{part}/urban/street/ADE_{number:08}/instance_000.png", stripes)


def voc(root: Path, labels: tuple[int, ...] = (0, 20, 255)) -> None:
    names = {"train": ["2007_000032", "2007_000039", "2007_000063"], "val": ["2007_000033"]}
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for part, of_part in names.items():
        (root / f"ImageSets/Segmentation/{part}.txt").write_text("\n".join(of_part) + "\n")
        for number, name in enumerate(of_part):
            write(root / f"JPEGImages/{name}.jpg", picture(number))
            write(root / f"SegmentationClass/{name}.png", label_map(picture(number).size, list(labels)), palette=True)
    write(root / "JPEGImages/2007_999999.jpg", picture(0))  # of no list, as most are


def cityscapes(root: Path, kind: str = "labelIds") -> None:
    labels = {"labelIds": [7, 33, 4, 255], "labelTrainIds": [0, 18, 255]}[kind]
    for part, city, count in (("train", "ulm", 3), ("val", "lindau", 2)):
        for number in range(count):
            stem = f"{city}_{number:06}_000019"
            write(root / f"leftImg8bit/{part}/{city}/{stem}_leftImg8bit.png", picture(number))
            write(root / f"gtFine/{part}/{city}/{stem}_gtFine_{kind}.png", label_map(picture(number).size, labels))
            write(root / f"gtFine/{part}/{city}/{stem}_gtFine_color.png", picture(number))


def load(make_config, name: str, root: Path, **data):
    return load_splits(make_config(task="segmentation", name=name, root=str(root), val_fraction=0.34, **data))


def labels_of(splits) -> list[int]:
    return torch.unique(splits.test[0][1]["label_map"]).tolist()


@pytest.mark.parametrize(
    ("name", "make", "below", "labels", "classes"),
    [
        ("ade20k", challenge, "", [0, 149, 255], ADE20K_CLASSES),
        ("ade20k", challenge, "ADEChallengeData2016", [0, 149, 255], ADE20K_CLASSES),
        ("ade20k", full_ade20k, "", [1, 255], ADE20K_CLASSES),
        ("ade20k", full_ade20k, "ADE20K_2021_17_01", [1, 255], ADE20K_CLASSES),
        ("voc", voc, "", [0, 20, 255], VOC_CLASSES),
        ("voc", voc, "VOC2012", [0, 20, 255], VOC_CLASSES),
        ("cityscapes", cityscapes, "", [0, 18, 255], tuple(CITYSCAPES_CLASSES)),
        ("cityscapes", lambda root: cityscapes(root, "labelTrainIds"), "", [0, 18, 255], tuple(CITYSCAPES_CLASSES)),
    ],
)
def test_released_layouts(name, make, below, labels, classes, tmp_path, make_config):
    make(tmp_path / below)
    splits = load(make_config, name, tmp_path)
    assert splits.class_names == list(classes)
    assert splits.ignore_index == 255
    assert labels_of(splits) == labels
    image, target = splits.train[0, 0]
    assert image.shape == (3, *target.shape)
    assert set(target.unique().tolist()) <= set(labels)
    assert len(splits.train) + len(splits.val) == (3 if name in ("voc", "cityscapes") else 4)
    assert "val is 0.34 of the published train, test is the published val" in splits.record["split_rule"]


def test_there_are_as_many_classes_as_published():
    assert (len(ADE20K_CLASSES), len(set(ADE20K_CLASSES))) == (150, 150)
    assert (ADE20K_CLASSES[0], ADE20K_CLASSES[12], ADE20K_CLASSES[149]) == ("wall", "person", "flag")
    assert (len(VOC_CLASSES), VOC_CLASSES[15], len(CITYSCAPES_CLASSES)) == (21, "person", 19)


def test_cityscapes_train_ids_agree_with_its_ids(tmp_path, make_config):
    """The same scene in both kinds of file is the same label map."""
    cityscapes(tmp_path / "ids")
    cityscapes(tmp_path / "train_ids", "labelTrainIds")
    for path in (tmp_path / "ids").rglob("*_labelIds.png"):
        numbers = np.asarray(Image.open(path)).copy()
        train_ids = np.select([numbers == 7, numbers == 33], [0, 18], 255).astype(np.uint8)
        place = tmp_path / "train_ids" / path.relative_to(tmp_path / "ids")
        write(place.with_name(place.name.replace("labelIds", "labelTrainIds")), train_ids)
    maps = [load(make_config, "cityscapes", tmp_path / kind).test[0][1]["label_map"] for kind in ("ids", "train_ids")]
    assert torch.equal(*maps)


def _shrink(path: Path) -> None:
    Image.open(path).resize((8, 8)).save(path)


def _relabel(path: Path, label: int) -> None:
    labels = np.asarray(Image.open(path)).copy()
    labels[0, 0] = label
    Image.fromarray(labels).save(path)


@pytest.mark.parametrize(
    ("name", "make", "spoil", "said"),
    [
        ("ade20k", challenge, lambda root: next(root.glob("annotations/validation/*.png")).unlink(), "ADE_val_"),
        ("ade20k", challenge, lambda root: _shrink(root / "annotations/validation/ADE_val_00000000.png"), "8x8 px for"),
        (
            *("ade20k", challenge),
            lambda root: _relabel(root / "annotations/validation/ADE_val_00000000.png", 151),
            "label 151 in it; labels are 0 to 150, and 255 for ignored",
        ),
        ("ade20k", challenge, lambda root: (root / "annotations").rename(root / "labels"), "neither layout of ADE20K"),
        ("voc", voc, lambda root: _relabel(root / "SegmentationClass/2007_000033.png", 21), "labels are 0 to 20"),
        ("voc", voc, lambda root: (root / "JPEGImages/2007_000033.jpg").unlink(), "2007_000033 in"),
        ("voc", voc, lambda root: (root / "ImageSets/Segmentation/val.txt").unlink(), "val.txt: cannot be read"),
        ("voc", voc, lambda root: (root / "ImageSets/Segmentation/val.txt").write_text("\n"), "no names of images"),
        ("cityscapes", cityscapes, lambda root: (root / "leftImg8bit").rename(root / "left"), "not complete"),
        (
            *("cityscapes", cityscapes),
            lambda root: _relabel(next(root.glob("gtFine/val/*/*_labelIds.png")), 34),
            "label 34 in it; labels are 0 to 33",
        ),
        (
            *("ade20k", full_ade20k),
            lambda root: next(root.glob("images/ADE/validation/*/*/*.json")).write_text("{}"),
            "no names of objects can be read from it (KeyError",
        ),
        (
            *("ade20k", full_ade20k),
            lambda root: next(root.glob("images/ADE/validation/*/*/*.json")).write_text(
                json.dumps({"annotation": {"object": [{"name": "wall", "name_ndx": -1}]}})
            ),
            "no names of objects can be read from it (ValueError: name_ndx -1",
        ),
        (
            *("ade20k", full_ade20k),
            lambda root: write(next(root.glob("images/ADE/validation/*/*/*_seg.png")), label_map((96, 64), [1])),
            "the full release of ADE20K has colours",
        ),
    ],
)
def test_damage_is_named(name, make, spoil, said, tmp_path, make_config):
    make(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError) as caught:
        splits = load(make_config, name, tmp_path)
        for place in range(len(splits.test)):
            splits.test[place]
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_map_of_one_bit_is_classes_0_and_1(tmp_path, make_config):
    voc(tmp_path)
    size = Image.open(tmp_path / "SegmentationClass/2007_000033.png").size
    ones = np.zeros(size[::-1], bool)
    ones[:5] = True
    Image.fromarray(ones).save(tmp_path / "SegmentationClass/2007_000033.png")
    splits = load(make_config, "voc", tmp_path)
    assert torch.equal(splits.test[0][1]["label_map"], torch.from_numpy(ones).long())


def test_a_folder_that_is_not_there(tmp_path, make_config):
    for name in ("ade20k", "voc"):
        with pytest.raises(UserError, match=r"no such folder; data\.root must name the folder of the data set"):
            load(make_config, name, tmp_path / "nothing")


def test_workloads_are_counted_or_published(tmp_path, make_config):
    challenge(tmp_path)
    counted = workload(make_config(task="segmentation", name="ade20k", root=str(tmp_path), val_fraction=0.25))
    assert (counted.train_images, counted.num_classes) == (3, 150)
    published = workload(make_config(task="segmentation", name="ade20k", root="/nowhere", val_fraction=0.1))
    assert (published.train_images, published.num_classes) == (20_210 - 2_021, 150)
