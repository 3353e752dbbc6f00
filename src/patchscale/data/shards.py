"""Pictures in WebDataset shards: listed once, then any of them is one read at a known place. No torch.

`data.root` is a folder or URL with an index.json (`patchscale data shard` writes it), the index itself (then shards are
where "index.json" in that address is replaced by their names, which suits `pipe:` commands), a folder of .tar files, or
a pattern such as /data/train-{000000..000127}.tar. Without an index every shard is scanned once.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchscale.config import ExecutionConfig, is_url
from patchscale.data.decoding import decode_rgb
from patchscale.data.named import data_root
from patchscale.data.shard_cache import ShardCache, read_url, require_webdataset
from patchscale.data.shard_index import (
    INDEX,
    UNFINISHED,
    Shard,
    ShardIndex,
    part_of,
    read_index,
    scan_shard,
    shard_from,
    shard_to_json,
)
from patchscale.errors import UserError
from patchscale.files import write_text


@dataclass(frozen=True)
class ShardFile:
    """Where a shard is, and what is known of it."""

    place: str
    """A path or URL."""
    size_bytes: int
    sha256: str


class ShardFiles:
    """The archives of a data set, here or in the cache."""

    def __init__(self, files: Sequence[ShardFile], cache: ShardCache) -> None:
        self.files = files
        self.cache = cache

    def open(self, number: int) -> BinaryIO:
        """A shard, fetched if need be; raises `UserError` naming it."""
        shard = self.files[number]
        return open_shard(shard.place, self.cache, sha256=shard.sha256, size_bytes=shard.size_bytes)

    def read(self, number: int, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; raises `UserError` naming the shard if it ends before that."""
        with self.open(number) as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) < size:
            raise UserError(f"{self.files[number].place}: cut short, it ends before byte {offset + size}; replace it")
        return content


class ShardList:
    """Pictures of one part or split, in the order of their classes and names, as a folder of them has."""

    def __init__(
        self,
        files: ShardFiles,
        names: list[str],
        labels: NDArray[np.int64],
        shards: NDArray[np.int64],
        offsets: NDArray[np.int64],
        sizes: NDArray[np.int64],
    ) -> None:
        self.files = files
        self.names = names
        self.labels = labels
        self.shards = shards
        """Which of the files each picture is in, [N]."""
        self.offsets = offsets
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """The shard and the name of a picture."""
        return f"{self.files.files[self.shards[index]].place}: {self.names[index]}"

    def content(self, index: int) -> bytes:
        """The file of a picture."""
        return self.files.read(int(self.shards[index]), int(self.offsets[index]), int(self.sizes[index]))

    def picture(self, index: int) -> Image.Image:
        """A picture, decoded to 8-bit RGB; raises `UserError` that names it and its shard."""
        return decode_rgb(io.BytesIO(self.content(index)), self.name(index))

    def take(self, indices: NDArray[np.int64]) -> "ShardList":
        """The pictures at these places."""
        names = [self.names[i] for i in indices.tolist()]
        columns = (self.labels, self.shards, self.offsets, self.sizes)
        return ShardList(self.files, names, *(column[indices] for column in columns))

    def in_reading_order(self) -> "ShardList":
        """The same pictures, shard after shard from first byte to last: what suits a pass without shuffling."""
        return self.take(np.lexsort((self.offsets, self.shards)))

    def lines(self) -> Iterator[str]:
        """One line per picture."""
        yield from self.names


@dataclass(frozen=True, kw_only=True)
class ListedShards:
    """A data set of shards."""

    parts: dict[str, ShardList]
    class_names: list[str]
    files: Sequence[ShardFile]
    indexed: bool
    """There was an index file."""

    def checksum(self) -> str:
        """sha256 over the checksums of all shards; where none are known, over sizes."""
        lines = (f"{Path(file.place).name} {file.size_bytes} {file.sha256}\n" for file in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def open_shard(place: str, cache: ShardCache, *, sha256: str = "", size_bytes: int | None = None) -> BinaryIO:
    """A shard by its path or URL, open for reading; raises `UserError` naming it."""
    if is_url(place):
        return cache.open(place, sha256=sha256, size_bytes=size_bytes)
    try:
        return Path(place).open("rb")
    except OSError as error:
        raise UserError(f"{place}: {error.strerror}; restore this shard") from None


def shard_cache(execution: ExecutionConfig) -> ShardCache:
    """The cache that a run uses."""
    folder = Path(execution.shard_cache).expanduser() if execution.shard_cache else data_root(None) / "shards"
    limit_gib = execution.shard_cache_gib
    return ShardCache(folder, None if limit_gib is None else int(limit_gib * 2**30))


def check_cache_holds_windows(listed: ListedShards, cache: ShardCache, window: int | None) -> None:
    """Raise `UserError` for an order that would fetch the same shards again and again in every epoch."""
    sizes = sorted((file.size_bytes for file in listed.files if is_url(file.place)), reverse=True)
    if cache.limit_bytes is None or sum(sizes) <= cache.limit_bytes:
        return
    in_use = sum(sizes[: 2 * window] if window else sizes)
    if in_use > cache.limit_bytes:
        raise UserError(
            f"execution.shard_cache_gib={cache.limit_bytes / 2**30:.3g} is too little: "
            + (f"two windows of {window} shards take" if window else "all shards, shuffled with each other, take")
            + f" {in_use / 2**30:.3g} GiB; raise it, or "
            + ("lower data.shuffle_window" if window else "shuffle within data.shuffle_window=N shards (docs/data.md)")
        )


def list_shards(root: str, cache: ShardCache) -> ListedShards:
    """Find the shards, their samples and classes.

    Raises `UserError` for what is not there, what is no index or no shard, and names that belong to no part.
    """
    if not is_url(root):
        root = str(Path(root).expanduser())
    if "{" in root or root.endswith(".tar"):
        return _scanned(_expanded(root), cache)
    if not is_url(root) and (Path(root) / UNFINISHED).exists():
        raise UserError(
            f"{root}: the conversion to shards was interrupted; run patchscale data shard again, it goes on"
        )
    if not is_url(root) and Path(root).is_dir() and not (Path(root) / INDEX).exists():
        found = sorted(str(path) for path in Path(root).glob("*.tar"))
        if not found:
            raise UserError(f"{root}: neither {INDEX} nor .tar files in it; make shards with: patchscale data shard")
        return _scanned(found, cache)
    place = root if INDEX in root else f"{root.rstrip('/')}/{INDEX}"
    return _listed(place, _index(place), cache)


def _index(place: str) -> ShardIndex:
    if is_url(place):
        return read_index(b"".join(read_url(place)), place)
    try:
        return read_index(Path(place).read_bytes(), place)
    except OSError as error:
        raise UserError(
            f"{place}: {error.strerror}; data.root must name a folder or URL of shards, or a pattern of them"
        ) from None


def _listed(place: str, index: ShardIndex, cache: ShardCache) -> ListedShards:
    by_part = {}
    for part, shards in index.parts.items():
        files = [ShardFile(place.replace(INDEX, shard.name), shard.size_bytes, shard.sha256) for shard in shards]
        by_part[part] = (files, shards)
    return _as_lists(index.classes, by_part, cache, indexed=True)


def _scanned(places: Sequence[str], cache: ShardCache) -> ListedShards:
    """Shards without index, divided by how their names begin: all or none with train, val or test."""
    by_part: dict[str, tuple[list[ShardFile], list[Shard]]] = {}
    parts = {place: part_of(_file_name(place)) for place in places}
    unnamed = [place for place, part in parts.items() if part is None]
    if unnamed and len(unnamed) < len(places):
        raise UserError(f"{unnamed[0]}: the name begins with neither train, val nor test, as those of other shards do")
    for place, part in parts.items():
        shard = _scan(place, cache)
        files, shards = by_part.setdefault(part or "train", ([], []))
        files.append(ShardFile(place, shard.size_bytes, shard.sha256))
        shards.append(shard)
    if "train" not in by_part:
        raise UserError(f"{places[0]}: there are shards of {', '.join(by_part)} but none of train; add them")
    labels = [label for _, shards in by_part.values() for shard in shards for label in shard.labels]
    classes = 1 + max(labels, default=-1)
    return _as_lists([str(label) for label in range(classes)], by_part, cache, indexed=False)


def _scan(place: str, cache: ShardCache) -> Shard:
    """What a scan finds; kept in the cache, for a shard from elsewhere together with its checksum."""
    remote = is_url(place)
    if remote:
        known = cache.folder / "scans" / f"{cache.key(place)}.json"
    else:
        try:
            status = Path(place).stat()
        except OSError as error:
            raise UserError(f"{place}: {error.strerror}; data.root must name shards that are there") from None
        key = cache.key(str(Path(place).resolve()), f"{status.st_size} {status.st_mtime_ns}")
        known = cache.folder / "scans" / f"{key}.json"
    if known.exists():
        try:
            return shard_from(json.loads(known.read_text()))
        except (ValueError, KeyError, TypeError):
            known.unlink()
    with open_shard(place, cache) as file:
        sha256 = _sha256(file) if remote else ""
        file.seek(0)
        shard = scan_shard(file, place, _file_name(place).removesuffix(".tar"), sha256=sha256)
    if remote:
        cache.rename(place, sha256)
    write_text(known, shard_to_json(shard))
    return shard


def _as_lists(
    classes: list[str],
    by_part: Mapping[str, tuple[Sequence[ShardFile], Sequence[Shard]]],
    cache: ShardCache,
    *,
    indexed: bool,
) -> ListedShards:
    """One list of pictures per part, as a folder of classes would list them."""
    if len(classes) < 2:
        raise UserError(f"shards of {len(classes)} class; classification needs two or more")
    everything = ShardFiles([file for files, _ in by_part.values() for file in files], cache)
    parts, first = {}, 0
    for part, (files, shards) in by_part.items():
        labels = np.concatenate([np.array(shard.labels, np.int64) for shard in shards])
        names = [name for shard in shards for name in shard.names]
        listed = ShardList(
            everything,
            names,
            labels,
            np.repeat(np.arange(first, first + len(shards)), [len(shard.names) for shard in shards]),
            np.concatenate([np.array(shard.offsets, np.int64) for shard in shards]),
            np.concatenate([np.array(shard.sizes, np.int64) for shard in shards]),
        )
        first += len(files)
        of_name = sorted(range(len(names)), key=lambda i: (labels[i], names[i]))
        parts[part] = listed.take(np.array(of_name, np.int64))
    return ListedShards(parts=parts, class_names=classes, files=everything.files, indexed=indexed)


def _expanded(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    require_webdataset()
    from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

    try:
        return list(braceexpand(pattern))
    except UnbalancedBracesError:
        raise UserError(f"{pattern}: braces do not match; write train-{{000..127}}.tar") from None


def _file_name(place: str) -> str:
    """The shard's own name in a path, URL or command."""
    words = place.split("?")[0].split() if place.startswith("pipe:") else [place.split("?")[0]]
    named = [word for word in words if word.endswith(".tar")] or words[-1:]
    return named[-1].rstrip("/").rpartition("/")[2]


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
