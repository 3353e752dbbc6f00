"""Shards from elsewhere, kept on this machine: fetched whole, checked, and seen whole or not at all.

WebDataset's readers fetch them (`webdataset.gopen`: http, https, sftp, gs, hf, ais, and `pipe:command` for whatever a
command writes to its output). Any number of processes may use one folder. Of two that want the same shard one fetches
and the other waits. No torch.
"""

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from patchscale.errors import UserError

CHUNK_BYTES = 1 << 20
_CURL = {
    6: "the host is unknown",
    7: "no connection",
    18: "the transfer was cut short",
    22: "the server refuses: no such file, or no right to it",
    28: "no answer in time",
}
"""Exit codes of curl, from its manual."""


class ShardCache:
    """A folder of fetched shards, of at most `limit_bytes`; those not used for longest make room."""

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def open(self, url: str, *, sha256: str = "", size_bytes: int | None = None) -> BinaryIO:
        """The shard at `url`, open for reading; fetched if it is not here, and checked if its checksum is known.

        An open shard stays readable when it makes room for others. Raises `UserError` naming the shard if it cannot be
        had, is damaged, or finds no room.
        """
        path = self.folder / f"{self.key(url, sha256)}.tar"
        while True:
            with suppress(FileNotFoundError):
                file = path.open("rb")
                now = time.time_ns()
                os.utime(file.fileno(), ns=(now, now))  # used last
                return file
            self._fetch(path, url, sha256, size_bytes)

    def rename(self, url: str, sha256: str) -> None:
        """Keep the shard at `url`, fetched without knowing its checksum, as the one of this checksum."""
        with suppress(FileNotFoundError):
            (self.folder / f"{self.key(url)}.tar").rename(self.folder / f"{self.key(url, sha256)}.tar")

    def key(self, url: str, sha256: str = "") -> str:
        """The name of a shard in the folder; another content is another name."""
        return hashlib.sha256(f"{url}\n{sha256}".encode()).hexdigest()[:32]

    def _fetch(self, path: Path, url: str, sha256: str, size_bytes: int | None) -> None:
        part = path.with_suffix(".part")
        try:
            with self._lock(path.stem):
                if path.exists():  # another process was first
                    return
                try:
                    self._make_room(part, size_bytes or 0)
                    digest = hashlib.sha256()
                    with part.open("r+b") as file:
                        for chunk in read_url(url):
                            digest.update(chunk)
                            file.write(chunk)
                        file.truncate()
                        size = file.tell()
                    if sha256 and digest.hexdigest() != sha256:
                        raise UserError(
                            f"{url}: {size} bytes of sha256 {digest.hexdigest()[:12]}, expected {sha256[:12]}; "
                            "the shard is damaged, or was replaced after it was indexed"
                        )
                    if size_bytes is None:
                        self._make_room(part, size)
                    part.replace(path)
                finally:
                    part.unlink(missing_ok=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"{self.folder}: the disk is full, {url} does not fit; free some space, name another folder with "
                    "execution.shard_cache, or keep less with execution.shard_cache_gib"
                ) from None
            raise UserError(
                f"{self.folder}: {error.strerror or error}; name another with execution.shard_cache"
            ) from None

    def _make_room(self, part: Path, size_bytes: int) -> None:
        """Reserve `size_bytes` under the name `part`; shards not used for longest go, and what dead processes left."""
        with self._lock("room"):
            part.touch()
            with part.open("r+b") as file:
                file.truncate(max(size_bytes, file.seek(0, 2)))
            if self.limit_bytes is None:
                return
            if part.stat().st_size > self.limit_bytes:
                raise UserError(
                    f"execution.shard_cache_gib={self.limit_bytes / 2**30:g} is less than one shard "
                    f"({part.stat().st_size / 2**30:.3g} GiB); raise it"
                )
            for other in self.folder.glob("*.part"):
                if other != part:
                    with suppress(BlockingIOError), self._lock(other.stem, wait=False):
                        other.unlink(missing_ok=True)
            files = {}
            for path in [*self.folder.glob("*.tar"), *self.folder.glob("*.part")]:
                with suppress(FileNotFoundError):
                    files[path] = path.stat()
            too_much = sum(status.st_size for status in files.values()) - self.limit_bytes
            for path, status in sorted(files.items(), key=lambda item: item[1].st_mtime_ns):
                if too_much > 0 and path.suffix == ".tar":
                    path.unlink(missing_ok=True)
                    too_much -= status.st_size

    @contextmanager
    def _lock(self, name: str, *, wait: bool = True) -> Iterator[None]:
        """Held by one process at a time, and let go when it dies; raises `BlockingIOError` instead of waiting."""
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield


def read_url(url: str) -> Iterator[bytes]:
    """The bytes at a URL, piece by piece; raises `UserError` naming it if they cannot be had to the end."""
    require_webdataset()
    from webdataset.gopen import gopen, gopen_schemes

    scheme = url.partition(":")[0]
    if scheme not in gopen_schemes:
        raise UserError(
            f"{url}: webdataset has no reader for {scheme}://; use one of {', '.join(sorted(gopen_schemes)[1:])}, such "
            "as 'pipe:aws s3 cp s3://bucket/train-{000..127}.tar -'"
        )
    stream = None
    try:
        stream = gopen(url, "rb", bufsize=CHUNK_BYTES)
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk
        stream.close()  # raises if the reader failed
    except FileNotFoundError as error:
        raise UserError(f"{url}: {error.filename} is needed to fetch it, and is not installed") from None
    except OSError as error:
        if stream is None:
            raise
        status = getattr(stream, "status", None)
        words = _CURL.get(status) if scheme != "pipe" and status is not None else None
        words = words or (f"its reader ended with {status}" if status is not None else str(error))
        raise UserError(f"{url}: cannot be fetched ({words}); check the address and the connection") from None
    finally:
        if stream is not None:
            with suppress(OSError):
                stream.close()


def require_webdataset() -> None:
    """Raise `UserError` if webdataset is not installed."""
    if find_spec("webdataset") is None:
        raise UserError("patterns and URLs of shards need webdataset: pip install 'patchscale[data]'")
