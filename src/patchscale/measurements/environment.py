"""What a measurement has to say about where and with what it was made."""

import os
import platform
from datetime import UTC, datetime
from typing import Any

import torch

from patchscale.provenance import git_commit, versions
from patchscale.training.device import cpu_name, device_name


def environment(device: torch.device, *more_packages: str) -> dict[str, Any]:
    """Machine, threads, versions, commit and day, ready for JSON.

    Where only the files were copied to, $PATCHSCALE_COMMIT may say which commit they are.
    """
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": device.type,
        "device_name": device_name(device),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "versions": versions("triton", *more_packages),
        "git_commit": git_commit() or os.environ.get("PATCHSCALE_COMMIT"),
    }


def environment_words(where: dict[str, Any]) -> str:
    """The same in a line, for people."""
    packages = ", ".join(f"{name} {where['versions'][name]}" for name in ("patchscale", "torch", "timm"))
    return f"{where['device_name']}, CPU threads {where['num_threads']}, {packages}"
