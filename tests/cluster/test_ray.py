"""What a sweep on Ray says and does when Ray dies, is not there, or cannot give what runs need."""

import signal
import socket
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tests.cluster.kills import Disturbed
from tests.cluster.slurm import children_of, kill
from tests.pausing import start_in_foreground

from patchscale.errors import UserError
from patchscale.sweeps.executors.base import Options
from patchscale.sweeps.executors.ray import RayExecutor
from patchscale.sweeps.plan import plan_study
from patchscale.sweeps.resources import ResourceRule

pytest.importorskip("ray")
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


ON_RAY = ("--executor", "ray", "--ray-address", "local", "--workers", "2")
"""A Ray of its own, whatever other tests have started."""


@pytest.fixture(autouse=True)
def quiet_ray(monkeypatch):
    """Ray's files are apart, so that tests beside these do not find, and join, what is started here."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with TemporaryDirectory(dir="/tmp", prefix="ray-", ignore_cleanup_errors=True) as short:  # for names of sockets
        monkeypatch.setenv("RAY_TMPDIR", short)
        yield


@pytest.fixture
def sweep(tmp_path):
    """Of four runs that do not end by themselves, of which Ray may carry out two at a time."""
    disturbed = Disturbed(tmp_path, runs=4, steps=1_000_000, seed=0, arguments=ON_RAY)
    yield disturbed
    if disturbed.process is not None and disturbed.process.poll() is None:
        for pid in (disturbed.process.pid, *children_of(disturbed.process.pid)):
            kill(pid)
    for owner in [run.owner() for run in disturbed.runs]:
        if owner is not None:
            kill(owner.pid)


def named(pid, word):
    """Those of the process's children that are called so."""
    return [child for child in children_of(pid) if word in Path(f"/proc/{child}/comm").read_text()]


def wait_until(true, timeout_s=120):
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def begun(sweep):
    """Runs that have taken a step."""
    return [run for run in sweep.runs if (run.read_json("status.json") or {}).get("step")]


def test_when_ray_dies_the_sweep_ends_and_its_runs_save(sweep):
    sweep.start_sweep()
    wait_until(lambda: len(begun(sweep)) == 2)
    under_way = begun(sweep)
    (raylet,) = named(sweep.process.pid, "raylet")
    kill(raylet)
    assert sweep.process.wait(60) == 2, sweep.said()
    assert "error: Ray has died on this machine" in sweep.said()
    assert "; again, try" not in sweep.said()
    assert [run.is_locked() for run in sweep.runs] == [False] * 4
    assert [run.status()["state"] for run in under_way] == ["interrupted"] * 2, "they have saved and said so"
    assert not list(sweep.folder.rglob("retries.json"))


def nobody():
    """An address of this machine where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_an_address_where_nothing_answers_is_told_at_once(monkeypatch):
    address, began = nobody(), time.monotonic()
    with pytest.raises(UserError, match=f"^no Ray cluster at {address}: nothing answers"):
        RayExecutor([], Options(ray_address=address))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"^no Ray cluster at {address}: nothing answers"):
        RayExecutor([], Options(ray_address="auto"))
    with pytest.raises(UserError, match=r"^ray://head:10001: give host:port"):
        RayExecutor([], Options(ray_address="ray://head:10001"))
    with pytest.raises(UserError, match=r"^no Ray cluster at head: Invalid address"):
        RayExecutor([], Options(ray_address="head"))
    assert time.monotonic() - began < 20


def options(resources, **others):
    return Options(resources=[ResourceRule(where={}, settings=resources)], **others)


@pytest.fixture
def planned(sweep):
    return plan_study(sweep.study, sweep.folder / "runs")


def test_what_this_machine_cannot_give_is_refused(planned):
    with pytest.raises(UserError, match=r"^resources: 1 CPU, 64 GPUs for a run, but the Ray of this machine has \d"):
        RayExecutor(planned, options({"gpus": 64}, ray_address="local"))


def test_what_no_node_of_a_cluster_has_is_waited_for_and_told(planned):
    from ray.cluster_utils import Cluster

    said = []
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1, "include_dashboard": False})
    try:
        for resources in ({"cpus": 100}, {"gpus": 0.25}, {"gpus": 2, "memory_gib": 1e5}):
            RayExecutor(planned, options(resources, ray_address=cluster.address, say=said.append)).close()
    finally:
        cluster.shutdown()
    assert said == [
        "no node of the cluster has 100 CPUs: 4 runs wait until one joins",
        "no node of the cluster has 1 CPU, 2 GPUs, 1e+05 GiB of memory: 4 runs wait until one joins",
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_stopped_while_ray_starts_says_how_it_goes_on(sweep, number):
    command = [sys.executable, "-m", "patchscale", "sweep", sweep.file, *ON_RAY]
    with (sweep.folder / "sweep.txt").open("wb") as output:
        sweep.process = start_in_foreground(command, cwd=sweep.folder, stdout=output, stderr=output)
    wait_until(lambda: named(sweep.process.pid, "gcs_server"))
    sweep.process.send_signal(number)
    assert sweep.process.wait(60) == 128 + number
    assert "stopped; finished runs are kept, the others go on with: patchscale sweep" in sweep.said()
