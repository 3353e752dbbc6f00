"""Every layout that is accepted, and every mistake named with its file."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchscale.data.datasets import load_splits
from patchscale.data.folders import list_image_folder, read_label_map, read_rgb
from patchscale.errors import UserError

from .conftest import MakeConfig, picture, write_classes, write_pairs

FOUR = {"cat": 8, "dog": 4}


def paths_of(splits, split: str) -> list[str]:
    return getattr(splits, split).source.files.pictures


@pytest.mark.parametrize(
    ("parts", "counts", "rule"),
    [
        (("train", "val", "test"), (12, 12, 12), "as published"),
        (("train", "val"), (9, 3, 12), "val is 0.25 of the published train, test is the published val"),
        (("train", "test"), (9, 3, 12), "val is 0.25 of the published train, test is the published test"),
        (("train",), (6, 3, 3), "val and test are 0.25 of all images each"),
        ((".",), (6, 3, 3), "val and test are 0.25 of all images each"),
    ],
)
def test_layouts(tmp_path: Path, make_config: MakeConfig, parts: tuple[str, ...], counts, rule: str) -> None:
    for number, part in enumerate(parts):
        write_classes(tmp_path / part, FOUR, seed=100 * number)
    splits = load_splits(make_config(name="image_folder", root=str(tmp_path), val_fraction=0.25))
    assert tuple(splits.record["images"].values()) == counts
    assert splits.record["split_rule"] == rule
    assert splits.class_names == ["cat", "dog"]
    everything = [path for split in ("train", "val", "test") for path in paths_of(splits, split)]
    assert len(everything) == len(set(everything)) == 12 * len(parts)
    for split in ("train", "val", "test"):
        counted = splits.record["class_counts"][split]
        assert counted["cat"] == 2 * counted["dog"]
        for index, path in enumerate(paths_of(splits, split)):
            key = (0, index) if split == "train" else index
            assert splits.class_names[getattr(splits, split)[key][1]] == Path(path).parent.name


def test_nested_and_foreign_files(tmp_path: Path, make_config: MakeConfig) -> None:
    write_classes(tmp_path / "train", FOUR)
    (tmp_path / "train/cat/more/deep").mkdir(parents=True)
    shutil.copy(tmp_path / "train/cat/000.png", tmp_path / "train/cat/more/deep/A.PNG")
    (tmp_path / "train/cat/notes.txt").write_text("not a picture")
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/cat/.DS_Store").write_text("")
    (tmp_path / "README").write_text("")
    parts, _, ignored = list_image_folder(tmp_path)
    assert "train/cat/more/deep/A.PNG" in parts["train"].pictures
    assert len(parts["train"].pictures) == 13
    assert ignored == 1
    assert load_splits(make_config(name="image_folder", root=str(tmp_path))).record["ignored_files"] == 1


def test_the_fingerprint_follows_the_files(tmp_path: Path, make_config: MakeConfig) -> None:
    write_classes(tmp_path, FOUR)
    config = make_config(name="image_folder", root=str(tmp_path))
    before = load_splits(config).record["fingerprint"]
    assert load_splits(config).record["fingerprint"] == before
    moved = tmp_path.with_name("elsewhere")
    tmp_path.rename(moved)
    assert load_splits(make_config(name="image_folder", root=str(moved))).record["fingerprint"] == before
    (moved / "cat/000.png").rename(moved / "cat/zzz.png")
    assert load_splits(make_config(name="image_folder", root=str(moved))).record["fingerprint"] != before


def test_limits_are_stratified(tmp_path: Path, make_config: MakeConfig) -> None:
    write_classes(tmp_path, {"cat": 20, "dog": 10})
    splits = load_splits(make_config(name="image_folder", root=str(tmp_path), train_images=6, test_images=3))
    assert splits.record["class_counts"]["train"] == {"cat": 4, "dog": 2}
    assert splits.record["class_counts"]["test"] == {"cat": 2, "dog": 1}


def empty_class(root: Path) -> None:
    (root / "train/empty").mkdir()


def only_in_val(root: Path) -> None:
    write_classes(root / "val", {"cat": 1, "fox": 1})


def no_train(root: Path) -> None:
    (root / "train").rename(root / "test")


def no_classes(root: Path) -> None:
    shutil.rmtree(root / "train")
    (root / "train").mkdir()


def one_class(root: Path) -> None:
    shutil.rmtree(root / "train/dog")


def unknown_part(root: Path) -> None:
    write_classes(root / "valid", FOUR)


def same_folder_twice(root: Path) -> None:
    (root / "val").symlink_to(root / "train")


def gone(root: Path) -> None:
    shutil.rmtree(root)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty_class, r"train/empty: no images in this class folder; add some \(.jpg, .*\) or remove it"),
        (only_in_val, r"val/fox: class 'fox' is in val but not in train; remove it or add training images"),
        (no_train, r"there is test/ but no train/ in it; add the training images"),
        (no_classes, r"train: no class folders in it; expected .*train/<class>/<image>"),
        (one_class, r"train: only one class \('cat'\); classification needs two or more"),
        (unknown_part, r"valid: not the name of a part; rename it to val"),
        (same_folder_twice, r"are this same folder; test must not overlap train"),
        (gone, r"no such folder; data.root must name the folder of the data set"),
    ],
)
def test_mistakes_in_class_folders(tmp_path: Path, make_config: MakeConfig, spoil, message: str) -> None:
    root = tmp_path / "data"
    write_classes(root / "train", FOUR)
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        load_splits(make_config(name="image_folder", root=str(root)))
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_without_training_images_left(tmp_path: Path, make_config: MakeConfig) -> None:
    write_classes(tmp_path, {"cat": 30, "dog": 10, "emu": 1})
    with pytest.raises(UserError, match="no training image is left of class"):
        load_splits(make_config(name="image_folder", root=str(tmp_path), train_images=2))
    with pytest.raises(UserError, match=r"data.train_images=500, but the split has 33"):
        load_splits(make_config(name="image_folder", root=str(tmp_path), train_images=500))


def test_damaged_pictures_are_named_when_they_are_read(tmp_path: Path, make_config: MakeConfig) -> None:
    write_classes(tmp_path / "train", FOUR)
    write_classes(tmp_path / "test", FOUR)
    splits = load_splits(make_config(name="image_folder", root=str(tmp_path)))
    whole = (tmp_path / "test/cat/000.png").read_bytes()
    for content in (b"", b"not a picture", whole[: len(whole) // 2]):
        (tmp_path / "test/cat/000.png").write_bytes(content)
        with pytest.raises(UserError, match=r"test/cat/000.png: cannot be decoded as an image \(.+\); replace it"):
            splits.test[0]
    (tmp_path / "test/cat/000.png").unlink()
    with pytest.raises(UserError, match=r"test/cat/000.png: cannot be decoded"):
        splits.test[0]
    splits.test[1]


def test_truncated_jpeg(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture(0, (200, 200)).save(buffer, "jpeg")
    (tmp_path / "x.jpg").write_bytes(buffer.getvalue()[:-500])
    with pytest.raises(UserError, match=r"x.jpg: cannot be decoded as an image \(.*truncated.*\)"):
        read_rgb(tmp_path / "x.jpg")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "YCbCr"])
def test_every_common_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str) -> None:
    original = picture(0).convert(mode)
    path = tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.png")
    original.save(path, **({"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}))
    out = read_rgb(path)
    assert out.mode == "RGB"
    difference = np.abs(np.asarray(out).astype(int) - np.asarray(original.convert("RGB")).astype(int))
    assert difference.max() <= (0 if path.suffix == ".png" else 12)


def test_exif_orientation_is_ignored_as_in_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets.folder import default_loader

    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, (20, 30)).save(tmp_path / "x.jpg", exif=exif)
    assert read_rgb(tmp_path / "x.jpg").size == (30, 20)
    np.testing.assert_array_equal(
        np.asarray(read_rgb(tmp_path / "x.jpg")), np.asarray(default_loader(str(tmp_path / "x.jpg")))
    )


def test_sixteen_bit_pictures_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"deep.png: I;16 picture of more than 8 bits; convert it"):
        read_rgb(tmp_path / "deep.png")


@pytest.mark.parametrize(
    ("parts", "counts"),
    [
        (("train", "val", "test"), (8, 8, 8)),
        (("train", "val"), (6, 2, 8)),
        (("train",), (4, 2, 2)),
    ],
)
def test_mask_layouts(tmp_path: Path, make_config: MakeConfig, parts: tuple[str, ...], counts) -> None:
    for part in parts:
        write_pairs(tmp_path, part, 8)
    splits = load_splits(
        make_config(
            task="segmentation",
            name="mask_folder",
            root=str(tmp_path),
            num_classes=3,
            val_fraction=0.25,
            augment="crop",
        )
    )
    assert tuple(splits.record["images"].values()) == counts
    assert (splits.num_classes, splits.ignore_index) == (3, 255)


def test_masks_are_resized_without_new_labels_and_stay_aligned(tmp_path: Path, make_config: MakeConfig) -> None:
    """Left half class 0 and black, right half class 7 and white, at another size and aspect than the model's."""
    for kind in ("images", "masks"):
        (tmp_path / kind / "train/city").mkdir(parents=True)
    labels = np.zeros((40, 90), np.uint8)
    labels[:, 45:] = 7
    for k in range(6):
        Image.fromarray(np.repeat(labels[..., None] * 36, 3, 2)).save(tmp_path / f"images/train/city/{k}.bmp")
        Image.fromarray(labels).save(tmp_path / f"masks/train/city/{k}.png")
    splits = load_splits(
        make_config(
            task="segmentation", name="mask_folder", root=str(tmp_path), num_classes=8, val_fraction=0.2, augment="crop"
        )
    )
    image, label_map = splits.test[0]
    assert label_map.unique().tolist() == [0, 7]
    assert (label_map == 7).float().mean() == 0.5
    for epoch in range(20):
        image, label_map = splits.train[epoch, 0]
        bright = image[0] > 0.2
        assert (bright == (label_map == 7)).float().mean() > 0.93


def no_mask(root: Path) -> None:
    (root / "masks/train/3.png").unlink()


def label_too_large(root: Path) -> None:
    Image.fromarray(np.full((20, 24), 3, np.uint8)).save(root / "masks/train/3.png")


def negative_label(root: Path) -> None:
    Image.fromarray(np.full((20, 24), -1, np.int32)).save(root / "masks/train/3.png", format="TIFF")


def other_size(root: Path) -> None:
    Image.fromarray(np.zeros((24, 20), np.uint8)).save(root / "masks/train/3.png")


def colours(root: Path) -> None:
    picture(0).save(root / "masks/train/3.png")


def fractions(root: Path) -> None:
    Image.fromarray(np.full((20, 24), 1.5, np.float32)).save(root / "masks/train/3.png", format="TIFF")


def no_number(root: Path) -> None:
    Image.fromarray(np.full((20, 24), np.nan, np.float32)).save(root / "masks/train/3.png", format="TIFF")


def damaged_mask(root: Path) -> None:
    path = root / "masks/train/3.png"
    path.write_bytes(path.read_bytes()[:-40])


def no_masks(root: Path) -> None:
    shutil.rmtree(root / "masks")


def flat(root: Path) -> None:
    (root / "images/train").rename(root / "images/all")


def twins(root: Path) -> None:
    shutil.copy(root / "images/train/3.jpg", root / "images/train/3.png")


def no_pictures(root: Path) -> None:
    shutil.rmtree(root / "images/train")
    (root / "images/train").mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_mask, r"images/train/3.jpg: it has no label map; expected .*masks/train/3.png"),
        (label_too_large, r"masks/train/3.png: label 3 in it; with data.num_classes=3 labels are 0 to 2, and 255 for"),
        (negative_label, r"masks/train/3.png: label -1 in it"),
        (other_size, r"masks/train/3.png: label map of 20x24 px for an image of 24x20 px; they must be the same"),
        (colours, r"masks/train/3.png: RGB file as a label map; expected one channel that holds the class"),
        (fractions, r"masks/train/3.png: 1.5 in it; labels are whole numbers, one for each class"),
        (no_number, r"masks/train/3.png: nan in it; labels are whole numbers"),
        (damaged_mask, r"masks/train/3.png: cannot be decoded as an image"),
        (no_masks, r"masks: no such folder; expected images/train/x.jpg with masks/train/x.png"),
        (flat, r"images/train: no such folder; expected images/train/x.jpg"),
        (twins, r"masks/train/3.png: two images share this label map; give them different names"),
        (no_pictures, r"images/train: no images in it"),
    ],
)
def test_mistakes_in_mask_folders(tmp_path: Path, make_config: MakeConfig, spoil, message: str) -> None:
    write_pairs(tmp_path, "train", 6)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        splits = load_splits(make_config(task="segmentation", name="mask_folder", root=str(tmp_path), num_classes=3))
        for dataset in (splits.train, splits.val, splits.test):
            for index in range(len(dataset)):
                dataset[(0, index) if dataset is splits.train else index]
    assert "\n" not in str(caught.value)


def test_palette_label_maps_are_read_by_number(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    indexed = Image.fromarray(labels, "P")
    indexed.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    indexed.save(tmp_path / "m.png")
    np.testing.assert_array_equal(np.asarray(read_label_map(tmp_path / "m.png", (2, 2), 3)), labels)


def test_masks_without_a_picture_are_counted(tmp_path: Path, make_config: MakeConfig) -> None:
    write_pairs(tmp_path, "train", 6)
    (tmp_path / "images/train/5.jpg").unlink()
    (tmp_path / "masks/train/notes.txt").write_text("")
    config = make_config(task="segmentation", name="mask_folder", root=str(tmp_path), num_classes=3)
    assert load_splits(config).record["ignored_files"] == 2


def test_more_classes_than_a_label_map_can_hold(tmp_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"data.num_classes=300: at most 255, as label 255 is ignored"):
        load_splits(make_config(task="segmentation", name="mask_folder", root=str(tmp_path), num_classes=300))


def test_hidden_folders_are_not_read(tmp_path: Path, make_config: MakeConfig) -> None:
    write_classes(tmp_path, FOUR)
    before = load_splits(make_config(name="image_folder", root=str(tmp_path))).record["fingerprint"]
    write_classes(tmp_path / "cat", {".ipynb_checkpoints": 3})
    assert load_splits(make_config(name="image_folder", root=str(tmp_path))).record["fingerprint"] == before
