"""Pictures left out by name: `data.exclude`, a file that `patchscale data check --list-bad` writes. No torch."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from patchscale.config import DataConfig
from patchscale.data.listing import PictureList
from patchscale.errors import UserError
from patchscale.files import atomic_write, content_sha256


def write_names(path: Path, names: Iterable[str]) -> None:
    """One line per picture."""
    with atomic_write(path, "wb") as file:
        file.write("".join(f"{name}\n" for name in names).encode("utf-8", "surrogateescape"))


def not_excluded(data: DataConfig, parts: Mapping[str, PictureList]) -> dict[str, NDArray[np.bool_]] | None:
    """Which pictures of each part are kept, [N]; None if all are.

    Raises `UserError` if the file is not the one the run was made with, names no picture, or one that is not there.
    """
    if data.exclude is None:
        return None
    path = Path(data.exclude)
    if not path.is_file() or content_sha256(path) != data.exclude_sha256:
        raise UserError(
            f"data.exclude={path}: not the file this run was made with (SHA-256 {str(data.exclude_sha256)[:12]}...); "
            "put it back, or start a new run"
        )
    text = path.read_bytes().decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    wanted = {line for line in text.split("\n") if line.strip()}  # a name may hold what else ends a line, as U+2028
    if not wanted:
        raise UserError(f"data.exclude={path}: no names in it; leave it out")
    found: set[str] = set()
    kept = {}
    for part, pictures in parts.items():
        names = list(pictures.lines())
        kept[part] = np.array([name not in wanted for name in names], dtype=bool)
        found.update(names[i] for i in np.flatnonzero(~kept[part]))
    if unknown := sorted(wanted - found):
        raise UserError(
            f"data.exclude={path}: no picture {unknown[0]!r} in {data.root}; a line is a name as "
            "patchscale data check --list-bad FILE writes it"
        )
    return kept
