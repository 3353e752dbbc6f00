"""The named data sets: found in the cache folder, in Debian's package, or downloaded by torchvision.

They are kept in <root>/<torchvision's folder>; root is `data.root`, else $PATCHSCALE_DATA, else ~/.cache/patchscale.
"""

import fcntl
import gzip
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchscale.errors import UserError
from patchscale.files import atomic_write

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledPixels:
    """Pictures of one size in memory."""

    pixels: NDArray[np.uint8]
    """[N, h, w, 1 or 3]"""
    labels: NDArray[np.int64]
    """[N]"""


@dataclass(frozen=True, kw_only=True)
class NamedDataset:
    """One of torchvision's classification sets."""

    torchvision_name: str
    title: str
    licence: str
    from_system: Callable[[Path], bool] = lambda root: False
    """Lays the set's files under a root from a package of this system; False if there is none."""
    remedy: str = ""
    """What else helps where a download cannot be had."""


def install_debian_fashion_mnist(root: Path, source: Path | None = None) -> bool:
    """Unpack Debian's `dataset-fashion-mnist` to where torchvision looks; False if it is not installed.

    Each file is written under a temporary name and renamed, so several processes may do it at once.
    """
    source = source or DEBIAN_FASHION_MNIST
    packed = sorted(source.glob("*-ubyte.gz"))
    if len(packed) != 4:
        return False
    for path in packed:
        target = root / "FashionMNIST" / "raw" / path.stem
        if not target.exists():
            with gzip.open(path) as compressed, atomic_write(target, "wb") as file:
                shutil.copyfileobj(compressed, file, 1 << 20)
    return True


NAMED_DATASETS = {
    "fashion_mnist": NamedDataset(
        torchvision_name="FashionMNIST",
        title="Fashion-MNIST (Xiao et al. 2017)",
        licence="MIT",
        from_system=install_debian_fashion_mnist,
        remedy="on Debian: apt-get install dataset-fashion-mnist; ",
    ),
    "mnist": NamedDataset(torchvision_name="MNIST", title="MNIST (LeCun, Cortes, Burges)", licence="CC BY-SA 3.0"),
    "cifar10": NamedDataset(
        torchvision_name="CIFAR10", title="CIFAR-10 (Krizhevsky 2009)", licence="not stated by its authors"
    ),
    "cifar100": NamedDataset(
        torchvision_name="CIFAR100", title="CIFAR-100 (Krizhevsky 2009)", licence="not stated by its authors"
    ),
}


def data_root(root: str | None) -> Path:
    """Folder of the named sets: as given, or $PATCHSCALE_DATA, or the user's cache."""
    if root is not None:
        return Path(root).expanduser()
    if os.environ.get("PATCHSCALE_DATA"):
        return Path(os.environ["PATCHSCALE_DATA"]).expanduser()
    return Path("~/.cache/patchscale").expanduser()


def load_named(name: str, root: Path) -> tuple[LabelledPixels, LabelledPixels, tuple[str, ...]]:
    """Published training part, published test part, class names; fetched to `root` if they are not there.

    Raises `UserError` if the set can neither be found nor fetched, or its files are damaged.
    """
    dataset = NAMED_DATASETS[name]
    if _open(dataset, root, train=True) is None:
        _fetch(dataset, root, name)
    train, test = _open(dataset, root, train=True), _open(dataset, root, train=False)
    if train is None or test is None:
        raise UserError(f"{root}: {name} is still incomplete after fetching it; remove its folder there and try again")
    return _in_memory(train, root), _in_memory(test, root), tuple(train.classes)


def _open(dataset: NamedDataset, root: Path, *, train: bool) -> Any | None:
    """torchvision's data set, or None if its files are not (all) there."""
    from torchvision import datasets

    try:
        return getattr(datasets, dataset.torchvision_name)(str(root), train=train, download=False)
    except RuntimeError as error:
        if "not found" in str(error):
            return None
        raise _damaged(dataset, root, error) from error
    except Exception as error:
        raise _damaged(dataset, root, error) from error


def _damaged(dataset: NamedDataset, root: Path, error: Exception) -> UserError:
    words = " ".join(str(error).split()) or type(error).__name__
    return UserError(
        f"{root}: the files of {dataset.torchvision_name} cannot be read ({words}); remove them to fetch them again"
    )


def _fetch(dataset: NamedDataset, root: Path, name: str) -> None:
    """Bring the set to `root`: from the system if it has it, else by download."""
    try:
        if dataset.from_system(root):
            return
        with _lock(root / f".{dataset.torchvision_name}.lock"):
            if _open(dataset, root, train=True) is None:
                _download(dataset, root)
    except UserError:
        raise
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{name} is not in {root} and could not be fetched ({words}); {dataset.remedy}"
            f"or put torchvision's {dataset.torchvision_name} files there (data.root or PATCHSCALE_DATA names "
            "another folder), or use data.name=scenes, which needs none"
        ) from error


def _download(dataset: NamedDataset, root: Path) -> None:
    """Download into a temporary folder, then move the files, so that a broken download leaves nothing behind."""
    from torchvision import datasets

    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
        getattr(datasets, dataset.torchvision_name)(folder, train=True, download=True)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                target = root / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _in_memory(dataset: Any, root: Path) -> LabelledPixels:
    pixels, labels = np.asarray(dataset.data), np.asarray(dataset.targets, dtype=np.int64)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if not len(labels) == len(pixels) > 0 or not 0 <= labels.min() <= labels.max() < len(dataset.classes):
        raise UserError(f"{root}: labels of {type(dataset).__name__} do not fit its pictures; remove its files")
    return LabelledPixels(pixels=pixels, labels=labels)
