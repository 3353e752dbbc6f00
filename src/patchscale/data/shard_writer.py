"""From a folder of classes to shards with an index. No torch.

Files keep their bytes. Which image is in which shard follows from names and sizes alone: each part in a random but
fixed order, so that every shard is a mixture of classes, cut where a shard is full. Archives carry no times and owners,
so the same files make the same shards.
"""

import errno
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from patchscale.data.folders import FileList, list_image_folder
from patchscale.data.seeding import derive_seed
from patchscale.data.shard_index import INDEX, UNFINISHED, Shard, ShardIndex, read_index, shard_from, shard_to_json
from patchscale.errors import UserError
from patchscale.files import atomic_write, write_text


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """What will be in a shard."""

    name: str
    files: FileList
    size_bytes: int
    """Of the pictures."""
    source: str
    """Digest of the files: names, sizes, times and classes."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a conversion has done."""

    index: Path
    shards: int
    kept: int
    """Shards that were there already, with the same content."""
    images: int
    classes: int
    size_bytes: int


def write_shards(
    source: Path, target: Path, *, shard_bytes: int, done: Callable[[int, int], None] = lambda images, total: None
) -> Written:
    """Convert the folder `source` (as `data.name=image_folder` reads it) to shards of about `shard_bytes` in `target`.

    `done` is told how many images are in finished shards. Interrupted, it goes on where it was; shards that are there
    and made of the same files are kept. Raises `UserError` for a wrong folder, another data set in `target`, or a full
    disk.
    """
    parts, class_names, _ = list_image_folder(source)
    plan = {part: list(_plan(part, files, shard_bytes)) for part, files in parts.items()}
    total = sum(len(files) for files in parts.values())
    names = {shard.name for shards in plan.values() for shard in shards}
    _refuse_foreign(target, names)
    finished = _finished(target)
    kept, images = 0, 0
    written: dict[str, list[Shard]] = {part: [] for part in plan}
    try:
        (target / UNFINISHED).mkdir(parents=True, exist_ok=True)
        for part, planned in plan.items():
            for shard in planned:
                known = finished.get(shard.name)
                if known is not None and known.source == shard.source and _is_intact(target, known):
                    kept += 1
                else:
                    known = _write(target, shard)
                write_text(target / UNFINISHED / f"{shard.name}.json", shard_to_json(known))
                written[part].append(known)
                images += len(shard.files)
                done(images, total)
        write_text(target / INDEX, ShardIndex(classes=class_names, parts=written).to_json())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{target}: the disk is full; free some space and run it again, it goes on from here") from None
    for path in (target / UNFINISHED).iterdir():
        path.unlink()
    (target / UNFINISHED).rmdir()
    shards = [shard for of_part in written.values() for shard in of_part]
    return Written(
        index=target / INDEX,
        shards=len(shards),
        kept=kept,
        images=images,
        classes=len(class_names),
        size_bytes=sum(shard.size_bytes for shard in shards),
    )


def _plan(part: str, files: FileList, shard_bytes: int) -> Iterator[PlannedShard]:
    order = np.random.default_rng(derive_seed("shards", part)).permutation(len(files))
    statuses = [(files.root / files.pictures[i]).stat() for i in order.tolist()]
    ends: list[int] = []
    room = 0
    for place, status in enumerate(statuses):
        room -= status.st_size
        if room < 0 or not ends:  # the shard is full, or the first
            ends.append(place)
            room = shard_bytes - status.st_size
    bounds = [*ends, len(order)]
    for number, (first, last) in enumerate(pairwise(bounds)):
        chosen = files.take(order[first:last])
        digest = hashlib.sha256()
        for name, label, status in zip(chosen.pictures, chosen.labels, statuses[first:last], strict=True):
            digest.update(
                f"{name}\t{label}\t{status.st_size}\t{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape")
            )
        size_bytes = sum(status.st_size for status in statuses[first:last])
        name = f"{part}-{number:06d}.tar"
        yield PlannedShard(name=name, files=chosen, size_bytes=size_bytes, source=digest.hexdigest())


def _write(target: Path, planned: PlannedShard) -> Shard:
    """One archive, whole or not at all."""
    files = planned.files
    offsets, sizes = [], []
    with atomic_write(target / planned.name, "wb") as file:
        hashed = _Hashed(file)
        with tarfile.open(fileobj=hashed, mode="w", format=tarfile.USTAR_FORMAT) as archive:  # type: ignore[call-overload]
            for number, (picture, label) in enumerate(zip(files.pictures, files.labels.tolist(), strict=True)):
                content = files.content(number)
                _add(archive, f"{number:06d}{Path(picture).suffix.lower()}", content)
                offsets.append(archive.offset - _padded(len(content)))
                sizes.append(len(content))
                _add(archive, f"{number:06d}.cls", str(label).encode())
        size_bytes = file.tell()
    return Shard(
        name=planned.name,
        size_bytes=size_bytes,
        sha256=hashed.digest.hexdigest(),
        names=files.pictures,
        offsets=offsets,
        sizes=sizes,
        labels=files.labels.tolist(),
        source=planned.source,
    )


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


class _Hashed:
    """A file that is written from begin to end, and its sha256."""

    def __init__(self, file: IO[Any]) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self.file.write(content)

    def tell(self) -> int:
        return self.file.tell()


def _finished(target: Path) -> dict[str, Shard]:
    """Shards of earlier conversions by name; what is unreadable counts for nothing."""
    found: dict[str, Shard] = {}
    index = target / INDEX
    if index.exists():
        try:
            parts = read_index(index.read_bytes(), str(index)).parts
        except UserError:
            parts = {}
        found |= {shard.name: shard for shards in parts.values() for shard in shards}
    for path in (target / UNFINISHED).glob("*.json"):
        try:
            shard = shard_from(json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError):
            continue
        found[shard.name] = shard
    return found


def _is_intact(target: Path, shard: Shard) -> bool:
    path = target / shard.name
    if not path.exists() or path.stat().st_size != shard.size_bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256


def _refuse_foreign(target: Path, names: set[str]) -> None:
    """Shards that this conversion would not write are another data set's, or were cut otherwise."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: is a file; name a folder for the shards")
    others = sorted(path.name for path in target.glob("*.tar") if path.name not in names)
    if others:
        raise UserError(
            f"{target / others[0]}: is not one of the shards to be written here; remove it, or name another folder"
        )
