"""Let a process that a test starts wait at a place, so that the test meets it there on a machine of any speed."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

ROWS = "*metrics.jsonl"
FIRST_FILE_OF_A_CHECKPOINT = "*/.step-*.tmp/*.safetensors"
LAST_FILE_OF_A_CHECKPOINT = "*/.step-*.tmp/.manifest.json.*"


def pause(folder: Path, *, after_step: int = 0, opened: str = ROWS) -> None:
    """Let what works in `folder`, as a run does, wait when it opens a file like `opened`.

    With `after_step`, a run goes on until it has logged that step; by default it then waits before it logs the next.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / ".pause.new"
    written.write_text(json.dumps({"opened": opened, "after_step": after_step}))
    written.rename(folder / "pause")


def is_paused(folder: Path) -> bool:
    """Whether a process has come to its pause there."""
    return (folder / "paused").exists()


def wait_until_paused(*folders: Path, timeout_s: float = 240) -> None:
    """Return when a process waits in each folder."""
    end = time.monotonic() + timeout_s
    while not all(map(is_paused, folders)):
        assert time.monotonic() < end, "nothing came to its pause"
        time.sleep(0.01)


def go_on(folder: Path) -> None:
    """Let it go on, and leave no trace."""
    (folder / "pause").unlink(missing_ok=True)
    (folder / "paused").unlink(missing_ok=True)


def start_in_foreground(command: list[Any], **options: Any) -> "subprocess.Popen[Any]":
    """A process that Ctrl-C reaches, even if the tests were started where it is ignored (nohup, a shell's `&`)."""
    return subprocess.Popen(command, preexec_fn=_hear_ctrl_c, **options)


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
