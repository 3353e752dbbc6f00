"""The three splits of a run, ready for a `DataLoader`, and the record of how they came about."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from patchscale.config import SCENES_PER_SPLIT, RunConfig
from patchscale.data.coco import list_coco
from patchscale.data.detection import DetectionEvalSplit, DetectionTrainSplit, ObjectTransform
from patchscale.data.exclusion import not_excluded
from patchscale.data.folders import (
    IGNORE_INDEX,
    FileList,
    ReadLabels,
    divide,
    list_image_folder,
    list_mask_folder,
)
from patchscale.data.hf import list_hf_dataset
from patchscale.data.labelled_sets import LABELLED_SETS, mask_reader
from patchscale.data.listing import PictureList
from patchscale.data.named import NAMED_DATASETS, data_root, load_named
from patchscale.data.pairs import PairTransform
from patchscale.data.scenes import GARMENTS, SCENES_VERSION, SceneDataset, pictures_fingerprint
from patchscale.data.shards import check_cache_holds_windows, list_shards, shard_cache
from patchscale.data.sources import CocoSource, PairSource, PictureSource, PixelSource, SceneObjectSource, SceneSource
from patchscale.data.split import EvalSplit, TrainSplit
from patchscale.data.splitting import class_counts, fingerprint, limit
from patchscale.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Erasing,
    PictureTransform,
    PixelTransform,
    check_augment,
    eval_crop_ratio,
)
from patchscale.data.windows import Windows, WindowSplit
from patchscale.errors import UserError
from patchscale.shapes import image_height_width

Pictures = TypeVar("Pictures", bound=PictureList)


@dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """Train, validation and test images of a run, which never overlap."""

    train: TrainSplit
    val: EvalSplit
    test: EvalSplit
    num_classes: int
    class_names: list[str]
    ignore_index: int | None
    """Label-map value that counts for nothing, or None."""
    record: dict[str, Any]
    """What goes to data.json: source, counts, split rule and seed, fingerprint, normalisation, evaluation."""


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What a data set contributes; the rest is common to all."""

    sources: Mapping[str, Any]
    class_names: list[str]
    transform: Callable[..., Any] = PixelTransform
    eval_transform: Any = None
    """If it is not `transform` without augmentation."""
    split_types: tuple[type[TrainSplit], type[EvalSplit]] = (TrainSplit, EvalSplit)
    eval_protocol: str
    fingerprint: str
    record: Mapping[str, Any]
    class_counts: Mapping[str, dict[str, int]] | None = None
    ignore_index: int | None = None


def load_splits(config: RunConfig) -> Splits:
    """Find, check and divide the data of a run.

    Named sets are fetched if need be. Raises `UserError` naming the file, folder or field that is wrong; picture files
    are decoded when they are read, and raise it then.
    """
    data = config.data
    img_size = image_height_width(config.model.img_size)
    check_augment(
        data.augment,
        with_label_maps=config.task == "segmentation",
        with_objects=config.task == "detection",
    )
    parts = _LOADERS[data.name](config, img_size)
    crop = {} if data.crop == "resized" else {"crop": data.crop}  # of pictures only, the config saw to it
    train_transform = parts.transform(augment=data.augment, img_size=img_size, seed=config.seed, **crop)
    eval_transform = parts.eval_transform or parts.transform(augment="none", img_size=img_size)
    train_type, eval_type = parts.split_types
    return Splits(
        train=train_type(
            parts.sources["train"],
            train_transform,
            Erasing(probability=data.random_erasing, seed=config.seed) if data.random_erasing else None,
        ),
        val=eval_type(parts.sources["val"], eval_transform),
        test=eval_type(parts.sources["test"], eval_transform),
        num_classes=len(parts.class_names),
        class_names=parts.class_names,
        ignore_index=parts.ignore_index,
        record={
            "name": data.name,
            **parts.record,
            "task": config.task,
            "img_size": list(img_size),
            "num_classes": len(parts.class_names),
            "class_names": parts.class_names,
            "ignore_index": parts.ignore_index,
            "split_seed": data.split_seed,
            "images": {split: len(source) for split, source in parts.sources.items()},
            "class_counts": parts.class_counts,
            "fingerprint": parts.fingerprint,
            "augment": data.augment,
            "normalisation": {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
            "eval_protocol": parts.eval_protocol,
        },
    )


def _load_scenes(config: RunConfig, img_size: tuple[int, int]) -> _Parts:
    data, with_label_maps = config.data, config.task == "segmentation"
    counts = {split: _wanted(config, split) or default for split, default in SCENES_PER_SPLIT.items()}
    scenes = {split: SceneDataset(split, count, img_size, data.split_seed) for split, count in counts.items()}
    of_task: dict[str, Any] = {
        "sources": {split: SceneSource(each, with_label_maps=with_label_maps) for split, each in scenes.items()}
    }
    if config.task == "detection":
        of_task = _OF_OBJECTS | {"sources": {split: SceneObjectSource(each) for split, each in scenes.items()}}
    recipe = f"version {SCENES_VERSION}, pictures {pictures_fingerprint()}, seed {data.split_seed}"
    return _Parts(
        **of_task,
        class_names=list(GARMENTS) if config.task == "classification" else ["background", *GARMENTS],
        eval_protocol="whole scene",
        fingerprint=fingerprint({split: [f"{recipe}, {count} scenes"] for split, count in counts.items()}),
        record={
            "title": "scenes composed of Fashion-MNIST garments",
            "licence": "MIT (pictures)",
            "split_rule": "each split has its own garments and its own draws",
        },
    )


def _load_named(config: RunConfig, img_size: tuple[int, int]) -> _Parts:
    data, about = config.data, NAMED_DATASETS[config.data.name]
    train, test, class_names = load_named(data.name, data_root(data.root))
    published = {"train": train, "test": test}
    division = divide({part: of_part.labels for part, of_part in published.items()}, data.val_fraction, data.split_seed)
    sources, labels, lines = {}, {}, {}
    for split, (part, indices) in division.splits.items():
        pixels, all_labels = published[part].pixels, published[part].labels
        chosen = _limited(config, split, indices, all_labels)
        sources[split] = PixelSource(pixels, all_labels, chosen, img_size)
        labels[split] = all_labels[chosen]
        lines[split] = [f"{part} {index} {all_labels[index]}" for index in chosen.tolist()]
    return _Parts(
        sources=sources,
        class_names=list(class_names),
        eval_protocol="whole image",
        fingerprint=fingerprint(lines),
        class_counts={split: class_counts(of_split, class_names) for split, of_split in labels.items()},
        record={"title": about.title, "licence": about.licence, "split_rule": division.rule},
    )


def _load_image_folder(config: RunConfig, img_size: tuple[int, int]) -> _Parts:
    root = _root(config)
    parts, class_names, ignored = list_image_folder(root)
    files, rule = _divided(config, parts)
    record = {"root": str(root), "split_rule": rule, "ignored_files": ignored}
    return _pictures(config, img_size, str(root), files, class_names, record)


def _load_shards(config: RunConfig, img_size: tuple[int, int]) -> _Parts:
    root = config.data.root
    assert root is not None
    cache = shard_cache(config.execution)
    listed = list_shards(root, cache)
    check_cache_holds_windows(listed, cache, config.data.shuffle_window)
    files, rule = _divided(config, listed.parts)
    files = {split: of_split if split == "train" else of_split.in_reading_order() for split, of_split in files.items()}
    checksum = listed.checksum()
    record = {"root": root, "split_rule": rule, "shards": len(listed.files), "shards_sha256": checksum}
    return _pictures(config, img_size, root, files, listed.class_names, record, {"shards": [checksum]})


def _load_hf_dataset(config: RunConfig, img_size: tuple[int, int]) -> _Parts:
    root, data = _root(config), config.data
    parts, class_names = list_hf_dataset(root, image_column=data.image_column, label_column=data.label_column)
    files, rule = _divided(config, parts)
    return _pictures(config, img_size, str(root), files, class_names, {"root": str(root), "split_rule": rule})


def _pictures(
    config: RunConfig,
    img_size: tuple[int, int],
    root: str,
    files: Mapping[str, PictureList],
    class_names: list[str],
    record: Mapping[str, Any],
    more_lines: Mapping[str, list[str]] | None = None,
) -> _Parts:
    """What all data sets of labelled picture files have in common."""
    for label, count in enumerate(np.bincount(files["train"].labels, minlength=len(class_names))):
        if not count:
            raise UserError(
                f"{root}: no training image is left of class {class_names[label]!r}; add images, "
                "lower data.val_fraction, or raise data.train_images"
            )
    ratio = config.data.eval_crop_ratio or eval_crop_ratio(img_size)
    return _Parts(
        sources={split: PictureSource(of_split) for split, of_split in files.items()},
        class_names=class_names,
        transform=partial(PictureTransform, eval_ratio=ratio),
        eval_protocol=f"centre crop, ratio {ratio:g}",
        fingerprint=fingerprint(
            {**{split: of_split.lines() for split, of_split in files.items()}, **(more_lines or {})}
        ),
        class_counts={split: class_counts(of_split.labels.tolist(), class_names) for split, of_split in files.items()},
        record={**record, "eval_crop_ratio": ratio},
    )


def _load_mask_folder(config: RunConfig, img_size: tuple[int, int]) -> _Parts:
    root, num_classes = _root(config), config.data.num_classes
    assert num_classes is not None
    if num_classes > IGNORE_INDEX:
        raise UserError(f"data.num_classes={num_classes}: at most {IGNORE_INDEX}, as label {IGNORE_INDEX} is ignored")
    parts, ignored = list_mask_folder(root)
    class_names = [str(label) for label in range(num_classes)]
    return _pairs(config, img_size, parts, class_names, mask_reader(num_classes), {"ignored_files": ignored})


def _load_labelled_set(config: RunConfig, img_size: tuple[int, int]) -> _Parts:
    listed = LABELLED_SETS[config.data.name](_root(config))
    return _pairs(config, img_size, listed.parts, listed.class_names, listed.read_labels, {"layout": listed.layout})


def _pairs(
    config: RunConfig,
    img_size: tuple[int, int],
    parts: Mapping[str, FileList],
    class_names: list[str],
    read_labels: ReadLabels,
    record: Mapping[str, Any],
) -> _Parts:
    """What all data sets of pictures with label maps have in common."""
    data = config.data
    files, rule = _divided(config, parts)
    of_evaluation: dict[str, Any] = {"eval_protocol": "centre crop of the whole shorter side"}
    if data.eval_how != "crop":
        windows = Windows(
            mode=data.eval_how,
            img_size=img_size,
            stride=data.eval_stride,
            flip=data.eval_flip,
            scales=data.eval_scales,
        )
        of_evaluation = {
            "eval_protocol": windows.protocol(),
            "eval_transform": windows,
            "split_types": (TrainSplit, WindowSplit),
        }
    return _Parts(
        sources={split: PairSource(of_split, read_labels) for split, of_split in files.items()},
        class_names=class_names,
        transform=PairTransform,
        ignore_index=IGNORE_INDEX,
        fingerprint=fingerprint({split: of_split.lines() for split, of_split in files.items()}),
        record={"root": str(_root(config)), "split_rule": rule, **record},
        **of_evaluation,
    )


def _load_coco(config: RunConfig, img_size: tuple[int, int]) -> _Parts:
    root = _root(config)
    listed = list_coco(root)
    files, rule = _divided(config, listed.parts)
    return _Parts(
        **_OF_OBJECTS,
        sources={split: CocoSource(of_split) for split, of_split in files.items()},
        class_names=listed.class_names,
        eval_protocol="whole picture, as large as fits",
        fingerprint=fingerprint({split: of_split.lines() for split, of_split in files.items()}),
        class_counts={split: of_split.counts(listed.class_names) for split, of_split in files.items()},
        record={
            "root": str(root),
            "split_rule": rule,
            "images_without_objects": {split: of_split.without_objects() for split, of_split in files.items()},
            "empty_boxes_left_out": listed.empty_boxes,
            "parts_without_masks": listed.without_masks,
        },
    )


_OF_OBJECTS: dict[str, Any] = {
    "transform": ObjectTransform,
    "split_types": (DetectionTrainSplit, DetectionEvalSplit),
}

_LOADERS: dict[str, Callable[[RunConfig, tuple[int, int]], _Parts]] = {
    "scenes": _load_scenes,
    **dict.fromkeys(NAMED_DATASETS, _load_named),
    "image_folder": _load_image_folder,
    "mask_folder": _load_mask_folder,
    **dict.fromkeys(LABELLED_SETS, _load_labelled_set),
    "coco": _load_coco,
    "shards": _load_shards,
    "hf_dataset": _load_hf_dataset,
}


def _root(config: RunConfig) -> Path:
    assert config.data.root is not None  # the config saw to it
    return Path(config.data.root).expanduser()


def _divided(config: RunConfig, parts: Mapping[str, Pictures]) -> tuple[dict[str, Pictures], str]:
    division = divide(
        {part: files.labels for part, files in parts.items()}, config.data.val_fraction, config.data.split_seed
    )
    files, rule = {}, division.rule
    kept = not_excluded(config.data, parts)
    if kept is not None:  # after the division, so that all others stay in their splits
        rule += f"; {sum(int((~of_part).sum()) for of_part in kept.values())} images are excluded"
    for split, (part, indices) in division.splits.items():
        there = indices if kept is None else indices[kept[part][indices]]
        files[split] = parts[part].take(_limited(config, split, there, parts[part].labels))
    return files, rule


def _limited(config: RunConfig, split: str, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    chosen = limit(
        indices, labels, _wanted(config, split), config.data.split_seed, "limit", what=f"data.{split}_images"
    )
    if not len(chosen):
        raise UserError(f"data set {config.data.name!r}: nothing is left for {split}; it has too few images")
    return chosen


def _wanted(config: RunConfig, split: str) -> int | None:
    wanted: int | None = getattr(config.data, f"{split}_images")
    return wanted
