"""Keeping runs, and getting rid of failed ones. No torch."""

import shutil
import tarfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from patchscale.errors import UserError
from patchscale.runs.record import RunBusy, RunDirectory

SUFFIXES = {".tar": "w", ".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}


def archive(folders: Sequence[Path], file: Path) -> int:
    """Write run directories into a tar file, as study/run_id/...; it is read back before it gets its name.

    Returns its size in bytes. Raises `UserError` for an unknown suffix, a file that exists, and a run under way.
    """
    mode = SUFFIXES.get(file.suffix)
    if mode is None:
        raise UserError(f"--archive {file}: end the name in .tar, .tar.gz, .tar.xz or .tar.bz2")
    if file.exists():
        raise UserError(f"--archive {file}: exists; choose another name")
    inside = next((folder for folder in folders if folder.resolve() in file.resolve().parents), None)
    if inside is not None:
        raise UserError(f"--archive {file}: is in {inside}, which it is to hold; choose a place outside")
    running = [folder.name for folder in folders if RunDirectory(folder).is_locked()]
    if running:
        raise UserError(f"{len(running)} runs are under way ({running[0]}, ...): leave them out by --status done")
    names = [_name(folder) for folder in folders]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is there twice, in two folders of this name: archive them into two files")
    written = file.with_name(f".{file.name}.new")
    try:
        written.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(written, mode) as tar:  # type: ignore[call-overload]
            for folder in folders:
                tar.add(folder, _name(folder), filter=lambda item: None if _is_claim(item.name) else item)
        _read_back(written, folders)
        written.replace(file)
    finally:
        written.unlink(missing_ok=True)
    return file.stat().st_size


def delete(folder: Path) -> bool:
    """Remove a run directory, unless a process holds it, and what a kill has left of others; whether it was removed.

    Raises `UserError` if files of it cannot be removed; it is out of the way all the same.
    """
    run = RunDirectory(folder)
    try:
        with run.lock():
            # Out of the way at once, so that a kill leaves no half of a run.
            gone = folder.rename(folder.with_name(f".{folder.name}.deleted-{uuid.uuid4().hex}"))
    except RunBusy:
        return False
    for left in folder.parent.glob(".*.deleted-*"):
        shutil.rmtree(left, ignore_errors=True)  # it may be another user's, or another process removes it, too
    if gone.exists():
        raise UserError(f"{gone}: files of {folder.name}, which is deleted, are left; check their rights and remove it")
    return True


def _read_back(file: Path, folders: Sequence[Path]) -> None:
    sizes = {}
    with tarfile.open(file) as tar:
        for member in tar:
            if member.isfile():
                sizes[member.name] = _length(tar, member)
    for folder in folders:
        for path in folder.rglob("*"):
            name = f"{_name(folder)}/{path.relative_to(folder).as_posix()}"
            if path.is_file() and not _is_claim(name) and sizes.get(name) != path.stat().st_size:
                raise UserError(f"{path}: changed while it was archived, or the disk is at fault; try again")


def _name(folder: Path) -> str:
    return f"{folder.resolve().parent.name}/{folder.name}"


def _is_claim(name: str) -> bool:
    """Whether study/run_id/... is about who carries the run out, which is of no use elsewhere."""
    return name.split("/")[2:3] == ["claims"]


def _length(tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    """Of the content that can be read."""
    content = tar.extractfile(member)
    length = 0
    while content is not None and (part := content.read(2**20)):
        length += len(part)
    return length
