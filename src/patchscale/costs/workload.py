"""How many images a run looks at, and how many classes they have, before it starts. No torch; no image is opened."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from patchscale.config import FOLDER_DATASETS, SCENES_PER_SPLIT, DataConfig, RunConfig
from patchscale.errors import UserError
from patchscale.whole_numbers import whole_number

NAMED_SETS = {
    "fashion_mnist": (60_000, 10),
    "mnist": (60_000, 10),
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
}
"""Published training images (before validation is held out), and classes."""

PUBLISHED_IMAGES = {"imagenet": 1_281_167, "ade20k": 20_210, "coco": 118_287}
"""Training images of data sets that costs are often asked for."""

PUBLISHED_LABELLED = {"ade20k": (20_210, 150), "voc": (1_464, 21), "cityscapes": (2_975, 19)}
"""Training images and classes of segmentation sets, as published; what is counted where the folder is not there."""

SCENE_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What the data make a run cost; None where it cannot be known here."""

    num_classes: int | None
    train_images: int | None
    images_seen: int | None
    """Images of all optimizer steps together: steps x batch_size."""


def workload(config: RunConfig) -> Workload:
    """The workload of a run. Folders are counted if they are there; raises `UserError` if they hold something else."""
    data, training = config.data, config.training
    published: int | None
    num_classes: int | None
    if data.name == "scenes":
        published = SCENES_PER_SPLIT["train"]
        num_classes = SCENE_CLASSES + (config.task != "classification")  # elsewhere there is a background as well
    elif data.name in NAMED_SETS:
        images, num_classes = NAMED_SETS[data.name]
        published = images - max(1, round(data.val_fraction * images))
    else:
        published, num_classes = _count_folder(data)
    train_images = data.train_images or published
    steps = training.num_steps(train_images) if train_images is not None else training.steps
    return Workload(
        num_classes=num_classes,
        train_images=train_images,
        images_seen=None if steps is None else steps * training.batch_size,
    )


def published_images(text: str) -> int:
    """Training images of a published data set by its name, or the number that `text` is; raises `UserError`."""
    if text in PUBLISHED_IMAGES:
        return PUBLISHED_IMAGES[text]
    if text in NAMED_SETS:
        return NAMED_SETS[text][0]
    number = whole_number(text.replace("_", ""))
    if not number:
        names = ", ".join([*PUBLISHED_IMAGES, *NAMED_SETS])
        raise UserError(f"images {text[:40]!r}: give a number of images, or one of {names}")
    return number


def _count_folder(data: DataConfig) -> tuple[int | None, int | None]:
    """(training images, classes) of a folder, or of shards with an index; (None, classes if the config says) if it is
    not on this machine, or cannot be counted without reading it."""
    assert data.root is not None
    root = Path(data.root).expanduser()
    if data.name in PUBLISHED_LABELLED and not root.is_dir():
        images, num_classes = PUBLISHED_LABELLED[data.name]
        return images - max(1, round(data.val_fraction * images)), num_classes
    if not root.is_dir() or (data.name not in (*FOLDER_DATASETS, "coco") and not (root / "index.json").is_file()):
        return None, data.num_classes
    try:
        train_images, classes = _list_folder(data.name, root, data.val_fraction, data.split_seed)
    except ImportError:  # listing needs Pillow, as training does
        return None, data.num_classes
    return train_images, data.num_classes or classes


@cache
def _list_folder(kind: str, root: Path, val_fraction: float, split_seed: int) -> tuple[int, int | None]:
    from patchscale.data.coco import list_coco
    from patchscale.data.folders import divide, list_image_folder, list_mask_folder
    from patchscale.data.labelled_sets import LABELLED_SETS
    from patchscale.data.listing import PictureList
    from patchscale.data.shard_cache import ShardCache
    from patchscale.data.shards import list_shards

    classes: int | None = None
    parts: Mapping[str, PictureList]
    if kind == "image_folder":
        parts, class_names, _ = list_image_folder(root)
        classes = len(class_names)
    elif kind == "coco":
        of_coco = list_coco(root)
        parts, classes = of_coco.parts, len(of_coco.class_names)
    elif kind == "shards":
        listed = list_shards(str(root), ShardCache(root))  # with an index nothing is cached
        parts, classes = listed.parts, len(listed.class_names)
    elif kind == "mask_folder":
        parts, _ = list_mask_folder(root)
    else:
        listed_set = LABELLED_SETS[kind](root)
        parts, classes = listed_set.parts, len(listed_set.class_names)
    division = divide({part: files.labels for part, files in parts.items()}, val_fraction, split_seed)
    return len(division.splits["train"][1]), classes
