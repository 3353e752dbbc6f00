"""Hugging Face data sets as the library itself writes them."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchscale.data.datasets import load_splits
from patchscale.errors import UserError
from patchscale.training.device import resolve_device
from patchscale.training.setup import set_up

from .conftest import MakeConfig, picture, write_classes

datasets = pytest.importorskip("datasets")


def content_of(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "png")
    return buffer.getvalue()


def table(count: int, seed: int = 0, *, names: list[str] | None = None, image: str = "image", label: str = "label"):
    """Pictures of two classes in turn."""
    kind = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    return datasets.Dataset.from_dict(
        {
            image: [{"bytes": content_of(seed + k), "path": None} for k in range(count)],
            label: [k % 2 for k in range(count)],
            "caption": ["words"] * count,
        },
        features=datasets.Features({image: datasets.Image(), label: kind, "caption": datasets.Value("string")}),
    )


@pytest.mark.parametrize(
    ("splits", "counts", "rule"),
    [
        (("train", "validation", "test"), (12, 4, 6), "as published"),
        (("train", "validation"), (9, 3, 4), "val is 0.25 of the published train, test is the published val"),
        (("train",), (6, 3, 3), "val and test are 0.25 of all images each"),
    ],
)
@pytest.mark.parametrize("kind", ["save_to_disk", "parquet"])
def test_layouts(tmp_path: Path, make_config: MakeConfig, kind: str, splits, counts, rule: str) -> None:
    sizes = {"train": 12, "validation": 4, "test": 6}
    tables = {name: table(sizes[name], 100 * k, names=["cat", "dog"]) for k, name in enumerate(splits)}
    root = tmp_path / "data"
    if kind == "save_to_disk":
        (tables["train"] if len(splits) == 1 else datasets.DatasetDict(tables)).save_to_disk(root)
    else:
        root.mkdir()
        for name, rows in tables.items():
            rows.to_parquet(root / f"{name}-00000-of-00001.parquet")
    loaded = load_splits(make_config(name="hf_dataset", root=str(root), val_fraction=0.25, augment="none"))
    assert tuple(loaded.record["images"].values()) == counts
    assert loaded.record["split_rule"] == rule
    assert loaded.class_names == ["cat", "dog"]
    for split in ("train", "val", "test"):
        files = getattr(loaded, split).source.files
        for index, row in enumerate(files.indices.tolist()):
            seed = 100 * splits.index({"val": "validation"}.get(files.part, files.part)) + row
            assert files.content(index) == content_of(seed)
            assert getattr(loaded, split)[(0, index) if split == "train" else index][1] == row % 2


def test_a_table_of_the_pictures_of_a_folder_is_read_as_the_folder(tmp_path: Path, make_config: MakeConfig) -> None:
    write_classes(tmp_path / "folder/train", {"cat": 6, "dog": 6})
    write_classes(tmp_path / "folder/test", {"cat": 2, "dog": 2}, seed=50)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "folder"), cache_dir=str(tmp_path / "cache"))
    loaded.save_to_disk(tmp_path / "saved")
    of_folder = load_splits(make_config(name="image_folder", root=str(tmp_path / "folder")))
    of_table = load_splits(make_config(name="hf_dataset", root=str(tmp_path / "saved")))
    assert of_table.class_names == of_folder.class_names
    for index in range(4):
        for a, b in zip(of_folder.test[index], of_table.test[index], strict=True):
            assert torch.equal(a, b)


def test_columns_are_found_or_named(tmp_path: Path, make_config: MakeConfig) -> None:
    table(12, image="jpg", label="fine").to_parquet(tmp_path / "one/data.parquet")
    assert load_splits(make_config(name="hf_dataset", root=str(tmp_path / "one"))).class_names == ["0", "1"]
    rows = table(12).add_column("coarse", [0] * 6 + [1] * 6)
    rows.to_parquet(tmp_path / "two/train.parquet")
    root = {"name": "hf_dataset", "root": str(tmp_path / "two")}
    with pytest.raises(UserError, match=r"several columns could be meant: label, coarse; name one with data.label_col"):
        load_splits(make_config(**root))
    coarse = load_splits(make_config(**root, label_column="coarse"))
    fine = load_splits(make_config(**root, label_column="label"))
    assert coarse.record["fingerprint"] != fine.record["fingerprint"]
    with pytest.raises(
        UserError, match=r"no column 'kind' for data.label_column; there are image, label, caption, coa"
    ):
        load_splits(make_config(**root, label_column="kind"))
    with pytest.raises(UserError, match=r"column 'caption' holds no classes \(whole numbers\); name another"):
        load_splits(make_config(**root, label_column="caption"))
    with pytest.raises(UserError, match=r"column 'coarse' holds no pictures"):
        load_splits(make_config(**root, label_column="label", image_column="coarse"))


def test_mistakes_are_named(tmp_path: Path, make_config: MakeConfig) -> None:
    def load(root: Path):
        return load_splits(make_config(name="hf_dataset", root=str(root)))

    with pytest.raises(UserError, match=r"nowhere: no such folder; data.root must name one of save_to_disk"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: neither a folder of save_to_disk nor parquet files"):
        load(tmp_path / "empty")
    datasets.DatasetDict({"test": table(4)}).save_to_disk(tmp_path / "no_train")
    with pytest.raises(UserError, match=r"no_train: there is no train split in it, only test"):
        load(tmp_path / "no_train")
    datasets.DatasetDict({"train": table(4), "more": table(4)}).save_to_disk(tmp_path / "more")
    with pytest.raises(UserError, match=r"more: split 'more'; expected train"):
        load(tmp_path / "more")
    datasets.DatasetDict(
        {"train": table(8, names=["cat", "dog"]), "test": table(4, names=["dog", "cat"])}
    ).save_to_disk(tmp_path / "swapped")
    with pytest.raises(UserError, match=r"swapped, test: classes differ from those of train"):
        load(tmp_path / "swapped")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/train.parquet").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"broken: parquet files that cannot be loaded"):
        load(tmp_path / "broken")
    unlabelled = table(4).map(lambda row: {"label": -1})
    datasets.DatasetDict({"train": table(8), "test": unlabelled}).save_to_disk(tmp_path / "unlabelled")
    with pytest.raises(UserError, match=r"unlabelled, test: label -1 in column 'label'; classes are 0 to 1"):
        load(tmp_path / "unlabelled")


def test_damaged_and_odd_pictures(tmp_path: Path, make_config: MakeConfig) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated, cmyk = io.BytesIO(), io.BytesIO()
    picture(0, (20, 30)).save(rotated, "jpeg", exif=exif)
    picture(0).convert("CMYK").save(cmyk, "jpeg")
    contents = [content_of(0)[:100], rotated.getvalue(), cmyk.getvalue(), None]
    test = datasets.Dataset.from_dict(
        {"image": [content and {"bytes": content, "path": None} for content in contents], "label": [0, 1, 0, 1]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    datasets.DatasetDict({"train": table(8), "test": test}).save_to_disk(tmp_path / "data")
    files = load_splits(make_config(name="hf_dataset", root=str(tmp_path / "data"))).test.source.files
    with pytest.raises(UserError, match=r"test\[0\]: cannot be decoded as an image \(.+\)"):
        files.picture(0)
    assert files.picture(1).size == (30, 20)
    assert np.asarray(files.picture(2)).shape == (20, 24, 3)
    with pytest.raises(UserError, match=r"test\[3\]: the table has no picture here \(empty\); remove the row"):
        files.picture(3)


def test_a_resume_with_other_loader_processes_sees_the_same_batches(tmp_path: Path, make_config: MakeConfig) -> None:
    table(20, names=["cat", "dog"]).save_to_disk(tmp_path / "data")
    setup = set_up(make_config(name="hf_dataset", root=str(tmp_path / "data"), augment="crop"), resolve_device("cpu"))
    whole = [images for images, _ in setup.batches(range(4), num_workers=0)]
    resumed = [images for images, _ in setup.batches(range(2, 4), num_workers=2)]
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], resumed, strict=True))
