"""The executor for Slurm, with programs in the place of its own that say what a test wants; see tests/cluster, too."""

import os
import signal
from dataclasses import asdict, replace

import pytest

from patchscale.errors import UserError
from patchscale.runs.claim import Owner, _started_ticks
from patchscale.sweeps.executors.base import Ending, Options
from patchscale.sweeps.executors.slurm_answers import elements, is_for_later
from patchscale.sweeps.resources import resources_of
from patchscale.sweeps.retries import FRUITLESS

from .conftest import study_asking

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
    assert is_for_later(refusal) is later


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
    corrected = study_asking({"cpus": 2})
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
    assert elements("12_[4-6,8,20-24:2%5]") == ["12_4", "12_5", "12_6", "12_8", "12_20", "12_22", "12_24"]
    assert elements("12_3") == ["12_3"]
    assert elements("12") == ["12"]


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
    from patchscale.sweeps.executors.slurm_job import RunAsJob

    run = planned[0].run
    for step in range(1, 2 * FRUITLESS):
        run.write_status("interrupted", step=step, steps=100)
        assert RunAsJob(1, 1).checkpoint(str(run.path)) is not None, "it gets on"
    again = [RunAsJob(1, 1).checkpoint(str(run.path)) is not None for _ in range(FRUITLESS + 1)]
    assert again == [True] * (FRUITLESS - 1) + [False] * 2


def test_parameters_of_sbatch():
    pytest.importorskip("submitit")
    from patchscale.sweeps.executors.slurm_job import parameters_of

    found = study_asking(
        {"gpus": 2, "cpus": 8, "memory_gib": 1.5, "time_h": 0.5, "slurm": {"partition": "gpu", "reservation": "x"}}
    )
    needs = resources_of(found.configs[0], found.resources)
    parameters = parameters_of(needs, 40)
    assert parameters["time"] == 30
    assert parameters["gpus_per_node"] == 2
    assert parameters["cpus_per_task"] == 8
    assert parameters["mem"] == "1536M"
    assert parameters["partition"] == "gpu"
    assert parameters["additional_parameters"] == {"requeue": True, "reservation": "x"}
