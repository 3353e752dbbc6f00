"""What runs ask of a cluster, and what is said where something is missing; no scheduler is started here."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from patchscale.errors import UserError
from patchscale.sweeps.executors.base import Ending, Options
from patchscale.sweeps.executors.command import RunProcess, record_mistake_of_ranks, train_command
from patchscale.sweeps.executors.local import LocalExecutor, number_of_gpus, oom_kills
from patchscale.sweeps.executors.ray import PASSED_ON
from patchscale.sweeps.resources import resources_of
from patchscale.sweeps.runner import run_study
from patchscale.sweeps.states import judge, write_down

from .conftest import study_asking


def test_later_rules_win_where_they_hold():
    found = study_asking(
        [
            {"gpus": 1, "time_h": 12, "slurm": {"partition": "gpu", "account": "vision"}},
            {"where": {"patch_size": 8}, "nodes": 2, "gpus": 8, "slurm": {"partition": "big"}},
        ],
        "resources.cpus=4",
    )
    small, large = (resources_of(config, found.resources) for config in found.configs)
    assert (small.nodes, small.gpus, small.cpus, small.time_h, small.processes_per_node) == (1, 1, 4, 12, 1)
    assert (large.nodes, large.gpus, large.cpus, large.time_h, large.processes_per_node) == (2, 8, 4, 12, 8)
    assert dict(large.slurm) == {"partition": "big", "account": "vision"}
    assert (small.devices, large.devices) == (1, 16)


def test_resources_are_no_part_of_a_run():
    assert study_asking([]).configs == study_asking({"gpus": 2}).configs


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        (3, r"resources: expected settings such as"),
        ({"gpu": 1}, r"resources\.gpu: no such resource; choose from nodes, gpus, "),
        ({"nodes": 0}, r"resources\.nodes: more than 0 \(got 0\)"),
        ({"cpus": 1.5}, r"resources\.cpus: a whole number \(got 1\.5\)"),
        ({"time_h": "long"}, r"resources\.time_h: a number \(got 'long'\)"),
        ({"slurm": "gpu"}, r"resources\.slurm: expected parameters of sbatch"),
        ([{}, {"where": {"patchsize": 2}}], r"resources 2\.where\.patchsize: no such setting of a run"),
        ({"nodes": 2, "gpus": 0.5}, r"a fraction of a GPU cannot be shared by 2 nodes"),
    ],
)
def test_mistakes_are_named(resources, words):
    with pytest.raises(UserError, match=words):
        study_asking(resources)


def test_several_processes_are_started_by_torchrun():
    run = Path("/runs/one")
    train = ["-m", "patchscale", "train", "--run-dir", "/runs/one"]
    assert train_command(run) == [sys.executable, *train]
    one = train_command(run, processes=4)
    assert one[-len(train) :] == train
    assert "--standalone" in one
    two = train_command(run, processes=4, nodes=2, meet_at="n0:20001", job="7.0")
    assert "--standalone" not in two
    assert " ".join(two).count("--nnodes 2 --rdzv-backend c10d --rdzv-endpoint n0:20001 --rdzv-id 7.0") == 1


def test_what_is_missing_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    if find_spec("submitit") is not None:
        with pytest.raises(UserError, match="--executor slurm needs sbatch, srun, squeue, scancel"):
            run_study(study_asking([]), tmp_path, executor="slurm")
    for name, module in (("slurm", "submitit"), ("ray", "ray")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=rf"--executor {name} needs {module}: pip install 'patchscale\[cluster\]'"):
            run_study(study_asking([]), tmp_path, executor=name)


def test_runs_that_do_not_fit_an_executor_are_refused(tmp_path):
    with pytest.raises(UserError, match="2 nodes are for --executor slurm; this is one machine"):
        run_study(study_asking({"nodes": 2}), tmp_path)


def test_several_processes_of_one_run_on_this_machine(tiny, tmp_path):
    table = run_study(tiny("resources.processes=2", patch_size=[8]), tmp_path, workers=1)
    assert table["status"].tolist() == ["done"]
    assert table["world_size"].tolist() == [2]


def test_each_process_on_this_machine_has_a_gpu_of_its_own():
    for resources, gpus in (({}, 1), ({"processes": 4}, 4), ({"processes": 4, "gpus": 1}, 1), ({"gpus": 2}, 2)):
        found = study_asking(resources)
        assert number_of_gpus(resources_of(found.configs[0], found.resources)) == gpus


def test_kills_for_memory_are_those_of_ones_own_group(tmp_path):
    for name, text in {
        "proc/vmstat": "nr_free_pages 5\noom_kill 7\n",
        "proc/self/cgroup": "0::/user/me\n",
        "sys/fs/cgroup/user/me/memory.events": "oom 3\noom_kill 2\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert oom_kills(tmp_path) == 2
    (tmp_path / "sys/fs/cgroup/user/me/memory.events").unlink()
    assert oom_kills(tmp_path) == 7
    assert oom_kills(tmp_path / "absent") == 0


def test_a_kill_for_memory_is_told_of_one_run_only(planned, tmp_path):
    executor = LocalExecutor(planned, Options(folder=tmp_path))
    executor._oom_kills = {"first": oom_kills() - 1, "second": oom_kills() - 1}
    assert executor._was_killed_for_memory("first")
    assert not executor._was_killed_for_memory("second")


REPORT = """{error}
============================================================
Root Cause (first observed failure):
[0]:
  rank      : 0 (local_rank: 0)
  exitcode  : {code} (pid: 77)
"""


def test_a_mistake_under_torchrun_is_recorded(planned, tmp_path):
    run, console = planned[0].run, tmp_path / "console.txt"
    console.write_text(REPORT.format(error="Traceback", code=1))
    assert record_mistake_of_ranks(run, console, since=0) is None
    assert run.status()["state"] == "queued"
    before = run.attempt()
    console.write_text(REPORT.format(error="error: execution.device=cuda: no such device here", code=2))
    assert record_mistake_of_ranks(run, console, since=0) == 2
    verdict = judge(run, Ending(exit_code=2), before=before)
    assert (verdict.kind, verdict.message) == ("config", "execution.device=cuda: no such device here")


def test_a_mistake_of_an_attempt_before_is_not_told_again(planned):
    run, console = planned[0].run, planned[0].run.path / "console.txt"
    console.write_text(REPORT.format(error="error: execution.device=cuda: no such device here", code=2))
    run.write_status("interrupted", message="saved")
    ended = RunProcess(run.path, [sys.executable, "-c", "print('stopped'); raise SystemExit(1)"])
    assert ended.wait() == 1
    assert run.status()["state"] == "interrupted"
    wrong = RunProcess(run.path, [sys.executable, "-c", "print('error: no such folder'); raise SystemExit(2)"])
    assert wrong.wait() == 2
    assert run.status()["message"] == "no such folder"


def test_a_run_with_a_result_is_done_though_saying_so_failed(planned):
    run, before = planned[0].run, planned[0].run.attempt()
    with run.lock():
        run.write_json("result.json", {})
        run.write_status("failed", kind="storage", message="no room for checksums")
    verdict = judge(run, Ending(exit_code=1), before=before)
    assert verdict.state == "done"
    write_down(run, verdict)
    assert run.status()["state"] == "done"
    assert (run.path / "checksums.json").exists()


def test_runs_on_ray_see_what_trackers_and_folders_of_weights_need():
    seen = [
        "PATCHSCALE_DATA",
        "OMP_NUM_THREADS",
        "TORCH_HOME",
        "HF_HUB_OFFLINE",
        "WANDB_API_KEY",
        "MLFLOW_TRACKING_URI",
    ]
    assert all(map(PASSED_ON.fullmatch, seen))
    assert not any(map(PASSED_ON.fullmatch, ["HOME", "PATH", "CUDA_VISIBLE_DEVICES", "MY_HF_HOME"]))
