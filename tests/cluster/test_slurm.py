"""The Slurm that cluster tests start is a real one: it runs jobs on both nodes and remembers how they ended."""

import time

import pytest
from tests.cluster import slurm

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
