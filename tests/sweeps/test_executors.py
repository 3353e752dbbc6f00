"""What runs ask of a cluster, and what is said where something is missing; no scheduler is started here."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from patchscale.errors import UserError
from patchscale.sweeps.executors.command import train_command
from patchscale.sweeps.resources import resources_of
from patchscale.sweeps.runner import run_study
from patchscale.sweeps.study import build_study


def study(resources, *overrides):
    values = {
        "study": "asks",
        "base": {"model": {"name": "vit_test", "img_size": 16}, "data": {"name": "scenes"}},
        "grid": {"patch_size": [16, 8]},
        "resources": resources,
    }
    return build_study(values, overrides)


def test_later_rules_win_where_they_hold():
    found = study(
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
    assert study([]).configs == study({"gpus": 2}).configs


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
        study(resources)


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
            run_study(study([]), tmp_path, executor="slurm")
    for name, module in (("slurm", "submitit"), ("ray", "ray")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=rf"--executor {name} needs {module}: pip install 'patchscale\[cluster\]'"):
            run_study(study([]), tmp_path, executor=name)


def test_runs_that_do_not_fit_an_executor_are_refused(tmp_path):
    with pytest.raises(UserError, match="2 nodes are for --executor slurm; this is one machine"):
        run_study(study({"nodes": 2}), tmp_path)


def test_several_processes_of_one_run_on_this_machine(tiny, tmp_path):
    table = run_study(tiny("resources.processes=2", patch_size=[8]), tmp_path, workers=1)
    assert table["status"].tolist() == ["done"]
    assert table["world_size"].tolist() == [2]


def test_parameters_of_sbatch():
    pytest.importorskip("submitit")
    from patchscale.sweeps.executors.slurm import _parameters

    found = study(
        {"gpus": 2, "cpus": 8, "memory_gib": 1.5, "time_h": 0.5, "slurm": {"partition": "gpu", "reservation": "x"}}
    )
    needs = resources_of(found.configs[0], found.resources)
    parameters = _parameters(needs, 40)
    assert parameters["time"] == 30
    assert parameters["gpus_per_node"] == 2
    assert parameters["cpus_per_task"] == 8
    assert parameters["mem"] == "1536M"
    assert parameters["partition"] == "gpu"
    assert parameters["additional_parameters"] == {"requeue": True, "reservation": "x"}
