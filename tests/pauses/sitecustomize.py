"""Imported by every Python that a test starts: it waits where a file named `pause` tells it to, until that is gone.

So a test meets a run in mid-flight on a machine of any speed: the run cannot end before the test has acted. See
`tests/conftest.py`. Nothing of patchscale is replaced; opening a file takes longer, that is all.
"""

import fnmatch
import json
import os
import sys
import time
from contextlib import suppress

LONGEST_S = 600
"""If the test died before it could let the process go on."""


def wait_at_a_pause(event: str, arguments: tuple) -> None:
    """Told of every file that is opened; looks for `pause` in the three folders above it."""
    if event != "open" or not isinstance(arguments[0], str | os.PathLike):
        return
    path = folder = os.fsdecode(arguments[0])
    if not path.endswith((".jsonl", ".tmp", ".safetensors", ".png")):
        return
    if path.endswith(".jsonl") and not arguments[2] & os.O_APPEND:  # it is read
        return
    for _ in range(3):
        folder = os.path.dirname(folder)  # noqa: PTH120
        pause = os.path.join(folder, "pause")  # noqa: PTH118
        if os.path.exists(pause):  # noqa: PTH110
            wait(pause, path)


def wait(pause: str, path: str) -> None:
    with suppress(OSError, ValueError):  # it is gone
        with open(pause) as file:  # noqa: PTH123
            asked = json.load(file)
        if not fnmatch.fnmatch(path, asked["opened"]) or last_step(os.path.dirname(pause)) < asked["after_step"]:  # noqa: PTH120
            return
        end = time.monotonic() + LONGEST_S
        with open(f"{pause}d", "w"):  # noqa: PTH123
            pass
        while os.path.exists(pause) and time.monotonic() < end:  # noqa: PTH110
            time.sleep(0.002)


def last_step(folder: str) -> int:
    """The last one that a run has logged; 0 if there is none, or no run."""
    with suppress(OSError, IndexError, ValueError, KeyError), open(os.path.join(folder, "metrics.jsonl")) as file:  # noqa: PTH118, PTH123
        return int(json.loads(file.read().splitlines()[-1])["step"])
    return 0


sys.addaudithook(wait_at_a_pause)
