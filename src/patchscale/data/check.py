"""Whether every picture of a data set can be read, and what there is: classes, sizes, modes, duplicates. No torch.

Every file is read and decoded once, in several processes, with its label map or its objects if there are. Files of the
same content in two parts are a leak from one to the other; within a part they are counted.
"""

import hashlib
import io
import multiprocessing
import os
import signal
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from PIL import Image

from patchscale.config import ExecutionConfig, is_url
from patchscale.data import check_truth
from patchscale.data.check_truth import TrueSet, Truth, kind_of_truth, list_true_set
from patchscale.data.decoding import decode_rgb
from patchscale.data.folders import IGNORE_INDEX, list_image_folder
from patchscale.data.hf import list_hf_dataset
from patchscale.data.listing import PictureList
from patchscale.data.shard_index import INDEX
from patchscale.data.shards import ListedShards, ShardFiles, list_shards, shard_cache
from patchscale.data.splitting import class_counts
from patchscale.errors import UserError

KINDS = ("image_folder", "shards", "hf_dataset", *check_truth.KINDS)
CHUNK = 64
"""Pictures that a process checks at a time."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found; `wrong` is empty if the data set is sound."""

    kind: str
    images: dict[str, int]
    """By part."""
    class_counts: dict[str, dict[str, int]]
    """By part and class; what is counted says `counted`."""
    size_px: dict[str, list[int]]
    """smallest, median and largest of [width, height], each by area."""
    size_bytes: dict[str, float]
    """smallest, median, largest and total."""
    modes: dict[str, int]
    """Pillow's modes, such as RGB, L or CMYK."""
    formats: dict[str, int]
    shards: int | None
    shards_verified: int | None
    """Shards whose checksum is the index's; None where none is known."""
    duplicates_within_parts: int
    counted: str = "images"
    """Of `class_counts`: images; images that show a class (label maps); objects."""
    notes: dict[str, int] = field(default_factory=dict)
    """What else was counted in label maps or objects, by its name."""
    unusable: list[str]
    """Names of the pictures that training would stop at, for themselves or for their label map or objects, as
    `data.exclude` takes them."""
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Look:
    """What a process says of one picture."""

    part: str
    name: str
    digest: bytes
    size_bytes: int
    size_px: tuple[int, int] | None
    mode: str
    format: str
    error: str | None
    truth: Truth | None


def check(
    root: str,
    *,
    kind: str | None = None,
    num_workers: int = 1,
    execution: ExecutionConfig | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    num_classes: int | None = None,
    done: Callable[[int, int], None] = lambda images, total: None,
) -> Checked:
    """Read the whole data set at `root`; `done` is told of how many pictures of how many.

    `kind` is one of `KINDS`, or told from what is there. `num_classes` is for label maps of a mask_folder, which may
    else hold any. Raises `UserError` for what cannot even be listed.
    """
    kind = kind or _kind_of(root)
    if num_classes is not None and (kind != "mask_folder" or not 1 <= num_classes <= IGNORE_INDEX):
        raise UserError(f"--num-classes {num_classes}: goes with a mask_folder, and is 1 to {IGNORE_INDEX}")
    path = Path(root).expanduser()
    listed: ListedShards | None = None
    true_set: TrueSet | None = None
    parts: Mapping[str, PictureList]
    if kind == "shards":
        listed = list_shards(root, shard_cache(execution or ExecutionConfig()))
        parts, class_names = listed.parts, listed.class_names
        parts = {part: pictures.in_reading_order() for part, pictures in listed.parts.items()}
    elif kind == "hf_dataset":
        parts, class_names = list_hf_dataset(path, image_column=image_column, label_column=label_column)
    elif kind in check_truth.KINDS:
        true_set = list_true_set(path, kind, num_classes)
        parts = true_set.parts
    else:
        parts, class_names, _ = list_image_folder(path)
    wrong = []
    verified = None
    if listed is not None and listed.indexed:
        wrong = _verify_shards(listed)
        verified = len(listed.files) - len(wrong)
    total = sum(len(pictures) for pictures in parts.values())
    looks = []
    for chunk in _looked_at(_Looking(parts, true_set), num_workers):
        looks += chunk
        done(len(looks), total)
    if true_set is None:
        counts = {part: class_counts(pictures.labels.tolist(), class_names) for part, pictures in parts.items()}
        wrong += [f"class {name!r} has no training image" for name, count in counts["train"].items() if not count]
    else:
        counts = _true_counts(looks, parts, true_set)
    wrong += [look.error for look in looks if look.error is not None]
    across, within = _duplicates(looks)
    wrong += across
    sizes = sorted((look.size_px for look in looks if look.size_px), key=lambda size: (size[0] * size[1], size))
    content = [look.size_bytes for look in looks if look.size_bytes]
    return Checked(
        kind=kind,
        images={part: len(pictures) for part, pictures in parts.items()},
        class_counts=counts,
        size_px={
            name: list(sizes[place])
            for name, place in (("smallest", 0), ("median", len(sizes) // 2), ("largest", -1))
            if sizes
        },
        size_bytes={
            "smallest": min(content, default=0),
            "median": statistics.median(content or [0]),
            "largest": max(content, default=0),
            "total": sum(content),
        },
        modes=dict(Counter(look.mode for look in looks if look.mode).most_common()),
        formats=dict(Counter(look.format for look in looks if look.format).most_common()),
        shards=None if listed is None else len(listed.files),
        shards_verified=verified,
        duplicates_within_parts=within,
        counted="images" if true_set is None else true_set.counted,
        notes={} if true_set is None else _notes(looks, true_set),
        unusable=sorted(
            name
            for name, look in zip(chain.from_iterable(p.lines() for p in parts.values()), looks, strict=True)
            if look.error is not None
        ),
        wrong=wrong,
    )


def _true_counts(looks: list[_Look], parts: Iterable[str], true_set: TrueSet) -> dict[str, dict[str, int]]:
    """By part and class; the background of objects is none, and classes without names are those that occur."""
    counts: dict[str, Counter[int]] = {part: Counter() for part in parts}
    for look in looks:
        counts[look.part].update({} if look.truth is None else look.truth.counts)
    if true_set.class_names is None:
        names = {label: str(label) for label in sorted(set().union(*counts.values()))}
    else:
        names = dict(enumerate(true_set.class_names))
    if true_set.counted == "objects":
        del names[0]
    return {part: {name: of_part[label] for label, name in names.items()} for part, of_part in counts.items()}


def _notes(looks: list[_Look], true_set: TrueSet) -> dict[str, int]:
    notes = Counter(true_set.notes)
    for look in looks:
        notes.update(look.truth.notes if look.truth is not None else {})
    return dict(notes)


def _kind_of(root: str) -> str:
    path = Path(root).expanduser()
    if is_url(root) or "{" in root or root.endswith((".tar", INDEX)):
        return "shards"
    if not path.exists():
        raise UserError(f"{root}: no such folder; name the folder of a data set, or shards")
    if path.suffix == ".parquet" or any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
        return "hf_dataset"
    if path.is_dir() and ((path / INDEX).exists() or next(path.glob("*.tar"), None)):
        return "shards"
    return kind_of_truth(path) or ("hf_dataset" if next(path.rglob("*.parquet"), None) else "image_folder")


def _verify_shards(listed: ListedShards) -> list[str]:
    files: ShardFiles = next(iter(listed.parts.values())).files
    wrong = []
    for number, shard in enumerate(listed.files):
        try:
            with files.open(number) as file:
                digest = hashlib.sha256()
                while piece := file.read(1 << 20):
                    digest.update(piece)
        except UserError as error:
            wrong.append(str(error))
            continue
        if digest.hexdigest() != shard.sha256:
            wrong.append(
                f"{shard.place}: sha256 is {digest.hexdigest()[:12]}, the index says {shard.sha256[:12]}; restore it"
            )
    return wrong


@dataclass(frozen=True)
class _Looking:
    """What processes look at."""

    parts: Mapping[str, PictureList]
    true_set: TrueSet | None


def _looked_at(looking: _Looking, num_workers: int) -> Iterator[list[_Look]]:
    """Every picture once, a chunk at a time, in the order of the data set."""
    chunks = [
        (part, range(first, min(first + CHUNK, len(pictures))))
        for part, pictures in looking.parts.items()
        for first in range(0, len(pictures), CHUNK)
    ]
    if num_workers < 2:
        yield from (_look_at(looking, part, places) for part, places in chunks)
        return
    global _looking, _parent
    _looking, _parent = looking, os.getpid()  # the processes are copies of this one
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_leave_interrupts_to_the_parent)
    finished: dict[int, list[_Look]] = {}
    try:
        waiting: dict[Future[list[_Look]], int] = {}
        todo = iter(enumerate(chunks))
        told = 0
        while True:
            while len(waiting) < 4 * num_workers and (next_one := next(todo, None)) is not None:
                number, (part, places) = next_one
                waiting[pool.submit(_look_in_process, part, places)] = number
            if not waiting:
                return
            ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                finished[waiting.pop(future)] = future.result()
            while told in finished:
                yield finished.pop(told)
                told += 1
    except BrokenProcessPool:
        raise UserError(
            "a checking process was ended from outside, perhaps for memory; take fewer --num-workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)  # waits for what is being checked, as the interpreter's end would


_looking = _Looking({}, None)
_parent = 0


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _look_in_process(part: str, places: range) -> list[_Look]:
    if os.getppid() != _parent:  # not 1: that is who starts everything in a container
        raise SystemExit  # the parent is gone
    return _look_at(_looking, part, places)


def _look_at(looking: _Looking, part: str, places: range) -> list[_Look]:
    looks = []
    pictures, true_set = looking.parts[part], looking.true_set
    for index in places:
        name, content, size_px, mode, format_, error = pictures.name(index), b"", None, "", "", None
        truth = None
        try:
            content = pictures.content(index)
            with Image.open(io.BytesIO(content)) as opened:
                size_px, mode, format_ = opened.size, opened.mode, opened.format or ""
        except UserError as problem:
            error = str(problem)
        except PermissionError as problem:
            error = f"{name}: cannot be read ({problem.strerror}); grant the right, or remove it"
        except Exception:
            pass  # said below, in the words of training
        if error is None:
            try:
                decoded = decode_rgb(io.BytesIO(content), name)
                truth = None if true_set is None else true_set.look(pictures, index, decoded.size)
            except UserError as problem:
                error = str(problem)
        digest = hashlib.blake2b(content, digest_size=16).digest()
        looks.append(_Look(part, name, digest, len(content), size_px, mode, format_, error, truth))
    return looks


def _duplicates(looks: list[_Look]) -> tuple[list[str], int]:
    """Files of the same content in two parts, in words; and how many too many there are within parts."""
    first: dict[bytes, _Look] = {}
    seen: set[tuple[str, bytes]] = set()
    across, within = [], 0
    for look in looks:
        if not look.size_bytes:
            continue
        within += (look.part, look.digest) in seen
        seen.add((look.part, look.digest))
        before = first.setdefault(look.digest, look)
        if before.part != look.part:
            across.append(f"{look.name}: the same file as {before.name}, which is in {before.part}; remove one of them")
    return across, within
