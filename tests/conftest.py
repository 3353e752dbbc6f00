"""One thread per process: two busy threads on two shared cores slow a small training step 20 to 50 times.

Processes that tests start can be made to wait (`tests/pausing.py`): Python imports `sitecustomize` when it starts.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
_PAUSES = str(Path(__file__).parent / "pauses")
if _PAUSES not in (_PATHS := os.environ.get("PYTHONPATH", "").split(os.pathsep)):  # in a worker of xdist it is
    os.environ["PYTHONPATH"] = os.pathsep.join([_PAUSES, *filter(None, _PATHS)])

_PEAKS = """
import json, os, sys
setup, *works = json.loads(sys.stdin.read())
space = {}
exec(setup, space)

def resident(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field + ":"))

for work in works:
    if os.fork() == 0:
        exec(setup, space)  # again: a child starts without the pages of its libraries
        before = resident("VmRSS")
        exec(work, space)
        print(resident("VmHWM") - before, flush=True)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"failed: {work}")
"""


@pytest.fixture(scope="session")
def peak_memory() -> Callable[..., list[int]]:
    """Run `setup` in a fresh process, then each piece of `works` in a child of it; bytes each took at its peak.

    `setup` should do the same kind of work on a small scale, so that what is taken once only is not counted.
    """
    if sys.platform != "linux":
        pytest.skip("the peak of a process is read from /proc")

    def measure(setup: str, *works: str) -> list[int]:
        done = subprocess.run(
            [sys.executable, "-c", _PEAKS],
            input=json.dumps([setup, *works]),
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},  # freed tensors go back to the system at once
        )
        assert done.returncode == 0, done.stderr
        return [int(line) for line in done.stdout.splitlines()]

    return measure
