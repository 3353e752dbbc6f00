"""Whether the files of a finished run are still what they were: checksums.json, written when the run is done. No torch.

Left out are config.yaml, whose `execution` may change and whose identity is in the folder's name, and logs.
"""

import hashlib
import json
from pathlib import Path

from patchscale.files import write_json

FILE = "checksums.json"
NAMES = ("result.json", "environment.json", "data.json", "metrics.jsonl")


def write_checksums(folder: Path) -> None:
    """Record the SHA-256 of the run's results and final weights."""
    write_json(folder / FILE, {path.relative_to(folder).as_posix(): _sha256(path) for path in _files(folder)})


def problems(folder: Path) -> list[str] | None:
    """What is wrong with the files of a finished run, in words; None if no checksums were recorded."""
    try:
        recorded = json.loads((folder / FILE).read_text(encoding="utf-8"))
        pairs = dict(recorded).items()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        return [f"{FILE} cannot be read ({error})"]
    found = []
    for name, sha256 in pairs:
        try:
            if _sha256(folder / name) != sha256:
                found.append(f"{name} has changed since the run was done")
        except FileNotFoundError:
            found.append(f"{name} is missing")
        except OSError as error:
            found.append(f"{name} cannot be read ({error.strerror})")
    return found


def _files(folder: Path) -> list[Path]:
    named = [folder / name for name in NAMES if (folder / name).is_file()]
    return [*named, *sorted((folder / "checkpoint").glob("*.safetensors"))]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
