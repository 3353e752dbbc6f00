"""The Slurm that cluster tests start is a real one: it runs jobs on both nodes and remembers how they ended."""

import signal
import subprocess
import sys
import time

import pytest
from tests.cluster import slurm
from tests.pausing import go_on, is_paused, pause, start_in_foreground, wait_until_paused

from patchscale.runs.record import RunDirectory
from patchscale.sweeps.study import load_study

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing() or "there"),
]


def states(cluster):
    """State and exit code of each job by its number."""
    lines = cluster.run("sacct", "-n", "-X", "-P", "-o", "JobID,State,ExitCode,NodeList").split()
    return {line.split("|")[0]: line.split("|")[1:] for line in lines}


def test_jobs_run_on_two_nodes_and_accounting_knows_how_they_ended(tmp_path):
    with slurm.SlurmCluster(tmp_path / "slurm") as cluster:
        for node, code in (("n0", 0), ("n1", 3)):
            cluster.run("sbatch", "-w", node, "-o", "/dev/null", "--wrap", f"exit {code}")
        deadline = time.monotonic() + 60
        while len(found := states(cluster)) < 2 or any(state in "PENDING RUNNING" for state, *_ in found.values()):
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
        assert found == {"1": ["COMPLETED", "0:0", "n0"], "2": ["FAILED", "3:0", "n1"]}
    assert all(process.poll() is not None for process in cluster.processes.values())


STUDY = """
study: taken-away
base:
  model: {name: vit_test, img_size: 16}
  data: {name: scenes, train_images: 32, val_images: 8, test_images: 8}
  training: {steps: 4000, batch_size: 4, num_validations: 1}
  execution: {device: cpu, num_threads: 1, log_every_steps: 1, checkpoint_every_s: 600}
grid: {patch_size: [16, 8]}
resources:
  - {cpus: 1, time_h: 1}
  - {where: {patch_size: 8}, time_h: 0.0167, slurm: {signal_delay_s: 25}}
"""


@pytest.mark.timeout(1500)
def test_a_preempted_job_and_one_whose_time_is_over_save_and_go_on(tmp_path):
    """Checkpoints are ten minutes apart, so that whatever a second attempt goes on from was saved on request."""
    (tmp_path / "study.yaml").write_text(STUDY)
    folder = tmp_path / "runs" / "taken-away"
    preempted, out_of_time = [
        RunDirectory(folder / config.run_id) for config in load_study(tmp_path / "study.yaml").configs
    ]
    to_take, told = {preempted.path, out_of_time.path}, []
    for path in to_take:
        pause(path, after_step=5)
    command = ["sweep", tmp_path / "study.yaml", "--runs-root", tmp_path / "runs", "--executor", "slurm"]
    with slurm.SlurmCluster(tmp_path / "slurm") as cluster, (tmp_path / "sweep.txt").open("wb") as output:
        sweep = subprocess.Popen(
            [sys.executable, "-m", "patchscale", *command], env=cluster.environment, stdout=output, stderr=output
        )
        end = time.monotonic() + 1400
        while sweep.poll() is None:
            assert time.monotonic() < end, (tmp_path / "sweep.txt").read_text()
            for path in filter(is_paused, list(to_take)):
                number = RunDirectory(path).read_json("job.json")["number"]
                if path == preempted.path:
                    cluster.run("scontrol", "requeue", number)
                else:  # an attempt before may have been told while it started
                    logs = [log.read_text() for log in folder.glob(f".slurm/{number}_*.out")]
                    told.append("".join(logs).count("Caught signal"))
                    if told[-1] == told[0]:
                        continue
                to_take.remove(path)
                go_on(path)
            hurry(cluster, *(["TimeLimit=60"] if out_of_time.path not in to_take else []))
            time.sleep(0.5)
    assert sweep.returncode == 0, (tmp_path / "sweep.txt").read_text()
    runs = [RunDirectory(path.parent) for path in (tmp_path / "runs").rglob("result.json")]
    assert len(runs) == 2
    for run in runs:
        first, *later = [attempt["first_step"] for attempt in run.read_json("environment.json")["attempts"]]
        assert first == 0
        assert later, f"{run.path.name} was not taken away"
        assert all(step > 0 for step in later), "it had saved when it was told to"
    assert "again, " not in (tmp_path / "sweep.txt").read_text(), "Slurm's own queue did it, not the sweep"


def hurry(cluster, *changes):
    """Slurm lets a job that is queued again wait two minutes; a user may ask it not to."""
    for line in cluster.run("squeue", "--noheader", "--array", "--format=%i %T %r", check=False).splitlines():
        number, state, reason = line.split(maxsplit=2)
        if state == "PENDING" and reason == "BeginTime":
            cluster.run("scontrol", "update", f"JobId={number}", "StartTime=now", *changes, check=False)


SAVED = """
study: stopped
base:
  model: {name: vit_test, img_size: 16}
  data: {name: scenes, train_images: 32, val_images: 8, test_images: 8}
  training: {steps: 100000, batch_size: 4, num_validations: 1}
  execution: {device: cpu, num_threads: 1, log_every_steps: 1, checkpoint_every_s: 600}
grid: {seed: [0, 1, 2]}
resources: {cpus: 1, time_h: 1}
"""


@pytest.mark.timeout(600)
def test_after_ctrl_c_a_run_has_longer_than_slurm_gives_to_save(tmp_path):
    """`KillWait` of this Slurm is 5 seconds, its default 30; jobs that wait are cancelled at once."""
    (tmp_path / "study.yaml").write_text(SAVED)
    runs = [
        RunDirectory(tmp_path / "runs" / "stopped" / config.run_id)
        for config in load_study(tmp_path / "study.yaml").configs
    ]
    for run in runs:
        pause(run.path, after_step=3)
    command = ["sweep", tmp_path / "study.yaml", "--runs-root", tmp_path / "runs", "--executor", "slurm"]
    with slurm.SlurmCluster(tmp_path / "slurm", cpus_per_node=1) as cluster, (tmp_path / "sweep.txt").open("wb") as out:
        sweep = start_in_foreground(
            [sys.executable, "-m", "patchscale", *command], env=cluster.environment, stdout=out, stderr=out
        )
        end = time.monotonic() + 300
        while sum(is_paused(run.path) for run in runs) < 2:  # as many as there are nodes
            assert sweep.poll() is None, (tmp_path / "sweep.txt").read_text()
            assert time.monotonic() < end, (tmp_path / "sweep.txt").read_text()
            time.sleep(0.2)
        sweep.send_signal(signal.SIGINT)
        time.sleep(3 * slurm.KILL_WAIT_S)
        for run in runs:
            go_on(run.path)
        assert sweep.wait(200) == 130, (tmp_path / "sweep.txt").read_text()
    saved = [run for run in runs if run.attempt()]
    assert len(saved) == 2
    for run in saved:
        status = run.read_json("status.json")
        assert status["state"] == "interrupted"
        assert [path.name for path in run.checkpoint_dir.iterdir()] == [f"step-{status['step']:08d}"]


MISTAKEN = """
study: mistaken
base:
  model: {name: vit_test, img_size: 16}
  data: {name: scenes, train_images: 32, val_images: 8, test_images: 8}
  training: {steps: 10, batch_size: 4, num_validations: 1}
  execution: {device: cuda}
grid: {seed: [%s]}
resources: {cpus: 1, time_h: 1}
"""


@pytest.mark.timeout(600)
def test_a_mistake_takes_back_the_jobs_that_wait(tmp_path):
    (tmp_path / "study.yaml").write_text(MISTAKEN % ", ".join(map(str, range(40))))
    command = ["sweep", tmp_path / "study.yaml", "--runs-root", tmp_path / "runs", "--executor", "slurm"]
    with slurm.SlurmCluster(tmp_path / "slurm", cpus_per_node=1) as cluster:
        sweep = subprocess.run(
            [sys.executable, "-m", "patchscale", *command],
            env=cluster.environment | {"CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert not cluster.run("squeue", "--noheader")
    output = sweep.stdout + sweep.stderr
    assert sweep.returncode == 1, output
    assert "a mistake in the configuration would fail every run" in output
    runs = [RunDirectory(path.parent) for path in (tmp_path / "runs").rglob("config.yaml")]
    found = [run.status()["state"] for run in runs]
    assert len(found) == 40
    assert 1 <= found.count("failed") < 20, "those that two nodes had begun before the sweep saw the first"
    assert all(run.attempt() == 0 for run in runs if run.status()["state"] != "failed"), found


TWO_NODES = """
study: two-nodes
base:
  model: {name: vit_test, img_size: 16, patch_size: 8}
  data: {name: scenes, train_images: 32, val_images: 8, test_images: 8}
  training: {steps: 20, batch_size: 4, num_validations: 1}
  execution: {device: cpu, num_threads: 1, log_every_steps: 1, checkpoint_every_s: 600}
resources: {nodes: 2, processes: 1, cpus: 1, time_h: 1}
"""


@pytest.mark.timeout(600)
def test_a_run_on_two_nodes_is_preempted_and_goes_on(tmp_path):
    """Its nodes meet through torchrun, save together when the job is told, and meet again."""
    (tmp_path / "study.yaml").write_text(TWO_NODES)
    (config,) = load_study(tmp_path / "study.yaml").configs
    run = RunDirectory(tmp_path / "runs" / "two-nodes" / config.run_id)
    pause(run.path, after_step=5)
    command = ["sweep", tmp_path / "study.yaml", "--runs-root", tmp_path / "runs", "--executor", "slurm"]
    with slurm.SlurmCluster(tmp_path / "slurm", cpus_per_node=1) as cluster, (tmp_path / "sweep.txt").open("wb") as out:
        sweep = subprocess.Popen(
            [sys.executable, "-m", "patchscale", *command], env=cluster.environment, stdout=out, stderr=out
        )
        wait_until_paused(run.path)
        cluster.run("scancel", "--signal=USR2", run.read_json("job.json")["number"])  # as before its time is over
        time.sleep(5)
        go_on(run.path)
        end = time.monotonic() + 400
        while sweep.poll() is None:
            assert time.monotonic() < end, (tmp_path / "sweep.txt").read_text()
            hurry(cluster)
            time.sleep(0.5)
    assert sweep.returncode == 0, (tmp_path / "sweep.txt").read_text()
    assert run.result()["world_size"] == 2
    attempts = run.read_json("environment.json")["attempts"]
    assert [attempt["first_step"] > 0 for attempt in attempts] == [False, True]
    assert "again, " not in (tmp_path / "sweep.txt").read_text(), "Slurm's own queue did it, not the sweep"
