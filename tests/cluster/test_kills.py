"""Studies of 40 runs that are killed 20 times, on every executor, end as if nothing had happened, bit for bit."""

import os
import signal
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.cluster import slurm
from tests.cluster.kills import Disturbed, assert_done_once_and_equal
from tests.pausing import go_on, pause, wait_until_paused

from patchscale.sweeps.runner import run_study

RUNS = int(os.environ.get("PATCHSCALE_KILL_RUNS", "40"))
KILLS = int(os.environ.get("PATCHSCALE_KILLS", "20"))
STEPS = 30
SEED = int(os.environ.get("PATCHSCALE_KILL_SEED", "0"))
TIMEOUT_S = 3600.0
"""For a machine with much else to do; alone a study takes a tenth of it."""

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(TIMEOUT_S + 600)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of the study's runs, carried out in peace."""
    folder = tmp_path_factory.mktemp("undisturbed")
    study = Disturbed(folder, runs=RUNS, steps=STEPS, seed=SEED, arguments=()).study
    assert set(run_study(study, folder / "runs", workers=2)["status"]) == {"done"}
    return folder / "runs" / "killed"


def carry_out(disturbed, undisturbed):
    try:
        disturbed.carry_out(KILLS, timeout_s=TIMEOUT_S)
    finally:
        disturbed.close()
    assert_done_once_and_equal(disturbed, undisturbed)
    assert len(disturbed.log) == KILLS + 1


def test_local(tmp_path, undisturbed):
    """Workers, the sweep, the server that forks workers, and all of them at once as when the machine fails."""
    disturbed = Disturbed(tmp_path, runs=RUNS, steps=STEPS, seed=SEED, arguments=("--workers", "2"))

    def kill_server():
        servers = [pid for pid in slurm.children_of(disturbed.process.pid) if is_fork_server(pid)]
        for pid in servers:
            slurm.kill(pid)
        return f"process {servers[0]}" if servers else None

    def kill_machine():
        everything = [disturbed.process.pid, *slurm.children_of(disturbed.process.pid)]
        for pid in everything:
            slurm.kill(pid)
        disturbed.process.wait()
        return f"{len(everything)} processes"

    disturbed.actions |= {"server": kill_server, "machine": kill_machine}
    carry_out(disturbed, undisturbed)


def is_fork_server(pid):
    with suppress(OSError):
        return b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing() or "there")
@pytest.mark.skipif(find_spec("submitit") is None, reason="submitit is not installed")
def test_slurm(tmp_path, undisturbed):
    """Workers, a node with all on it, the controller, and the sweep."""
    with slurm.SlurmCluster(tmp_path / "slurm", cpus_per_node=1) as cluster:
        disturbed = Disturbed(tmp_path, runs=RUNS, steps=STEPS, seed=SEED, arguments=("--executor", "slurm"))
        disturbed.environment = cluster.environment

        def kill_node():
            node = disturbed.draw.choice(slurm.NODES)
            cluster.kill(node)
            time.sleep(disturbed.draw.uniform(0, 3))
            cluster.start(node)
            return node

        def kill_controller():
            cluster.kill("slurmctld")
            time.sleep(disturbed.draw.uniform(0, 5))
            cluster.start("slurmctld")
            return "slurmctld"

        disturbed.actions |= {"node": kill_node, "scheduler": kill_controller}
        carry_out(disturbed, undisturbed)


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_ray(tmp_path, undisturbed, monkeypatch):
    """Workers, a node with all on it, the head with its scheduler and the sweep on it, and the sweep."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from tests.cluster.ray_nodes import RayCluster

    with RayCluster() as cluster:
        disturbed = Disturbed(tmp_path, runs=RUNS, steps=STEPS, seed=SEED, arguments=())

        def point_to_cluster():
            disturbed.arguments = ("--executor", "ray", "--ray-address", cluster.address)

        def kill_node():
            node = cluster.kill_node(disturbed.draw)
            time.sleep(disturbed.draw.uniform(0, 3))
            cluster.add_node()
            return node

        def kill_head():
            disturbed.kill_sweep()
            cluster.kill_head()
            cluster.start()
            point_to_cluster()
            return "head, with its scheduler"

        point_to_cluster()
        disturbed.actions |= {"node": kill_node, "scheduler": kill_head}
        carry_out(disturbed, undisturbed)


@pytest.fixture
def begun_here(tmp_path):
    """A study of which some runs are done on this machine and two are in mid-flight, saved; its sweep has ended."""
    disturbed = Disturbed(tmp_path, runs=RUNS, steps=STEPS, seed=SEED, arguments=("--workers", "2"))
    some, cut = disturbed.runs[: RUNS - 4], disturbed.runs[RUNS - 4 : RUNS - 2]
    for run in cut:
        pause(run.path, after_step=STEPS // 2)
    disturbed.start_sweep()
    wait_until_paused(*(run.path for run in cut), timeout_s=1200)
    disturbed.process.send_signal(signal.SIGTERM)
    disturbed.wait_until_said("stopping:")  # the runs have been told, and cannot end before they hear it
    for run in cut:
        go_on(run.path)
    assert disturbed.process.wait(120) == 128 + signal.SIGTERM
    assert all(run.result() is not None for run in some)
    assert [0 < run.status()["step"] < STEPS for run in cut] == [True, True]
    yield disturbed
    disturbed.close()


def end_elsewhere(disturbed, undisturbed):
    """The sweep of its new `arguments` ends the study; what was done is not done again."""
    disturbed.start_sweep()
    assert disturbed.process.wait(1200) == 0, disturbed.said()
    assert_done_once_and_equal(disturbed, undisturbed)
    attempts = [len(run.read_json("environment.json")["attempts"]) for run in disturbed.runs]
    assert attempts == [1] * (RUNS - 4) + [2, 2, 1, 1]


def test_a_study_begun_here_ends_on_ray(begun_here, undisturbed):
    pytest.importorskip("ray")
    begun_here.environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    begun_here.arguments = ("--executor", "ray", "--ray-address", "local")  # not the cluster of a test beside this one
    end_elsewhere(begun_here, undisturbed)


@pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing() or "there")
@pytest.mark.skipif(find_spec("submitit") is None, reason="submitit is not installed")
def test_a_study_begun_here_ends_on_slurm(begun_here, undisturbed, tmp_path):
    with slurm.SlurmCluster(tmp_path / "slurm", cpus_per_node=1) as cluster:
        begun_here.environment = cluster.environment
        begun_here.arguments = ("--executor", "slurm")
        end_elsewhere(begun_here, undisturbed)
