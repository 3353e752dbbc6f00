"""What produced a number: versions of the packages that decide it, and the commit of this one. No torch needed."""

import hashlib
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from patchscale import __version__

PACKAGES = ("torch", "torchvision", "timm", "numpy")
DECIDING = ("models", "tasks", "data", "training")
"""Folders of the package that decide what a run computes."""


def versions(*more: str) -> dict[str, str]:
    """Versions of Python, of what always decides the numbers, and of `more` packages; "missing" where not installed."""
    found = {"python": platform.python_version(), "patchscale": __version__}
    for package in (*PACKAGES, *more):
        try:
            found[package] = _torch_version() if package == "torch" else version(package)
        except (PackageNotFoundError, ImportError):
            found[package] = "missing"
    return found


def git_commit() -> str | None:
    """Commit of the package's own repository, with "+changes" if files differ; None if it is not in one."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # installed inside somebody else's repository?
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def code_version() -> str:
    """Ten hexadecimal digits of the source that decides what a run computes; commits of other parts leave it alone."""
    package = Path(__file__).parent
    deciding = [path for folder in DECIDING for path in sorted((package / folder).rglob("*.py"))]
    digest = hashlib.sha256()
    for path in (*deciding, package / "config.py", package / "shapes.py", package / "head_shapes.py"):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:10]


def _torch_version() -> str:
    import torch

    return str(torch.__version__)  # with its build, as +cu132, which the package's metadata leave out
