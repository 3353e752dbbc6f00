"""Named sets: found, unpacked, or explained. Tiny files in the published formats stand for the real ones."""

import gzip
import hashlib
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from patchscale.data.datasets import load_splits
from patchscale.data.named import data_root, install_debian_fashion_mnist, load_named
from patchscale.errors import UserError

from .conftest import MakeConfig

COUNTS = {"train": 200, "t10k": 50}


def write_idx(folder: Path, *, packed: bool) -> None:
    """The four files of an MNIST-like set, 28 x 28 px, ten classes."""
    folder.mkdir(parents=True)
    for part, count in COUNTS.items():
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        files = {
            f"{part}-images-idx3-ubyte": struct.pack(">IIII", 0x803, count, 28, 28) + pixels.tobytes(),
            f"{part}-labels-idx1-ubyte": struct.pack(">II", 0x801, count) + labels.tobytes(),
        }
        for name, content in files.items():
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(content) if packed else content)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads fail as without a network."""
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")


def test_where_named_sets_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATCHSCALE_DATA", str(tmp_path / "a"))
    assert data_root(str(tmp_path / "b")) == tmp_path / "b"
    assert data_root(None) == tmp_path / "a"
    monkeypatch.delenv("PATCHSCALE_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root(None) == tmp_path / ".cache" / "patchscale"


def test_mnist_in_its_folder(tmp_path: Path, make_config: MakeConfig) -> None:
    write_idx(tmp_path / "MNIST/raw", packed=False)
    splits = load_splits(make_config(name="mnist", root=str(tmp_path), img_size=28, augment="crop"))
    assert splits.record["images"] == {"train": 180, "val": 20, "test": 50}
    assert set(splits.record["class_counts"]["val"].values()) == {2}
    image, label = splits.test[3]
    assert image.shape == (3, 28, 28)
    assert int(label) == 3


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_in_its_folder(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, name: str, classes: int
) -> None:
    from torchvision import datasets

    kind = getattr(datasets, name.upper())
    folder = tmp_path / kind.base_folder
    folder.mkdir()

    def write(file: str, content: object) -> list[str]:
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, hashlib.md5((folder / file).read_bytes()).hexdigest()]

    def batch(count: int) -> dict[str, object]:
        data = np.random.default_rng(count).integers(0, 256, (count, 3072), dtype=np.uint8)
        return {"data": data, "labels" if classes == 10 else "fine_labels": [k % classes for k in range(count)]}

    # The published checksums are those of the real files.
    monkeypatch.setattr(kind, "train_list", [write("train", batch(3 * classes))])
    monkeypatch.setattr(kind, "test_list", [write("test", batch(classes))])
    names = {kind.meta["key"]: [f"class {k}" for k in range(classes)]}
    file, checksum = write("meta", names)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "filename": file, "md5": checksum})

    splits = load_splits(make_config(name=name, root=str(tmp_path), img_size=32, val_fraction=0.3))
    assert splits.num_classes == classes
    assert splits.record["images"] == {"train": 2.1 * classes, "val": 0.9 * classes, "test": classes}
    assert splits.train[0, 0][0].shape == (3, 32, 32)


def test_unpacking_twice_at_once_leaves_whole_files(tmp_path: Path) -> None:
    write_idx(tmp_path / "package", packed=True)
    code = (
        "import sys; from pathlib import Path; from patchscale.data.named import install_debian_fashion_mnist;"
        "assert install_debian_fashion_mnist(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "root"), str(tmp_path / "package")]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    names = sorted(path.name for path in (tmp_path / "root/FashionMNIST/raw").iterdir())
    assert names == sorted(path.stem for path in (tmp_path / "package").iterdir())
    train, test, class_names = load_named("fashion_mnist", tmp_path / "root")
    assert (train.pixels.shape, test.pixels.shape) == ((200, 28, 28, 1), (50, 28, 28, 1))
    assert class_names[0] == "T-shirt/top"


def test_an_interrupted_unpacking_is_finished_later(tmp_path: Path) -> None:
    write_idx(tmp_path / "package", packed=True)
    broken = tmp_path / "package/train-images-idx3-ubyte.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-100])
    with pytest.raises(EOFError):
        install_debian_fashion_mnist(tmp_path / "root", tmp_path / "package")
    assert not (tmp_path / "root/FashionMNIST/raw/train-images-idx3-ubyte").exists()
    broken.write_bytes(whole)
    assert install_debian_fashion_mnist(tmp_path / "root", tmp_path / "package")
    load_named("fashion_mnist", tmp_path / "root")


def test_no_debian_package(tmp_path: Path) -> None:
    assert not install_debian_fashion_mnist(tmp_path / "root", tmp_path / "nothing")


@pytest.mark.usefixtures("offline")
def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchscale.data.named.DEBIAN_FASHION_MNIST", tmp_path / "nothing")
    for name, advice in (("fashion_mnist", "apt-get install dataset-fashion-mnist; "), ("cifar10", "")):
        with pytest.raises(UserError) as caught:
            load_named(name, tmp_path / "root")
        message = str(caught.value)
        assert f"{name} is not in {tmp_path / 'root'} and could not be fetched (" in message
        assert advice in message
        assert "data.root or PATCHSCALE_DATA" in message
        assert message.endswith("or use data.name=scenes, which needs none")
        assert "\n" not in message
    assert not [path for path in (tmp_path / "root").rglob("*") if path.is_file() and not path.name.endswith(".lock")]


def test_damaged_files_are_explained(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST/raw", packed=False)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"the files of MNIST cannot be read .*remove them to fetch them again"):
        load_named("mnist", tmp_path)


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST/raw", packed=False)
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 50) + bytes([11] * 50))
    with pytest.raises(UserError, match="labels of MNIST do not fit its pictures"):
        load_named("mnist", tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may lack no right")
def test_an_unwritable_root_is_explained() -> None:
    with pytest.raises(UserError, match=r"is not in /proc/nowhere and could not be fetched"):
        load_named("fashion_mnist", Path("/proc/nowhere"))
