"""What is free for a run: the machine's memory, and the limits of control groups of both versions."""

import pytest
import torch

from patchscale.training.available_memory import available_bytes, cgroup_available

CPU = torch.device("cpu")
GIB = 2**30


def test_this_machine_has_some_memory():
    assert 2**26 < available_bytes(CPU) < 2**50


def write_group(folder, limit, usage, cache, *, v2):
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, usage), strict=True):
        (folder / name).write_text(f"{value}\n")
    key = "inactive_file" if v2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 1\n{key} {cache}\n")


@pytest.mark.parametrize("v2", [True, False])
def test_control_groups_and_the_groups_above_limit_memory(tmp_path, v2):
    mount, membership = tmp_path / "fs", tmp_path / "cgroup"
    root = mount if v2 else mount / "memory"
    write_group(root / "job", 8 * GIB, 5 * GIB, 2 * GIB, v2=v2)
    write_group(root / "job/step", "max" if v2 else 2**63 - 4096, 4 * GIB, 0, v2=v2)
    membership.write_text("0::/job/step\n" if v2 else "5:cpu,cpuacct:/\n4:memory:/job/step\n0::/\n")
    assert min(cgroup_available(membership, mount)) == 5 * GIB


def test_a_container_sees_its_own_group_at_the_root(tmp_path):
    mount, membership = tmp_path / "fs", tmp_path / "cgroup"
    write_group(mount, 3 * GIB, 1 * GIB, 0, v2=True)
    membership.write_text("0::/kubepods/of-the-host\n")
    assert cgroup_available(membership, mount) == [2 * GIB]


def test_no_control_groups_no_limit(tmp_path):
    assert cgroup_available(tmp_path / "absent", tmp_path) == []
