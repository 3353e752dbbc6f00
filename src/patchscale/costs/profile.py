"""What calibration found out about one device, and the file that it is kept in. No torch.

Files lie in `devices/` of the user's folder of settings, or of $PATCHSCALE_CONFIG_DIR: one JSON file a profile.
"""

import json
import math
import os
import re
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from patchscale.costs.roofline import TERMS, Speeds
from patchscale.errors import UserError
from patchscale.files import write_json

FORMAT = 1
MOST_OVERLAP = 64
"""Beyond it the norm that adds up two times is their maximum, and its powers overflow."""
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """How fast one device does training and inference steps, in one precision."""

    name: str
    """What `--device` takes, and the file's name."""
    device: str
    """cpu, cuda or mps."""
    device_name: str
    """As its driver calls it."""
    num_threads: int
    precision: str
    torch_version: str
    date: str
    """Day of the measurement, as 2026-11-22."""
    memory_offset_bytes: int
    """What a process needs beside its tensors: resident memory on a CPU; on CUDA all that is taken on the device."""
    measurements: tuple[dict[str, Any], ...]
    """The steps that were measured: model, sizes, train, checkpointing, step_time_s, repeats."""
    train: Speeds
    infer: Speeds

    @property
    def repeats(self) -> float:
        """How much slower a step was in its slower round, the largest of all steps; 1 with a single round."""
        return max((float(row.get("repeats", 1.0)) for row in self.measurements), default=1.0)


def profiles_folder() -> Path:
    """Where profiles are kept; it need not exist."""
    given = os.environ.get("PATCHSCALE_CONFIG_DIR")
    if given:
        return Path(given).expanduser() / "devices"
    import typer

    return Path(typer.get_app_dir("patchscale")) / "devices"


def profile_name(device_name: str, *, precision: str, num_threads: int | None) -> str:
    """A name made of the device's, as nvidia-h100-80gb-hbm3-bf16; with the threads for a CPU (None elsewhere)."""
    words = [device_name, precision, *([] if num_threads is None else [f"{num_threads}t"])]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def list_profiles() -> list[str]:
    """Names of all stored profiles."""
    return sorted(path.stem for path in profiles_folder().glob("*.json") if NAME.fullmatch(path.stem))


def save_profile(profile: DeviceProfile) -> Path:
    """Write the profile in place of one of the same name; returns the file. Raises `UserError` if it cannot."""
    if not NAME.fullmatch(profile.name):
        raise UserError(f"a profile cannot be called {profile.name!r}: use small letters, digits, dots and dashes")
    path = profiles_folder() / f"{profile.name}.json"
    try:
        write_json(path, {"format": FORMAT, **asdict(profile)})
    except OSError as error:
        raise _unwritable(path, error) from None
    return path


def check_profiles_folder() -> None:
    """Raises `UserError` if no profile could be kept here; for before the minutes of a measurement."""
    folder = profiles_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(path: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(f"profile {path} cannot be written ({reason}); set PATCHSCALE_CONFIG_DIR to another folder")


def load_profile(name: str) -> DeviceProfile:
    """The stored profile of that name; raises `UserError` if there is none, or its file is damaged."""
    stored = list_profiles()
    if name not in stored:
        raise UserError(f"no profile {name!r} is stored (there are: {', '.join(stored) or 'none'}); {_CALIBRATE}")
    path = profiles_folder() / f"{name}.json"
    try:
        return _read(name, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise UserError(f"profile {path} cannot be read ({reason}); remove it, or {_CALIBRATE}") from None


def readable_profiles() -> list[DeviceProfile]:
    """All stored profiles but the damaged ones, which `load_profile` refuses when they are asked for by name."""
    found = []
    for name in list_profiles():
        with suppress(UserError):
            found.append(load_profile(name))
    return found


_CALIBRATE = "run patchscale cost --calibrate"


def _read(name: str, written: Any) -> DeviceProfile:
    if not isinstance(written, dict):
        raise TypeError("it holds no profile")
    if written.get("format") != FORMAT:
        raise ValueError(f"format {written.get('format')!r}, not {FORMAT}")
    values = {field.name: written[field.name] for field in fields(DeviceProfile)}
    for field, kind in {"num_threads": int, "memory_offset_bytes": int, "precision": str, "device": str}.items():
        if not isinstance(values[field], kind):
            raise TypeError(f"{field} is {values[field]!r}")
    steps = tuple(dict(row) for row in values["measurements"])
    if not all(isinstance(row.get("repeats", 1.0), int | float) for row in steps):
        raise TypeError("repeats of a measurement is no number")
    if not all(isinstance(row["train"], bool) for row in steps):
        raise TypeError("train of a measurement is neither true nor false")
    speeds = {mode: _read_speeds(values[mode]) for mode in ("train", "infer")}
    texts = {field: str(values[field]) for field in ("device_name", "torch_version", "date")}
    return DeviceProfile(**values | {"name": name, "measurements": steps} | texts | speeds)


def _read_speeds(written: Any) -> Speeds:
    seconds = {str(term): float(value) for term, value in written["seconds"].items()}
    if set(seconds) != set(TERMS):
        raise ValueError(f"speeds of {', '.join(seconds) or 'nothing'}, not of {', '.join(TERMS)}")
    if not all(math.isfinite(value) and value > 0 for value in seconds.values()):
        raise ValueError("a speed is not a positive number")
    return Speeds(
        seconds=seconds,
        overlap=_overlap(written["overlap"]),
        fit_error=_share("fit_error", written["fit_error"]),
        leave_one_out_error=_share("leave_one_out_error", written["leave_one_out_error"]),
        undetermined=tuple(map(str, written["undetermined"])),
    )


def _overlap(value: Any) -> int:
    if not isinstance(value, int) or not 1 <= value <= MOST_OVERLAP:
        raise ValueError(f"overlap is {value!r}")
    return value


def _share(name: str, value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} is {value!r}")
    return number
