"""The Slurm that cluster tests start is a real one: it runs jobs on both nodes and remembers how they ended."""

import subprocess
import sys
import time

import pytest
from tests.cluster import slurm

from patchscale.runs.record import RunDirectory

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
  training: {steps: 25000, batch_size: 4, num_validations: 1}
  execution: {device: cpu, num_threads: 1, checkpoint_every_s: 600}
grid: {patch_size: [16, 8]}
resources:
  - {cpus: 1, time_h: 1}
  - {where: {patch_size: 8}, time_h: 0.0167, slurm: {signal_delay_s: 25}}
"""


@pytest.mark.timeout(1500)
def test_a_preempted_job_and_one_whose_time_is_over_save_and_go_on(tmp_path):
    """Checkpoints are ten minutes apart, so that whatever a second attempt goes on from was saved on request."""
    (tmp_path / "study.yaml").write_text(STUDY)
    command = ["sweep", tmp_path / "study.yaml", "--runs-root", tmp_path / "runs", "--executor", "slurm"]
    with slurm.SlurmCluster(tmp_path / "slurm") as cluster, (tmp_path / "sweep.txt").open("wb") as output:
        sweep = subprocess.Popen(
            [sys.executable, "-m", "patchscale", *command], env=cluster.environment, stdout=output, stderr=output
        )
        end = time.monotonic() + 1400
        preempted = None
        while sweep.poll() is None:
            assert time.monotonic() < end, (tmp_path / "sweep.txt").read_text()
            for folder in (tmp_path / "runs" / "taken-away").glob("*-p16-*"):
                run = RunDirectory(folder)
                if preempted is None and run.metrics_path.exists():
                    preempted = run
                    cluster.run("scontrol", "requeue", run.read_json("job.json")["number"])
            hurry(cluster)
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


def hurry(cluster):
    """Slurm lets a job that is queued again wait two minutes; a user may ask it not to."""
    for line in cluster.run("squeue", "--noheader", "--array", "--format=%i %T %r", check=False).splitlines():
        number, state, reason = line.split(maxsplit=2)
        if state == "PENDING" and reason == "BeginTime":
            cluster.run("scontrol", "update", f"JobId={number}", "StartTime=now", check=False)
