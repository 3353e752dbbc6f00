"""What runs ask of a cluster, and what is said where something is missing; no scheduler is started here."""

import os
import signal
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from patchscale.errors import UserError
from patchscale.runs.claim import Owner, _started_ticks
from patchscale.runs.record import RunDirectory
from patchscale.sweeps.executors.base import Ending, Options
from patchscale.sweeps.executors.command import RunProcess, record_mistake_of_ranks, train_command
from patchscale.sweeps.executors.local import LocalExecutor, number_of_gpus, oom_kills
from patchscale.sweeps.executors.ray import PASSED_ON
from patchscale.sweeps.plan import plan_study
from patchscale.sweeps.resources import resources_of
from patchscale.sweeps.retries import FRUITLESS
from patchscale.sweeps.runner import run_study
from patchscale.sweeps.states import judge, write_down
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


def test_each_process_on_this_machine_has_a_gpu_of_its_own():
    for resources, gpus in (({}, 1), ({"processes": 4}, 4), ({"processes": 4, "gpus": 1}, 1), ({"gpus": 2}, 2)):
        found = study(resources)
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


TIME_LIMIT = "sbatch: error: Batch job failed: Requested time limit is invalid (missing or exceeds some limit)"
POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


@pytest.mark.parametrize(
    ("refusal", "later"),
    [
        (TIME_LIMIT, False),
        (f"sbatch: error: QOSMaxWallDurationPerJobLimit sbatch: error: Batch job submission failed: {POLICY}", False),
        (f"sbatch: error: QOSMaxSubmitJobPerUserLimit sbatch: error: Batch job submission failed: {POLICY}", True),
        (f"sbatch: error: AssocGrpSubmitJobsLimit sbatch: error: Batch job submission failed: {POLICY}", True),
        (f"sbatch: error: Batch job submission failed: {POLICY}", True),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", True),
        ("sbatch: error: Batch job submission failed: Invalid partition name specified", False),
    ],
)
def test_what_slurm_may_take_later(refusal, later):
    slurm = pytest.importorskip("patchscale.sweeps.executors.slurm")
    assert slurm.is_for_later(refusal) is later


@pytest.fixture
def planned(tmp_path):
    """Two runs that have their directories."""
    jobs = plan_study(study([]), tmp_path / "runs")
    for job in jobs:
        RunDirectory.create(tmp_path / "runs", "asks", job.config)
    return jobs


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Programs in the place of Slurm's: `says(name, text, code)`; `calls(name)` are the arguments of each call."""
    pytest.importorskip("submitit")

    class Programs:
        def says(self, name, text="", code=0):
            out = ">&2" if code else ""
            script = f'#!/bin/sh\necho "$@" >> {tmp_path}/{name}.calls\ncat {tmp_path}/{name}.says {out}\nexit {code}\n'
            (tmp_path / f"{name}.says").write_text(text)
            (tmp_path / "bin" / name).write_text(script)
            (tmp_path / "bin" / name).chmod(0o755)

        def calls(self, name):
            path = tmp_path / f"{name}.calls"
            return path.read_text().splitlines() if path.exists() else []

    (tmp_path / "bin").mkdir()
    programs = Programs()
    for name in ("sbatch", "srun", "squeue", "scancel", "sacct"):
        programs.says(name)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return programs


def slurm_executor(planned, tmp_path, said):
    from patchscale.sweeps.executors.slurm import SlurmExecutor

    return SlurmExecutor(planned, Options(folder=tmp_path / "runs" / "asks", say=said.append))


def flush_now(executor):
    executor._submitted = -1e9
    executor.flush()


def test_a_time_limit_that_slurm_refuses_ends_the_study(planned, slurm, tmp_path):
    executor = slurm_executor(planned, tmp_path, [])
    slurm.says("sbatch", TIME_LIMIT, 1)
    executor.start(planned[0])
    with pytest.raises(UserError, match=r"Slurm refuses the jobs: .*Requested time limit is invalid"):
        flush_now(executor)


def test_what_slurm_does_not_take_now_is_told_once_and_tried_again(planned, slurm, tmp_path):
    said = []
    executor = slurm_executor(planned, tmp_path, said)
    slurm.says("sbatch", "sbatch: error: Unable to contact slurm controller", 1)
    executor.start(planned[0])
    for _ in range(20):
        flush_now(executor)
    assert len(said) == 1
    assert "Slurm takes no jobs now: " in said[0]
    slurm.says("sbatch", "Submitted batch job 7")
    flush_now(executor)
    assert planned[0].run.read_json("job.json")["number"].startswith("7")
    assert list(executor.running) == [planned[0]]


def test_a_limit_that_holds_without_any_job_ends_the_study(planned, slurm, tmp_path):
    from patchscale.sweeps.executors.slurm import VAIN_TRIES

    executor = slurm_executor(planned, tmp_path, [])
    slurm.says("sbatch", POLICY, 1)
    executor.start(planned[0])
    slurm.says("squeue", "5|RUNNING|None\n")
    for _ in range(2 * VAIN_TRIES):  # other jobs of this user's may fill the limit
        flush_now(executor)
    slurm.says("squeue")
    with pytest.raises(UserError, match=r"Slurm refuses the jobs: .*job submit limit"):
        for _ in range(VAIN_TRIES):
            flush_now(executor)


def submitted(job, number, sweep):
    job.run.write_json("job.json", {"executor": "slurm", "number": number, "attempt": 0, "sweep": asdict(sweep)})


def test_a_job_of_another_sweep_is_not_submitted_again_and_not_cancelled(planned, slurm, tmp_path):
    said = []
    executor = slurm_executor(planned, tmp_path, said)
    slurm.says("squeue", "7_0|PENDING|Priority\n7_1|PENDING|Priority\n")
    submitted(planned[0], "7_0", replace(Owner.this_process(), pid=1, started_ticks=_started_ticks(1)))  # it lives
    submitted(planned[1], "7_1", replace(Owner.this_process(), started_ticks=1))  # a dead one
    for job in planned:
        executor.start(job)
    flush_now(executor)
    assert slurm.calls("sbatch") == []
    assert len(executor.running) == 2
    assert executor.stop(signal.SIGINT)
    assert slurm.calls("scancel") == ["7_1"]
    assert list(executor.running) == [planned[1]]
    assert said == ["1 jobs of another sweep go on; to end them: scancel 7_0"]
    executor.kill()
    assert slurm.calls("scancel") == ["7_1", "--signal=KILL 7_1"]


def test_a_job_of_its_own_that_slurm_has_queued_again_is_its_own(planned, slurm, tmp_path):
    executor = slurm_executor(planned, tmp_path, [])
    slurm.says("squeue", "7_0|PENDING|Priority\n")
    submitted(planned[0], "7_0", Owner.this_process())
    executor.start(planned[0])
    flush_now(executor)
    assert slurm.calls("sbatch") == []
    assert executor.stop(signal.SIGINT)
    assert slurm.calls("scancel") == ["7_0"]


@pytest.mark.parametrize(
    ("reason", "in_vain"),
    [
        ("PartitionConfig", True),
        ("QOSMaxWallDurationPerJobLimit", True),
        ("AssocMaxNodePerJobLimit", True),
        ("QOSMinCpuNotSatisfied", True),
        ("Resources", False),
        ("JobHeldUser", False),
        ("QOSMaxJobsPerUserLimit", False),
    ],
)
def test_a_job_that_waits_for_what_cannot_come_ends_the_study(planned, slurm, tmp_path, reason, in_vain):
    from patchscale.sweeps.executors.slurm import IN_VAIN_S

    executor = slurm_executor(planned, tmp_path, [])
    executor._jobs = {"7_0": planned[0], "7_1": planned[1]}
    slurm.says("squeue", f"7_0|PENDING|{reason}\n7_1|RUNNING|None\n")
    assert list(executor.ended(timeout_s=0)) == []
    assert slurm.calls("scancel") == [], "nodes may have to come back first"
    executor._looked = -1e9
    executor._in_vain = {number: since - IN_VAIN_S for number, since in executor._in_vain.items()}
    if in_vain:
        with pytest.raises(UserError, match=rf"Slurm will not start 1 of the jobs, .* \({reason}\)"):
            list(executor.ended(timeout_s=0))
        assert slurm.calls("scancel") == ["7_0"]
    else:
        assert list(executor.ended(timeout_s=0)) == []


def test_jobs_that_wait_with_other_resources_are_submitted_anew(planned, slurm, tmp_path):
    slurm.says("sbatch", "Submitted batch job 6")
    first = slurm_executor(planned, tmp_path, [])
    for job in planned:
        first.start(job)
    flush_now(first)
    number, running = (job.run.read_json("job.json")["number"] for job in planned)
    for job in planned:  # that sweep has ended since
        record = job.run.read_json("job.json")
        job.run.write_json("job.json", record | {"sweep": record["sweep"] | {"started_ticks": 1, "pid": 1}})
    slurm.says("squeue", f"{number}|PENDING|Resources\n{running}|RUNNING|None\n")
    same = slurm_executor(planned, tmp_path, [])
    assert set(same.adopt(planned)) == set(planned)
    corrected = study({"cpus": 2})
    options = Options(folder=tmp_path / "runs" / "asks", resources=corrected.resources)
    from patchscale.sweeps.executors.slurm import SlurmExecutor

    executor = SlurmExecutor(planned, options)
    assert set(executor.adopt(planned)) == {planned[1]}, "what runs goes on"
    assert slurm.calls("scancel") == [number]
    slurm.says("squeue", f"{number}|PENDING|Resources\n")  # it may still say so for a moment
    slurm.says("sbatch", "Submitted batch job 8")
    executor.start(planned[0])
    flush_now(executor)
    assert planned[0].run.read_json("job.json")["number"].startswith("8")


def test_what_sbatch_says_is_said_once(planned, slurm, tmp_path, capsys):
    executor = slurm_executor(planned, tmp_path, [])
    slurm.says("sbatch", TIME_LIMIT, 1)
    executor.start(planned[0])
    with pytest.raises(UserError, match="Requested time limit is invalid"):
        flush_now(executor)
    assert capsys.readouterr().err == ""


def test_jobs_that_wait_are_taken_back(planned, slurm, tmp_path):
    executor = slurm_executor(planned, tmp_path, [])
    executor._jobs = {"7_0": planned[0], "7_1": planned[1]}
    executor.start(planned[0])
    with planned[0].run.lock():
        executor.withdraw()
        executor.withdraw()
        assert slurm.calls("scancel") == ["7_1"], "once"
        assert list(executor.running) == planned, "Slurm says when it is gone; what was not submitted is gone now"
        assert executor.stop(signal.SIGINT)
    assert slurm.calls("scancel")[1:] == ["--signal=TERM 7_0"]


def test_rows_of_accounting_for_several_elements():
    slurm = pytest.importorskip("patchscale.sweeps.executors.slurm")
    assert slurm.elements("12_[4-6,8,20-24:2%5]") == ["12_4", "12_5", "12_6", "12_8", "12_20", "12_22", "12_24"]
    assert slurm.elements("12_3") == ["12_3"]
    assert slurm.elements("12") == ["12"]


@pytest.mark.parametrize("accounting", ["7_0|COMPLETED\n7_[1]|CANCELLED by 0\n", "7_0|COMPLETED\n"])
def test_an_element_that_was_cancelled_before_it_began_has_not_failed(planned, slurm, tmp_path, accounting):
    from patchscale.sweeps.executors.slurm import UNKNOWN_LOOKS

    executor = slurm_executor(planned, tmp_path, [])
    executor._jobs = {"7_1": planned[1]}
    slurm.says("sacct", accounting)
    found = []
    for _ in range(UNKNOWN_LOOKS):
        executor._looked = -1e9
        found += executor.ended(timeout_s=0)
    assert found == [(planned[1], Ending(cancelled="its job was cancelled"))]
    assert set(slurm.calls("sacct")) == {"--noheader --allocations --parsable2 --format=JobID,State --jobs 7"}


def test_a_running_job_is_asked_to_save_and_cancelled_only_if_it_does_not_end(planned, slurm, tmp_path):
    from patchscale.sweeps.executors.slurm import SAVING_S

    executor = slurm_executor(planned, tmp_path, [])
    executor._jobs = {"7_0": planned[0], "7_1": planned[1]}
    with planned[0].run.lock():
        assert executor.stop(signal.SIGINT)
        assert slurm.calls("scancel") == ["--signal=TERM 7_0", "7_1"]
        assert not executor.stop(signal.SIGINT), "once each"
        assert len(slurm.calls("scancel")) == 2
        executor._asked["7_0"] -= 2 * SAVING_S
        executor.stop(signal.SIGINT)
        executor.stop(signal.SIGINT)
    assert slurm.calls("scancel")[2:] == ["7_0"]


def test_a_job_that_never_gets_on_is_not_queued_again(planned):
    pytest.importorskip("submitit")
    from patchscale.sweeps.executors.slurm import RunAsJob

    run = planned[0].run
    for step in range(1, 2 * FRUITLESS):
        run.write_status("interrupted", step=step, steps=100)
        assert RunAsJob(1, 1).checkpoint(str(run.path)) is not None, "it gets on"
    again = [RunAsJob(1, 1).checkpoint(str(run.path)) is not None for _ in range(FRUITLESS + 1)]
    assert again == [True] * (FRUITLESS - 1) + [False] * 2
