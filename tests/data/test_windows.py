"""Pictures as windows: every pixel is looked at, views are put together again, nothing depends on the batch."""

import itertools
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.data.conftest import picture, write_pairs
from torch import nn

from patchscale.config import build_config
from patchscale.data.datasets import load_splits
from patchscale.data.pairs import MOST_OF_ONE_CLASS, PairTransform, distorted
from patchscale.data.seeding import seeded
from patchscale.data.windows import Windows
from patchscale.errors import UserError
from patchscale.tasks.segmentation import SegmentationTask, averaged, merged
from patchscale.training.evaluate import evaluate

SLIDE = Windows(mode="slide", img_size=(16, 16), stride=2 / 3, flip=False, scales=(1.0,))


def windows(**fields) -> Windows:
    return Windows(**{**vars(SLIDE), **fields})


def rebuilt(of_picture: Image.Image, how: Windows) -> list[np.ndarray]:
    """Every view of a picture, put together from its windows as logits would be: three classes are its colours."""
    pixels, views = how(of_picture)
    as_logits = iter(torch.from_numpy(pixels).permute(0, 3, 1, 2).double().split([len(v.corners) for v in views]))
    return [merged(next(as_logits), view, how.img_size).permute(1, 2, 0).numpy() for view in views]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(3, 60), st.integers(3, 60), st.sampled_from([0.1, 0.5, 2 / 3, 1.0]), st.sampled_from([0.5, 1.0, 1.75])
)
def test_windows_cover_the_resized_picture_and_give_it_back(height, width, stride, scale):
    of_picture = picture(0, (height, width))
    how = windows(stride=stride, scales=(scale,), flip=True)
    _, views = how(of_picture)
    for view, given_back in zip(views, rebuilt(of_picture, how), strict=True):
        expected = np.asarray(of_picture.resize(view.size[::-1], Image.Resampling.BICUBIC))
        np.testing.assert_allclose(given_back, expected)
        assert max(view.size[0] - scale * 16, view.size[1] - scale * 16) >= -1
        for axis in (0, 1):
            starts = sorted({corner[axis] for corner in view.corners})
            assert all(second - first <= max(1, stride * 16) for first, second in itertools.pairwise(starts))
            assert starts[-1] == max(0, view.size[axis] - 16)


def test_a_whole_picture_is_one_squeezed_window():
    how = windows(mode="whole", flip=True)
    pixels, views = how(picture(0, (20, 40)))
    assert pixels.shape == (2, 16, 16, 3)
    assert [view.corners for view in views] == [((0, 0),), ((0, 0),)]
    np.testing.assert_array_equal(pixels[1], pixels[0][:, ::-1])


def test_the_average_of_views_is_that_of_probabilities():
    views = [torch.randn(1, 4, 3, 2, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    expected = torch.stack([view.softmax(dim=1) for view in views]).mean(dim=0)
    torch.testing.assert_close(averaged(views).exp(), expected)
    assert averaged(views[:1]) is views[0]


def test_views_are_held_one_at_a_time():
    """At full size those of one picture of ADE20K with six scales and mirror images take 4.7 GB."""
    held, most = [], []

    def views():
        for number in range(6):
            view = torch.full((1, 4, 3, 2), float(number))
            held.append(weakref.ref(view))
            most.append(sum(each() is not None for each in held))
            yield view
            del view

    averaged(views())
    assert max(most) <= 2


class Colours(nn.Module):
    """A backbone of one block whose tokens are the pixels of its patches of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity()])
        self.seen: list[int] = []

    def forward_feature_map(self, images):
        self.seen.append(len(images))
        return images


def measured(folder, batch_size: int, **data):
    values = {
        "task": "segmentation",
        "model": {"name": "vit_test", "patch_size": 4, "img_size": 16},
        "data": {"name": "mask_folder", "root": str(folder), "num_classes": 3, **data},
    }
    splits = load_splits(build_config(values))
    torch.manual_seed(0)
    task = SegmentationTask(Colours(), 3, num_features=3, ignore_index=255)
    outcome = evaluate(task, splits.test, batch_size=batch_size, device=torch.device("cpu"))
    return outcome, task.backbone, splits


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        write_pairs(tmp_path, part, count, size=(20, 50))
    write_pairs(tmp_path, "test", 3, size=(31, 23))
    return tmp_path


@pytest.mark.parametrize(
    "data",
    [
        {"eval_mode": "slide"},
        {"eval_mode": "slide", "eval_stride": 0.5, "eval_flip": True, "eval_scales": [0.75, 1.0, 1.5]},
        {"eval_mode": "whole", "eval_flip": True},
    ],
)
def test_every_labelled_pixel_of_the_original_masks_counts(folder, data):
    one, alone, splits = measured(folder, 1, **data)
    three, together, _ = measured(folder, 3, **data)
    assert set(three) == {"loss", "metric", "pixel_accuracy", "mean_accuracy", "class_iou", "class_accuracy"}
    assert three["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert three["metric"] == pytest.approx(one["metric"], abs=1e-9)
    assert max(alone.seen) == 1
    assert max(together.seen) <= 3  # as many windows at a time as pictures
    target = splits.test[0][1]
    assert target["label_map"].shape == (31, 23)
    assert int((target["label_map"] == 255).sum()) == 1


def test_a_picture_of_the_models_size_is_measured_alike_in_every_mode(tmp_path):
    """Of 16 x 16 pixels a crop, a window and the whole are the same picture."""
    for part in ("train", "val", "test"):
        write_pairs(tmp_path, part, 3, size=(16, 16))
    outcomes = [measured(tmp_path, 2, eval_mode=mode)[0] for mode in ("crop", "slide", "whole")]
    for other in outcomes[1:]:
        assert other["loss"] == pytest.approx(outcomes[0]["loss"], rel=1e-6)
        assert other["class_iou"] == pytest.approx(outcomes[0]["class_iou"])


def test_the_protocol_says_how(folder):
    said = [
        measured(folder, 1, **data)[2].record["eval_protocol"]
        for data in (
            {},
            {"eval_mode": "slide"},
            {"eval_mode": "slide", "eval_flip": True, "eval_scales": [0.5, 1.0]},
            {"eval_mode": "whole"},
        )
    ]
    assert said == [
        "centre crop of the whole shorter side",
        "sliding window, stride 0.667, 16x16 px; original masks",
        "sliding window, stride 0.667, 16x16 px, scales 0.5, 1, flip; original masks",
        "whole picture, squeezed, 16x16 px; original masks",
    ]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"eval_flip": True}, "data.eval_flip goes with data.eval_mode=whole or slide"),
        ({"eval_mode": "whole", "eval_scales": [0.5]}, "set data.eval_mode=slide"),
        ({"eval_mode": "crop", "eval_stride": 0.5}, "goes with data.eval_mode=slide"),
        ({"eval_scales": []}, "data.eval_scales"),
        ({"eval_stride": 1.5}, "data.eval_stride"),
    ],
)
def test_options_that_do_not_go_together(folder, data, said):
    with pytest.raises(UserError) as caught:
        measured(folder, 1, **data)
    assert said in str(caught.value)


def test_evaluation_options_and_jitter_are_for_label_maps_only():
    for data in ({"eval_mode": "slide"}, {"augment": "scale_jitter"}):
        with pytest.raises(UserError, match="pictures with label maps"):
            build_config({"task": "segmentation", "data": {"name": "scenes", **data}})


def test_older_runs_keep_their_identity():
    plain = build_config({"task": "segmentation", "data": {"name": "scenes"}})
    assert plain.identity == build_config({"task": "segmentation", "head": "linear", "data": plain.data}).identity
    assert plain.identity != build_config({"task": "segmentation", "head": "upernet", "data": plain.data}).identity


# Training: scale jitter


def gradient_pair(height: int, width: int) -> tuple[Image.Image, Image.Image]:
    """A picture whose red channel is the class, so that label map and picture must stay together."""
    rows, columns = np.mgrid[:height, :width]
    labels = (rows * 4 // height + 4 * (columns * 4 // width)).astype(np.uint8)
    pixels = np.stack([labels * 16, labels * 0, labels * 0], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels), Image.fromarray(labels)


@pytest.mark.parametrize("size", [(64, 96), (40, 200), (16, 16), (300, 120)])
def test_labels_stay_with_their_pixels(size, monkeypatch):
    monkeypatch.setattr("patchscale.data.pairs.distorted", lambda image: image)  # colours are the labels here
    transform = PairTransform(augment="scale_jitter", img_size=(32, 48), seed=3)
    shares = []
    for index in range(20):
        pixels, labels = transform(*gradient_pair(*size), 0, index)
        assert pixels.shape == (32, 48, 3)
        assert labels.shape == (32, 48)
        inside = labels != 255
        same = np.abs(pixels[..., 0].astype(int) - 16 * labels.astype(int))[inside] <= 8
        assert same.mean() > 0.7  # all but the blurred borders between classes
        np.testing.assert_array_equal(pixels[~inside].reshape(-1, 3), np.tile([124, 116, 104], ((~inside).sum(), 1)))
        shares.append(inside.mean())
    assert min(shares) < 0.9 < max(shares) == 1.0  # smaller than the window, and larger


def test_jitter_is_a_function_of_seed_epoch_and_index():
    pair = gradient_pair(50, 70)

    def drawn(seed: int, epoch: int, index: int) -> np.ndarray:
        return PairTransform(augment="scale_jitter", img_size=(32, 32), seed=seed)(*pair, epoch, index)[0]

    first = drawn(0, 1, 2)
    torch.rand(5)
    np.testing.assert_array_equal(drawn(0, 1, 2), first)
    assert not any(np.array_equal(drawn(*key), first) for key in ((1, 1, 2), (0, 2, 2), (0, 1, 3)))


def test_a_window_of_one_class_is_drawn_again():
    """One class fills nine tenths of the picture: most windows at random hold too much of it."""
    labels = np.zeros((40, 400), np.uint8)
    labels[:, 180:220] = 1
    pair = Image.fromarray(np.zeros((40, 400, 3), np.uint8)), Image.fromarray(labels)
    shares = []
    for index in range(60):
        drawn = PairTransform(augment="scale_jitter", img_size=(40, 40), seed=0)(*pair, 0, index)[1]
        drawn = drawn[drawn != 255]
        shares.append(np.bincount(drawn).max() / drawn.size)
    assert np.mean(np.array(shares) <= MOST_OF_ONE_CLASS) > 0.4  # of single draws about a tenth would be


def test_colours_change_and_stay_a_picture():
    original = picture(1, (24, 24))
    changed = []
    for index in range(30):
        with seeded("colours", index):
            changed.append(np.asarray(distorted(original)))
    assert {each.shape for each in changed} == {(24, 24, 3)}
    kept = sum(np.array_equal(each, np.asarray(original)) for each in changed)
    assert 0 <= kept < 10  # one in sixteen draws nothing
    assert len({each.tobytes() for each in changed}) > 15
