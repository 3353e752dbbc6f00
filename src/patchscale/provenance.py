"""What produced a number: versions of the packages that decide it, and the commit of this one. No torch needed."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from patchscale import __version__

PACKAGES = ("torch", "torchvision", "timm", "numpy")


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


def _torch_version() -> str:
    import torch

    return str(torch.__version__)  # with its build, as +cu132, which the package's metadata leave out
