"""How much memory a device has left for a run."""

import os
from pathlib import Path

import torch


def available_bytes(device: torch.device) -> int:
    """Memory that this process could use on `device`: what is free, and on CUDA what it has reserved already."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    machine = _meminfo_available(Path("/proc/meminfo"))
    if machine is None:  # macOS, where nothing tells what is free
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *cgroup_available(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _meminfo_available(path: Path) -> int | None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def cgroup_available(membership: Path, mount: Path) -> list[int]:
    """What each control group of this process leaves of its memory limit; page cache counts as free.

    `membership` is /proc/self/cgroup, `mount` is /sys/fs/cgroup. Both versions, and all groups above: any may limit.
    """
    found: list[int] = []
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, limit, usage, cache = mount, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root = mount / "memory"
            limit, usage, cache = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        group = root / path.lstrip("/")
        # Inside a container the path may be the host's and not exist here; then its root is the container's group.
        for folder in (folder for folder in (group, *group.parents) if folder == root or root in folder.parents):
            try:
                allowed = int((folder / limit).read_text())  # v2 says "max" where there is none
                used = int((folder / usage).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            found.append(max(0, allowed - used + int(stat.get(cache, 0))))
    return found
