"""`patchscale data check` of label maps and objects: what is there is counted, what stops training is listed."""

import json

import numpy as np
import pytest
from PIL import Image
from tests.data.conftest import picture, write_pairs

from patchscale.data.check import check
from patchscale.errors import UserError


def overwrite(path, labels):
    Image.fromarray(labels).save(path)


@pytest.fixture
def pairs(tmp_path):
    """Three training images and one for validation, of 20 x 24 px, with labels 0 to 2 and one ignored pixel."""
    for part, count in (("train", 3), ("val", 1)):
        write_pairs(tmp_path, part, count)
    picture(9, (20, 24)).save(tmp_path / "images/val/0.jpg")  # else it were the first one of train
    return tmp_path


@pytest.fixture
def coco(tmp_path):
    """Two pictures of 40 x 30 px a part; the first one of train has objects of every kind."""
    outline = [[5, 5, 15, 5, 15, 20, 5, 20]]
    further = [[15, 5, 25, 5, 25, 20, 15, 20]]
    crowd = {"size": [30, 40], "counts": [100, 50, 1050]}
    common = {"image_id": 0, "category_id": 7}
    annotations = [
        common | {"id": 1, "bbox": [5, 5, 10, 15], "segmentation": outline},
        common | {"id": 2, "bbox": [3, 0, 2, 30], "segmentation": crowd, "iscrowd": 1},
        common | {"id": 3, "bbox": [1, 1, 8, 8], "category_id": 9},
        common | {"id": 4, "bbox": [50, 50, 8, 8]},
        common | {"id": 5, "bbox": [15, 5, 25, 20], "segmentation": further},  # corners instead of sides
        common | {"id": 6, "bbox": [1, 1, 8, 8], "segmentation": [[60, 60, 70, 60, 70, 70]]},
    ]
    (tmp_path / "annotations").mkdir()
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        for number in range(2):
            picture(number + 2 * (part == "val"), (30, 40)).save(tmp_path / part / f"{number}.png")
        images = [{"id": n, "file_name": f"{n}.png", "height": 30, "width": 40} for n in range(2)]
        values = {"images": images, "categories": [{"id": 9, "name": "kite"}, {"id": 7, "name": "cat"}]}
        values["annotations"] = annotations if part == "train" else []
        (tmp_path / "annotations" / f"instances_{part}.json").write_text(json.dumps(values))
    return tmp_path


@pytest.mark.parametrize("workers", [1, 2])
def test_label_maps_are_counted(pairs, workers):
    checked = check(str(pairs), num_workers=workers)
    assert (checked.kind, checked.counted, checked.wrong) == ("mask_folder", "images that show it", [])
    assert checked.images == {"train": 3, "val": 1}
    assert {name: count for name, count in checked.class_counts["train"].items() if count} == {"0": 3, "1": 3, "2": 3}
    assert checked.class_counts["val"] == {"0": 1, "1": 1, "2": 1}
    assert checked.notes == {
        "files without a partner": 0,
        "pixels": 4 * 480,
        "ignored pixels": 4,
        "images without a labelled pixel": 0,
    }


def test_without_their_number_classes_are_those_that_occur(pairs):
    overwrite(pairs / "masks/val/0.png", np.full((20, 24), 200, np.uint8))
    counts = check(str(pairs)).class_counts
    assert counts["train"] == {"0": 3, "1": 3, "2": 3, "200": 0}
    assert counts["val"] == {"0": 0, "1": 0, "2": 0, "200": 1}
    assert check(str(pairs), num_classes=4).class_counts["train"] == {"0": 3, "1": 3, "2": 3, "3": 0}
    overwrite(pairs / "masks/train/0.png", np.full((20, 24), 300, np.uint16))
    (wrong,) = check(str(pairs)).wrong
    assert "label 300 in it; labels are 0 to 254" in wrong


def test_every_label_map_that_training_would_stop_at_is_listed(pairs):
    overwrite(pairs / "masks/train/0.png", np.full((20, 24), 3, np.uint8))
    overwrite(pairs / "masks/train/1.png", np.zeros((24, 20), np.uint8))
    overwrite(pairs / "masks/train/2.png", np.full((20, 24), 255, np.uint8))
    (pairs / "masks/val/0.png").write_bytes(b"no picture")
    checked = check(str(pairs), kind="mask_folder", num_classes=3)
    assert len(checked.wrong) == 3
    for said, line in zip(("label 3 in it", "label map of 20x24 px", "cannot be decoded"), checked.wrong, strict=True):
        assert said in line
    assert checked.notes["images without a labelled pixel"] == 1
    assert checked.unusable == [
        f"images/{name}.jpg\tmasks/{name}.png" for name in ("train/0", "train/1", "val/0")
    ]  # as data.exclude takes them


@pytest.mark.parametrize("workers", [1, 2])
def test_objects_are_counted(coco, workers):
    checked = check(str(coco), num_workers=workers)
    assert (checked.kind, checked.counted, checked.wrong) == ("coco", "objects", [])
    assert checked.class_counts == {"train": {"cat": 4, "kite": 1}, "val": {"cat": 0, "kite": 0}}
    assert checked.notes == {
        "images without objects": 3,
        "empty boxes, left out": 1,
        "crowds": 1,
        "objects without a mask of their own": 1,
        "objects whose mask has no pixel": 1,
        "objects whose box overlaps its mask's by less than 0.5": 1,
    }


def test_annotations_that_do_not_fit_their_pictures_are_listed(coco):
    path = coco / "annotations/instances_train.json"
    values = json.loads(path.read_text())
    values["annotations"][1]["segmentation"]["counts"] = [100, 50]
    path.write_text(json.dumps(values))
    picture(5, (40, 30)).save(coco / "val/1.png")
    checked = check(str(coco))
    assert len(checked.wrong) == 2
    assert "0.png: annotation 2: run lengths of 150 pixels, the picture has 1200" in checked.wrong[0]
    assert "1.png: 30x40 px, its annotation says 40x30" in checked.wrong[1]
    assert [line.split("\t")[0] for line in checked.unusable] == ["0.png", "1.png"]


def test_the_same_picture_in_two_parts_is_a_leak(coco):
    (coco / "val/1.png").write_bytes((coco / "train/1.png").read_bytes())
    (line,) = check(str(coco)).wrong
    assert "the same file as" in line


@pytest.mark.parametrize(
    ("folders", "kind"),
    [
        (("ImageSets/Segmentation",), "voc"),
        (("leftImg8bit/train",), "cityscapes"),
        (("annotations/training", "images/training"), "ade20k"),
        (("images/ADE/training",), "ade20k"),
        (("images/train", "masks/train"), "mask_folder"),
    ],
)
def test_the_kind_is_told_from_the_folders(tmp_path, folders, kind):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(UserError) as by_itself:
        check(str(tmp_path))
    with pytest.raises(UserError) as by_name:
        check(str(tmp_path), kind=kind)
    assert str(by_itself.value) == str(by_name.value)  # that they are empty


def test_classes_are_asked_of_a_mask_folder_only(coco):
    with pytest.raises(UserError, match="--num-classes 3: goes with a mask_folder"):
        check(str(coco), num_classes=3)
