"""COCO's annotations: masks equal pycocotools', boxes are cut, gaps are closed, and what is wrong is named."""

import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as pycoco_mask

from patchscale.data.coco import list_coco
from patchscale.data.run_lengths import decode_masks, encode_masks, from_segmentation
from patchscale.errors import UserError

SIZE = (30, 40)
L_SHAPE = [[5, 5, 15, 5, 15, 20, 25, 20, 25, 25, 5, 25]]


def annotation(number, image, category=7, bbox=(5, 5, 20, 20), **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox), **more}


@pytest.fixture
def coco(tmp_path):
    """Make a data set of `pictures` of 40 x 30 px a part with these annotations; returns its root."""

    def make(*annotations, pictures=3, parts=("train2017", "val2017"), **changes):
        for part in parts:
            (tmp_path / part).mkdir(exist_ok=True)
            for number in range(pictures):
                Image.new("RGB", SIZE[::-1], (number, 0, 0)).save(tmp_path / part / f"{number}.png")
            values = {
                "images": [{"id": 10 + n, "file_name": f"{n}.png", "height": 30, "width": 40} for n in range(pictures)],
                "annotations": list(annotations),
                "categories": [{"id": 90, "name": "kite"}, {"id": 7, "name": "cat"}],
            } | changes
            (tmp_path / "annotations").mkdir(exist_ok=True)
            (tmp_path / "annotations" / f"instances_{part}.json").write_text(json.dumps(values))
        return tmp_path

    return make


def some_mask(seed=0):
    return (np.random.default_rng(seed).random(SIZE) < 0.3).astype(np.uint8)


def test_a_picture_with_its_objects(coco):
    uncompressed = {"size": list(SIZE), "counts": [100, 50, 1050]}
    compressed = pycoco_mask.encode(np.asfortranarray(some_mask()))
    compressed["counts"] = compressed["counts"].decode()
    root = coco(
        annotation(1, 11, segmentation=L_SHAPE, area=250.5),
        annotation(2, 11, 90, segmentation=uncompressed, iscrowd=1),
        annotation(3, 11, segmentation=compressed, area=3),
        annotation(4, 11, 90, bbox=(2.5, 3, 4, 6)),
    )
    data = list_coco(root)
    assert data.class_names == ["background", "cat", "kite"]  # by id, gaps closed
    train = data.parts["train"]
    assert [len(train.objects(index)) for index in range(3)] == [0, 4, 0]
    assert train.without_objects() == 2
    assert train.counts(data.class_names) == {"cat": 2, "kite": 2}
    objects = train.objects(1)
    assert train.picture(1).size == (40, 30)
    assert objects.labels.tolist() == [1, 2, 1, 2]
    assert objects.crowd.tolist() == [False, True, False, False]
    assert objects.boxes[3].tolist() == [2.5, 3, 6.5, 9]
    masks = decode_masks(objects.masks, SIZE)
    merged = pycoco_mask.merge(pycoco_mask.frPyObjects(L_SHAPE, *SIZE))
    assert np.array_equal(masks[0], pycoco_mask.decode(merged))
    assert masks[1].T.ravel().nonzero()[0].tolist() == list(range(100, 150))
    assert np.array_equal(masks[2], some_mask())
    assert masks[3][4:8, 3:6].all()  # without a segmentation it is the box
    assert masks[3].sum() <= 5 * 7
    assert objects.areas.tolist() == [250.5, 50, 3, masks[3].sum()]  # as annotated, else counted


def test_boxes_are_cut_at_the_border_and_empty_ones_counted(coco):
    root = coco(
        annotation(1, 10, bbox=(-5, 10, 20, 50), segmentation=L_SHAPE),
        annotation(2, 10, bbox=(40, 0, 5, 5)),
        annotation(3, 10, bbox=(4, 4, 0, 5)),
        annotation(4, 10, bbox=(9, 9, 5, -2)),
    )
    data = list_coco(root)
    assert data.parts["val"].objects(0).boxes.tolist() == [[0, 10, 15, 30]]
    assert data.empty_boxes == {"train": 3, "val": 3}
    assert data.without_masks == []
    assert list_coco(coco(annotation(1, 10))).without_masks == ["train", "val"]


def test_run_lengths_may_be_written_with_a_point(coco):
    runs, with_points = (
        {"size": list(SIZE), "counts": [100, 50, 1050]},
        {"size": [30.0, 40], "counts": [100.0, 50, 1050.0]},
    )
    text = encode_masks(some_mask()[None])[0]
    whole = list_coco(coco(annotation(1, 10, segmentation=runs), annotation(2, 10, segmentation=text))).parts["train"]
    text = text | {"size": [30.0, 40.0]}
    root = coco(annotation(1, 10, segmentation=with_points), annotation(2, 10, segmentation=text))
    found = list_coco(root).parts["train"]
    assert found.objects(0).masks == whole.objects(0).masks
    assert list(found.lines()) == list(whole.lines())


def test_polygons_of_two_points_are_left_out(coco):
    assert from_segmentation([[1, 1, 5, 5]], SIZE) is None
    both = from_segmentation([[1, 1, 5, 5], *L_SHAPE], SIZE)
    assert both == from_segmentation(L_SHAPE, SIZE)


@pytest.mark.parametrize("seed", range(20))
def test_compressed_run_lengths_are_read_as_pycocotools_writes_them(seed):
    draw = np.random.default_rng(seed)
    mask = (draw.random((7, 301)) < draw.choice([0, 0.001, 0.1, 0.5, 1])).astype(np.uint8)
    encoded = pycoco_mask.encode(np.asfortranarray(mask))
    text = {"size": [7, 301], "counts": encoded["counts"].decode()}
    assert from_segmentation(text, (7, 301)) == text  # its lengths add up
    assert np.array_equal(decode_masks([text], (7, 301))[0], mask)
    assert encode_masks(mask[None]) == [text]
    with pytest.raises(ValueError, match="breaks off within a number"):
        from_segmentation(text | {"counts": text["counts"] + "P"}, (7, 301))  # its sum is right
    if len(text["counts"]) > 2:
        with pytest.raises(ValueError, match="run lengths of"):
            from_segmentation(text | {"counts": text["counts"][:-2]}, (7, 301))


BROKEN_ANNOTATIONS = {
    "image_id 99 is not that of any image": annotation(5, 99),
    "category_id 1 is not that of any category": annotation(5, 10, 1),
    r"bbox \[1, 2, 3\] is no box; expected four numbers": annotation(5, 10, bbox=(1, 2, 3)),
    r"bbox \[1, 2, 3, nan\] is no box": annotation(5, 10, bbox=(1, 2, 3, float("nan"))),
    "segmentation is neither polygons nor run lengths": annotation(5, 10, segmentation="all of it"),
    r"image_id \[10\] is not that of any image": annotation(5, [10]),
    r"category_id {} is not that of any category": annotation(5, 10, {}),
    r"bbox \[True, 2, 3, 4\] is no box": annotation(5, 10, bbox=(True, 2, 3, 4)),
    r"bbox \[1, 2, 10+, 4\] is no box": annotation(5, 10, bbox=(1, 2, 10**400, 4)),
    "area 'large' is no number of pixels": annotation(5, 10, area="large"),
    "area nan is no number of pixels": annotation(5, 10, area=float("nan")),
    "area -3 is no number of pixels": annotation(5, 10, area=-3),
    "iscrowd '0' is neither 0 nor 1": annotation(5, 10, iscrowd="0"),
    r"segmentation is no list of polygons; expected \[\[x1": annotation(5, 10, segmentation=L_SHAPE[0]),
    "segmentation is no list of polygons": annotation(5, 10, segmentation=[[[5, 5], [15, 5], [15, 20]]]),
    "segmentation is no list of polygons;": annotation(5, 10, segmentation=[{"size": [30, 40], "counts": [1200]}]),
    "segmentation is no list of polygons; ": annotation(5, 10, segmentation=[[None] * 6]),
    "a polygon of 7 numbers; expected x and y": annotation(5, 10, segmentation=[[5, 5, 15, 5, 15, 20, 7]]),
    "a polygon with coordinates that are none in pixels": annotation(5, 10, segmentation=[[1e12, 5, 15, 5, 15, 20]]),
    r"a polygon with coordinates .*beyond": annotation(5, 10, segmentation=[[5, float("nan"), 15, 5, 15, 20]]),
    "run lengths need size": annotation(5, 10, segmentation={"size": [30, 40]}),
    r"run lengths need size \(height": annotation(5, 10, segmentation={"size": "all", "counts": [1200]}),
    "run lengths need size .* whole numbers": annotation(5, 10, segmentation={"size": [30, 40], "counts": [0.5]}),
    "run lengths need size .* and counts": annotation(5, 10, segmentation={"size": [30, 40.5], "counts": [1200]}),
    "run lengths need size .* COCO's text": annotation(5, 10, segmentation={"size": [30, 40], "counts": [1e300, 1.0]}),
}


@pytest.mark.parametrize("words", BROKEN_ANNOTATIONS)
def test_a_broken_annotation_is_named(coco, words):
    with pytest.raises(UserError, match=f"instances_train2017.json: annotation 5: {words}"):
        list_coco(coco(BROKEN_ANNOTATIONS[words]))


def images(**changes):
    return {"images": [{"id": 1, "file_name": "0.png", "height": 30, "width": 40} | changes]}


BROKEN_FILES = {
    r"image with the id '\[1\]'; expected a number or a text": images(id=[1]),
    "image 1: file_name 5 is no name of a file": images(file_name=5),
    "image 1: height '30' is no number of pixels": images(height="30"),
    "image 1: height 30.5 is no number of pixels": images(height=30.5),
    "image 1: width 0 is no number of pixels": images(width=0),
    r"image 1: width 1e\+300 is no number of pixels": images(width=1e300),
    "images 1 and 2 are both 0.png": {"images": images()["images"] + images(id=2)["images"]},
    "ids of categories are numbers and texts": {"categories": [{"id": 1}, {"id": "1"}]},
    "categories 3 and 7 are both named 'cat'": {"categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "cat"}]},
    "two image entries have the id 1": {"images": 2 * [{"id": 1, "file_name": "0.png", "height": 30, "width": 40}]},
    "image without 'width'": {"images": [{"id": 1, "file_name": "0.png", "height": 30}]},
    "two category entries have the id 3": {"categories": [{"id": 3}, {"id": 3}]},
    "no images in it": {"images": []},
    "no categories in it": {"categories": []},
    "cannot be read as COCO annotations": {"annotations": None},
    r"train2017/5.png and 1 more: no such picture": {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 30, "width": 40} for n in (1, 5, 6)]
    },
}


@pytest.mark.parametrize("words", BROKEN_FILES)
def test_a_broken_file_is_named(coco, words):
    with pytest.raises(UserError, match=words):
        list_coco(coco(**BROKEN_FILES[words]))


def test_reading_takes_little_more_than_the_file(coco):
    """COCO's own has half a gigabyte: as lists of floats its coordinates would take three times that."""
    outline = np.random.default_rng(0).uniform(0, 30, 400).round(2).tolist()
    root = coco(*(annotation(n, 10 + n % 3, segmentation=[outline]) for n in range(1000)), parts=("train2017",))
    file_bytes = (root / "annotations" / "instances_train2017.json").stat().st_size
    tracemalloc.start()
    try:
        data = list_coco(root)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4.5 * file_bytes
    assert kept < 2 * file_bytes
    assert len(data.parts["train"].take(np.array([2, 0])).objects(1)) == 334  # of picture 0


def test_polygons_of_two_points_are_no_masks_of_their_own(coco):
    coco(parts=("val2017",))  # without objects there is nothing to miss
    root = coco(annotation(1, 10, segmentation=[[1, 1, 5, 5]]), parts=("train2017",))
    assert list_coco(root).without_masks == ["train"]


def test_what_is_not_there_is_named(coco, tmp_path):
    with pytest.raises(UserError, match=r"annotations: no such folder; expected .*instances_train2017.json"):
        list_coco(tmp_path)
    coco(parts=("val2017",))
    with pytest.raises(UserError, match="no annotations for training in it"):
        list_coco(tmp_path)
    coco(parts=("train",))
    (tmp_path / "annotations" / "instances_train.json").write_text('{"images": [')
    with pytest.raises(UserError, match=r"instances_train.json: cannot be read as COCO annotations"):
        list_coco(tmp_path)
    coco(parts=("train",))
    coco(parts=("train2017",))
    with pytest.raises(UserError, match=r"a second file for train, beside instances_train.json; keep one"):
        list_coco(tmp_path)
    (tmp_path / "annotations" / "instances_train2017.json").rename(tmp_path / "annotations" / "instances_all.json")
    with pytest.raises(UserError, match="'all' begins with none of train, val, test"):
        list_coco(tmp_path)


def test_parts_must_have_the_same_categories(coco):
    coco(parts=("train2017",))
    root = coco(parts=("val2017",), categories=[{"id": 7, "name": "dog"}, {"id": 90, "name": "kite"}])
    with pytest.raises(UserError, match=r"instances_val2017.json: its categories are not those of"):
        list_coco(root)


def test_what_does_not_fit_a_picture_is_named_when_it_is_read(coco):
    wrong = {"size": [40, 30], "counts": [0, 1200]}
    short = {"size": list(SIZE), "counts": [0, 1100]}
    root = coco(annotation(3, 10, segmentation=wrong), annotation(4, 11, segmentation=short))
    train = list_coco(root).parts["train"]
    with pytest.raises(UserError, match=r"0.png: annotation 3: run lengths for \[40, 30\] px"):
        train.objects(0)
    with pytest.raises(UserError, match="annotation 4: run lengths of 1100 pixels, the picture has 1200"):
        train.objects(1)
    Image.new("RGB", (30, 40)).save(root / "train2017" / "2.png")
    with pytest.raises(UserError, match=r"2.png: 30x40 px, its annotation says 40x30"):
        train.picture(2)


def test_the_fingerprint_tells_other_annotations(coco):
    one = list(list_coco(coco(annotation(1, 10))).parts["train"].lines())
    other = list(list_coco(coco(annotation(1, 10, bbox=(5, 5, 20, 19)))).parts["train"].lines())
    assert [a == b for a, b in zip(one, other, strict=True)] == [False, True, True]


def test_the_fingerprint_is_that_of_former_runs(coco):
    """Another way of computing it would refuse to go on with runs, and say that their data has changed."""
    masks = ({}, {"segmentation": L_SHAPE, "area": 250.5}, {"segmentation": {"size": list(SIZE), "counts": [0, 1200]}})
    crowd = annotation(4, 10, 90, segmentation={"size": list(SIZE), "counts": "l2b2"}, iscrowd=1)
    root = coco(*(annotation(n, 10, **mask) for n, mask in enumerate(masks)), crowd)
    assert list(list_coco(root).parts["train"].take(np.array([0, 2])).lines()) == [
        "0.png\t581dcf6b25c8a7c05429856e739c7886",
        "2.png\tcae66941d9efbd404e4d88758ea67670",
    ]
