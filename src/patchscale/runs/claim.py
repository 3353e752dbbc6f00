"""Who carries out a run: at most one process of all machines that share its folder. No torch.

Claims are numbered files that are created once and never removed; the highest one holds, until its owner releases it or
is found dead. To take a run over is to create the next number: creating a file that must not exist yet succeeds for one
process only, on NFS and Lustre too, where locks of the system may not reach other machines.

An owner beats: every few seconds it touches its claim's `.beat`, and before it writes what counts. One on this machine
is dead when its process is gone; one elsewhere, or one that is hidden from this process, when its last beat is too long
ago by the clock of the file server, which is the only one all share.
"""

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Self

BEAT_EVERY_S = 10.0
STALE_AFTER_S = 60.0
"""Without a beat for so long, an owner on another machine counts as dead. Longer than a pause of the file system."""

_NUMBER = re.compile(r"(\d{6})\.json")


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that holds a claim."""

    token: str
    """Unlike that of any other claim."""
    host: str
    boot_id: str
    """Changes when the machine restarts; process numbers start anew then."""
    pid_namespace: str
    """Containers on one machine count their processes each for itself."""
    pid: int
    started_ticks: int
    """When the process began, by its machine's clock: a later process may have the same number."""
    job: str | None
    """Job of a scheduler that it runs in, if any."""
    claimed_at: str

    @classmethod
    def this_process(cls) -> Self:
        """An owner of a new claim."""
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            boot_id=_boot_id(),
            pid_namespace=_pid_namespace(),
            pid=os.getpid(),
            started_ticks=_started_ticks(os.getpid()) or 0,
            job=os.environ.get("SLURM_JOB_ID"),
            claimed_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process that this one would see, since the machine started."""
        own = (_boot_id(), _pid_namespace())
        return bool(self.boot_id) and (self.boot_id, self.pid_namespace) == own

    @property
    def lives_here(self) -> bool | None:
        """Whether it is a living process of this machine; None if this process cannot tell."""
        if not self.is_here:
            return None
        ticks = _started_ticks(self.pid)
        if ticks is None and _is_hidden(self.pid):
            return None
        return ticks == self.started_ticks


class ClaimLost(RuntimeError):
    """This process was taken for dead, and another one carries out the run now."""


class Claim:
    """A claim that this process holds."""

    def __init__(self, folder: Path, number: int, owner: Owner) -> None:
        self.folder = folder
        self.number = number
        self.owner = owner

    def beat(self) -> None:
        """Show that this process lives; raises `ClaimLost` if it was taken for dead."""
        if _claim_path(self.folder, self.number + 1).exists():
            raise ClaimLost(f"{self.folder.parent}: this process was taken for dead, another one goes on with the run")
        _touch(_beat_path(self.folder, self.number))

    def release(self) -> None:
        """Let go of the run; where that cannot be written, the end of this process or of its beats tells as much."""
        with suppress(OSError):
            _touch(_released_path(self.folder, self.number))


def take_claim(folder: Path, *, stale_after_s: float = STALE_AFTER_S) -> Claim | None:
    """Claim what `folder` is about; None if a living process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    number = last_number(folder)
    while True:
        if number and not _is_free(folder, number, stale_after_s):
            return None
        number += 1
        owner = Owner.this_process()
        if _create(_claim_path(folder, number), owner):
            claim = Claim(folder, number, owner)
            claim.beat()
            return claim
        # Another process was faster; perhaps it has let go already.


def holder(folder: Path, *, stale_after_s: float = STALE_AFTER_S) -> Owner | None:
    """The process that holds a claim, None if there is none, or it is dead."""
    number = last_number(folder)
    if not number or _is_free(folder, number, stale_after_s):
        return None
    return _read(_claim_path(folder, number))


def last_number(folder: Path) -> int:
    """The highest claim's number, 0 if there is none."""
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return 0
    number = max((int(found[1]) for found in map(_NUMBER.fullmatch, names) if found), default=0)
    while _claim_path(folder, number + 1).exists():  # a listing may be older than a look at a name
        number += 1
    return number


@contextmanager
def beating(
    claim: Claim, *, every_s: float = BEAT_EVERY_S, when_lost: Callable[[], None] = lambda: None
) -> Iterator[threading.Event]:
    """Beat in a thread of its own inside; when the claim is lost, the event is set and `when_lost` called there."""
    lost, ended = threading.Event(), threading.Event()

    def beat() -> None:
        while not ended.wait(every_s):
            try:
                claim.beat()
            except ClaimLost:
                lost.set()
                when_lost()
                return
            except OSError:
                continue  # the file system is away; the next beat may reach it

    thread = threading.Thread(target=beat, name="beats of the run's claim", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        ended.set()
        thread.join()


def _is_free(folder: Path, number: int, stale_after_s: float) -> bool:
    if _released_path(folder, number).exists():
        return True
    owner = _read(_claim_path(folder, number))
    lives = None if owner is None else owner.lives_here
    if lives is not None:
        return not lives
    return _age_s(folder, number) > stale_after_s


def _age_s(folder: Path, number: int) -> float:
    """Seconds since the last beat."""
    beat = _beat_path(folder, number)
    return _since_s(folder, beat if beat.exists() else _claim_path(folder, number))


def _since_s(folder: Path, path: Path) -> float:
    """Seconds since a file was changed, by the clock of the file server."""
    last = path.stat().st_mtime
    probe = folder / f".now-{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime - last
    except OSError:  # runs of others, which may only be read
        return time.time() - last
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _create(path: Path, owner: Owner) -> bool:
    """Create the file whole, unless it exists: written under another name, then linked, which cannot replace."""
    written = path.with_name(f".{path.name}.{owner.token}")
    written.write_text(json.dumps(asdict(owner)) + "\n", encoding="utf-8")
    try:
        os.link(written, path)
    except FileExistsError:  # NFS says so, too, of the link that it has just made, if its answer was lost
        found = _read(path)
        return found is not None and found.token == owner.token
    except OSError:  # a file system without links
        return _create_exclusively(path, written)
    finally:
        written.unlink(missing_ok=True)
    return True


def _create_exclusively(path: Path, written: Path) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(written.read_text(encoding="utf-8"))
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> Owner | None:
    """The owner in a claim; None if the claim cannot be read (yet)."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _claim_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def _beat_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.beat"


def _released_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.released"


def _touch(path: Path) -> None:
    """Set the time of last change to the server's now; takes no room on the disk."""
    path.touch()


def last_beat_age_s(folder: Path) -> float | None:
    """Seconds since the owner of the highest claim last gave a sign of life; None without a claim."""
    number = last_number(folder)
    return _age_s(folder, number) if number else None


def claimed_since_s(folder: Path) -> float | None:
    """Seconds since the highest claim was made, by the clock of the file server; None without a claim."""
    number = last_number(folder)
    return _since_s(folder, _claim_path(folder, number)) if number else None


def _pid_namespace() -> str:
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


@cache
def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return ""


def _is_hidden(pid: int) -> bool:
    """Whether there is a process of this number that /proc does not show: another user's, where it is mounted so."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not Path(f"/proc/{pid}").exists()
    except OSError:
        return False
    return False


def _started_ticks(pid: int) -> int | None:
    """When a process of this machine began, in clock ticks since boot; None if there is none, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
