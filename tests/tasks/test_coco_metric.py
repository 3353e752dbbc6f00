"""COCO's numbers equal those of pycocotools, with crowds, empty pictures and nothing found."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as pycoco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from patchscale.data.run_lengths import encode_masks
from patchscale.tasks.coco_metric import NUMBERS, CocoMetric

SIZE = (160, 200)


def some_boxes(random, number):
    corners = random.uniform(0, 150, (number, 2)) * random.random((number, 1)) * [1, 0.8]
    sides = np.exp(random.uniform(np.log(4), np.log(200), (number, 2)))
    return np.concatenate([corners, np.minimum(corners + sides, [SIZE[1], SIZE[0]])], axis=1)


def ellipses(boxes):
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    masks = np.zeros((len(boxes), *SIZE), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[((columns - (x1 + x2) / 2) / (x2 - x1) * 2) ** 2 + ((rows - (y1 + y2) / 2) / (y2 - y1) * 2) ** 2 <= 1] = 1
    return masks


def picture(random):
    """Objects and detections that are more or less where objects are."""
    number = int(random.choice([0, 1, 2, 3, 6]))
    boxes, labels = some_boxes(random, number), random.integers(1, 5, number)
    masks = ellipses(boxes)
    copies = random.integers(0, number, random.integers(0, 8)) if number else np.zeros(0, int)
    moved = boxes[copies] + random.normal(0, 1.5, (len(copies), 4))
    stray = some_boxes(random, int(random.integers(0, 3)))
    found = np.concatenate([np.sort(moved.reshape(-1, 2, 2), axis=1).reshape(-1, 4), stray])
    found = np.clip(found, 0, [SIZE[1], SIZE[0], SIZE[1], SIZE[0]])
    found[:, 2:] += 1  # none is empty
    found_labels = np.concatenate([labels[copies], random.integers(1, 5, len(stray))])
    return {
        "size": SIZE,
        "boxes": boxes,
        "labels": labels,
        "masks": encode_masks(masks),
        "crowd": random.random(number) < 0.15,
        "areas": masks.sum((1, 2)),
        "found_boxes": found,
        "found_labels": found_labels,
        "found_scores": random.random(len(found)),
        "found_masks": encode_masks(ellipses(found)),
    }


def by_pycocotools(pictures, kind):
    images, objects, detections = [], [], []
    for number, one in enumerate(pictures, 1):
        images.append({"id": number, "height": SIZE[0], "width": SIZE[1]})
        for box, label, mask, crowd, area in zip(
            *(one[name] for name in ("boxes", "labels", "masks", "crowd", "areas")), strict=True
        ):
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": number,
                    "category_id": int(label),
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "segmentation": mask,
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
        for box, label, score, mask in zip(
            *(one[f"found_{name}"] for name in ("boxes", "labels", "scores", "masks")), strict=True
        ):
            place = {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
            shape = place if kind == "bbox" else {"segmentation": mask}
            detections.append({"image_id": number, "category_id": int(label), "score": float(score), **shape})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": images, "annotations": objects, "categories": [{"id": n} for n in range(1, 5)]}
        truth.createIndex()
        comparison = COCOeval(truth, truth.loadRes(detections), kind)
        comparison.evaluate()
        comparison.accumulate()
        comparison.summarize()
    return comparison.stats


def test_500_random_pictures_agree_with_pycocotools_to_five_digits():
    random = np.random.default_rng(0)
    pictures = [picture(random) for _ in range(500)]
    assert any(one["crowd"].any() for one in pictures)
    assert any(len(one["boxes"]) == 0 and len(one["found_boxes"]) for one in pictures)
    assert any(len(one["boxes"]) and not len(one["found_boxes"]) for one in pictures)
    metric = CocoMetric()
    for one in pictures:
        metric.add(**one)
    found = metric.compute()
    for kind, coco_kind in (("box", "bbox"), ("mask", "segm")):
        expected = by_pycocotools(pictures, coco_kind)
        assert [found[f"{kind}_{name}"] for name in NUMBERS] == pytest.approx(list(expected), abs=5e-6)
        assert min(expected) > 0
        assert 0.1 < found[f"{kind}_ap"] < 0.9

    # In two parts, put together: as when two processes evaluate.
    first, second = CocoMetric(), CocoMetric()
    for number, one in enumerate(pictures):
        (first if number % 2 else second).add(**one)
    first.merge(second)
    assert first.compute() == pytest.approx(found, abs=5e-6)


def test_masks_are_encoded_as_pycocotools_does():
    random = np.random.default_rng(1)
    masks = (random.random((5, 13, 17)) < 0.4).astype(np.uint8)
    for mask, rle in zip(masks, encode_masks(masks), strict=True):
        assert rle == {"size": [13, 17], "counts": pycoco_mask.encode(np.asfortranarray(mask))["counts"].decode()}
    assert encode_masks(np.zeros((0, 4, 4), np.uint8)) == []


def test_nothing_found_is_zero_and_nothing_there_is_none():
    random = np.random.default_rng(0)
    full = next(one for one in iter(lambda: picture(random), None) if len(one["boxes"]) and not one["crowd"].any())
    empty = {name: value[:0] for name, value in full.items() if name != "size"} | {"size": SIZE}
    blind = CocoMetric()
    blind.add(**full | {name: value for name, value in empty.items() if name.startswith("found_")})
    assert blind.compute()["box_ap"] == 0
    assert blind.compute()["mask_ar100"] == 0
    nothing = CocoMetric()
    nothing.add(**empty)
    assert set(nothing.compute().values()) == {None}
    with pytest.raises(ValueError, match="no images were evaluated"):
        CocoMetric().compute()


def test_boxes_alone_have_no_masks():
    random = np.random.default_rng(0)
    boxes_alone, both = CocoMetric(with_masks=False), CocoMetric()
    for one in (picture(random) for _ in range(40)):
        both.add(**one)
        boxes_alone.add(**{name: value for name, value in one.items() if name != "found_masks"})
    expected = {name: value for name, value in both.compute().items() if name.startswith("box_")}
    assert boxes_alone.compute() == expected
    assert expected["box_ap"] > 0
