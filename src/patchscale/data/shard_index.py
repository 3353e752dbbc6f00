"""What is in the shards of a data set, and where: the index file, and the scan of shards without one. No torch.

A shard is a plain tar archive in WebDataset's layout: files that share their name up to its first dot are one sample.
A sample is a picture and its class: `x.jpg` with `x.cls` (the number of the class as text), or with `x.json` that holds
it as `label`. `index.json` beside the shards lists classes, and for every shard its checksum and the place of every
picture in it, so that any picture is one read.
"""

import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from patchscale.data.folders import PARTS, SUFFIXES
from patchscale.errors import UserError

INDEX = "index.json"
SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.tar")
"""What an index may call a shard: nothing that leaves its folder, or that means something to a shell."""
FORMAT = "patchscale shards 1"
UNFINISHED = ".unfinished"
"""Folder of what is known of the shards of a conversion that has not come to its end."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One archive; the lists have one entry per sample, in the order of the archive."""

    name: str
    size_bytes: int
    sha256: str
    names: list[str]
    """Of the pictures: the path that each had in its folder, or its name in the archive."""
    offsets: list[int]
    """First byte of each picture in the archive."""
    sizes: list[int]
    """Bytes of each picture."""
    labels: list[int]
    source: str = ""
    """Digest of the files that it was made of, by name, size and time."""


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The shards of each part, and the classes."""

    classes: list[str]
    parts: Mapping[str, Sequence[Shard]]

    def to_json(self) -> str:
        """The index file, a line per shard."""
        lines = [f'{{"format": {json.dumps(FORMAT)},', f'"classes": {json.dumps(self.classes)},', '"parts": {']
        parts = []
        for part, shards in self.parts.items():
            of_part = ",\n".join(shard_to_json(shard) for shard in shards)
            parts.append(f"{json.dumps(part)}: [\n{of_part}\n]")
        return "\n".join([*lines, ",\n".join(parts), "}}", ""])


def shard_to_json(shard: Shard) -> str:
    """One line."""
    return json.dumps({**asdict(shard), "samples": len(shard.names)}, separators=(",", ":"))


def shard_from(values: Mapping[str, Any]) -> Shard:
    """The inverse; raises `KeyError`, `TypeError` or `ValueError` for what is no shard."""
    values = dict(values)
    samples = values.pop("samples")
    shard = Shard(**values)
    columns = (shard.names, shard.offsets, shard.sizes, shard.labels)
    if any(len(column) != samples for column in columns):
        raise ValueError(f"{shard.name}: {samples} samples, and lists of {[len(column) for column in columns]}")
    return shard


def read_index(content: bytes, where: str) -> ShardIndex:
    """Raises `UserError` naming `where` if that is no index of shards."""
    try:
        values = json.loads(content)
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r}")
        classes = [str(name) for name in values["classes"]]
        parts = {part: [shard_from(shard) for shard in shards] for part, shards in values["parts"].items()}
        for shards in parts.values():
            for shard in shards:
                if not SHARD_NAME.fullmatch(shard.name):
                    raise ValueError(f"{shard.name[:60]!r} is not the name of a shard: letters, digits, - _ . and .tar")
                if not all(0 <= label < len(classes) for label in shard.labels):
                    raise ValueError(f"{shard.name}: a label that is no class")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        words = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"{where}: not an index of shards ({words}); write it again with: patchscale data shard"
        ) from None
    if set(parts) - set(PARTS) or "train" not in parts:
        raise UserError(f"{where}: parts {', '.join(parts) or 'none'}; expected train and, if there are any, val, test")
    return ShardIndex(classes=classes, parts=parts)


def scan_shard(file: BinaryIO, where: str, name: str, *, sha256: str = "") -> Shard:
    """Find every sample of an archive by its headers; pictures are not read.

    Raises `UserError` naming `where` and the sample for an archive that is compressed or ends early, and for a sample
    without picture or class, or with two pictures.
    """
    pictures: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                key, extension = _key(member.name)
                if not member.isfile() or key is None:
                    continue
                if f".{extension}" in SUFFIXES:
                    if key in pictures:
                        raise UserError(f"{where}: sample {key} has two pictures; a sample is a picture and its class")
                    pictures[key] = (member.name, member.offset_data, member.size)
                elif extension in ("cls", "json"):
                    content = archive.extractfile(member)
                    assert content is not None
                    labels[key] = _label(content.read(), extension, f"{where}: {member.name}")
            end = archive.offset
    except tarfile.TarError as error:
        raise UserError(f"{where}: not a plain tar archive, or cut short ({error}); shards are .tar files") from None
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise UserError(f"{where}: cut short, its end mark is missing; bring it here again")
    for key in [*pictures, *labels]:
        if key not in pictures or key not in labels:
            missing = "class (.cls or .json with label)" if key in pictures else f"picture ({', '.join(SUFFIXES)})"
            raise UserError(f"{where}: sample {key} has no {missing}; a sample is a picture and its class")
    return Shard(
        name=name,
        size_bytes=file.seek(0, 2),
        sha256=sha256,
        names=[f"{name}/{path}" for path, _, _ in pictures.values()],
        offsets=[offset for _, offset, _ in pictures.values()],
        sizes=[size for _, _, size in pictures.values()],
        labels=[labels[key] for key in pictures],
    )


def part_of(name: str) -> str | None:
    """The part that a shard's name begins with, if it does: train-000017.tar is of train."""
    return next((part for part in PARTS if name.lower().startswith(part)), None)


def _key(path: str) -> tuple[str | None, str]:
    """WebDataset's rule: folder and name up to its first dot; the rest is the extension."""
    match = re.match(r"^((?:.*/|)[^./]+)[.]([^/]*)$", path)
    return (match[1], match[2].lower()) if match else (None, "")


def _label(content: bytes, extension: str, where: str) -> int:
    try:
        value = json.loads(content)["label"] if extension == "json" else content.decode()
        label = int(value)
        if label < 0:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{where}: {content[:40]!r} is not the number of a class, 0 or more") from None
    return label
