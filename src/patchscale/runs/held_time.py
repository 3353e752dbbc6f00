"""How long processes have worked on a run, whatever they saved: by the times of the files of their claims. No torch."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def held_time_s(claims: Path) -> float:
    """Seconds in which a process held a claim in this folder, over all attempts, by the clock of the file server.

    A claim that was let go counts until then, another one until its owner's last sign of life. 0 without claims.
    """
    return sum(_times_s(claims))


def _times_s(claims: Path) -> Iterator[float]:
    for claim in claims.glob("[0-9]*.json"):
        with suppress(OSError):  # of a run that is being removed
            ends = [path for path in (claim.with_suffix(".released"), claim.with_suffix(".beat")) if path.exists()]
            if ends:
                yield max(0.0, ends[0].stat().st_mtime - claim.stat().st_mtime)
