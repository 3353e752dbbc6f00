"""Two machines that share a folder over a network, as far as one machine can be two.

Each has a mount of its own, with the cache of its own that network file systems have (sshfs speaks SFTP with a server
here), and process numbers of its own, so that neither sees whether the other's processes live.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tests.pausing import go_on, pause, wait_until_paused

from patchscale.runs.claim import STALE_AFTER_S, Owner
from patchscale.runs.record import RunDirectory
from patchscale.sweeps.study import load_study

SFTP_SERVER = Path("/usr/lib/openssh/sftp-server")
MACHINES = ("one", "two")
ROUNDS = 100
CHAIN_S = 10.0

COMPETITOR = """
import os, sys, time
from pathlib import Path
from patchscale.runs.claim import take_claim

mount, shared, start, rounds, chain_s = Path(sys.argv[1]), Path(sys.argv[2]), *map(float, sys.argv[3:])
for number in range(int(rounds)):
    time.sleep(max(0, start + 0.1 * number - time.time()))
    for folder in (f"free-{number}", f"dead-{number}"):
        if take_claim(mount / folder) is not None:
            print(folder)
inside, end = shared / "inside", time.time() + chain_s  # on the server itself, past all caches
while time.time() < end:
    claim = take_claim(mount / "chain")
    if claim is None:
        time.sleep(0.005)
        continue
    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # FileExistsError if the other one is inside, too
    time.sleep(0.002)
    inside.unlink()
    claim.release()
    print("chain")
"""

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        shutil.which("sshfs") is None or not SFTP_SERVER.exists() or not os.access("/dev/fuse", os.W_OK),
        reason="sshfs or its server is not installed, or nothing can be mounted here",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide processes from each other"),
]


@contextmanager
def mounted(shared: Path, mount: Path) -> Iterator[None]:
    """`shared` at `mount`, through a server; caches are those of sshfs by default, of 20 seconds."""
    mount.mkdir()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server = subprocess.Popen([SFTP_SERVER], stdin=theirs, stdout=theirs)
        client = subprocess.Popen(["sshfs", "-f", "-o", "passive", f":{shared}", mount], stdin=ours, stdout=ours)
    try:
        end = time.monotonic() + 60
        while not mount.is_mount():
            assert client.poll() is None, "sshfs could not mount"
            assert time.monotonic() < end, "sshfs did not mount"
            time.sleep(0.05)
        yield
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)
        for process in (client, server):
            process.terminate()
            process.wait()


@pytest.fixture
def mounts(tmp_path):
    """What each machine calls the shared folder, and the folder itself."""
    shared = tmp_path / "shared"
    shared.mkdir()
    with mounted(shared, tmp_path / "one"), mounted(shared, tmp_path / "two"):
        yield tmp_path / "one", tmp_path / "two", shared


def start(command, **options):
    """A process that sees no others, and takes those that it has started with it when it is killed."""
    hidden = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return subprocess.Popen([*hidden, *map(str, command)], **options)


def test_one_machine_of_two_gets_a_claim(mounts):
    """Claims that are free, and those of a dead machine; then one claim again and again, never both inside."""
    *machines, shared = mounts
    then = time.time() - 2 * STALE_AFTER_S
    for number in range(ROUNDS):
        folder = shared / f"dead-{number}"
        folder.mkdir()
        owner = replace(Owner.this_process(), boot_id="of a machine that is gone")
        (folder / "000001.json").write_text(json.dumps(asdict(owner)))
        (folder / "000001.beat").touch()
        for path in folder.iterdir():
            os.utime(path, (then, then))
    arguments = [shared, time.time() + 3, ROUNDS, CHAIN_S]
    competitors = [
        start([sys.executable, "-c", COMPETITOR, machine, *arguments], stdout=subprocess.PIPE, text=True)
        for machine in machines
    ]
    won = [competitor.communicate()[0].split() for competitor in competitors]
    assert [competitor.returncode for competitor in competitors] == [0, 0]
    both = [name for each in won for name in each if name != "chain"]
    expected = [f"{kind}-{number}" for number in range(ROUNDS) for kind in ("free", "dead")]
    assert sorted(both) == sorted(expected), "each once"
    entered = [each.count("chain") for each in won]
    assert min(entered) > 20, entered
    assert len(list((shared / "chain").glob("??????.json"))) == sum(entered)
    print(f"{[len(each) - times for each, times in zip(won, entered, strict=True)]} won, {entered} in turn")


STUDY = """
study: shared
base:
  model: {name: vit_test, img_size: 16}
  data: {name: scenes, train_images: 32, val_images: 8, test_images: 8}
  training: {steps: 10, batch_size: 4, num_validations: 1}
  execution: {device: cpu, num_threads: 1, log_every_steps: 1, checkpoint_every_s: 0}
grid: {patch_size: [16, 8, 4], seed: [0, 1]}
"""


def test_runs_of_a_machine_that_dies_are_taken_over_by_another(mounts, tmp_path):
    """Both carry out one study; one fails with a run in mid-flight, which the other takes over when it is stale."""
    *machines, shared = mounts
    (tmp_path / "study.yaml").write_text(STUDY)
    runs = [RunDirectory(shared / "shared" / config.run_id) for config in load_study(tmp_path / "study.yaml").configs]
    for run in runs:
        pause(run.path, after_step=4)
    output = tmp_path / "sweeps.txt"
    sweep = [sys.executable, "-m", "patchscale", "sweep", tmp_path / "study.yaml", "--workers", "1", "--wait"]
    with output.open("ab") as out:
        first, second = [start([*sweep, "--runs-root", machine], stdout=out, stderr=out) for machine in machines]
    try:
        end = time.monotonic() + 240
        while len(met := [run for run in runs if (run.path / "paused").exists()]) < 2:
            assert time.monotonic() < end, output.read_text()
            time.sleep(0.1)
        wait_until_paused(*(run.path for run in met))
        first.kill()
        first.wait()
        died = time.time()
        for run in runs:
            go_on(run.path)
        assert second.wait(400) == 0, output.read_text()
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
    assert all(run.result() is not None for run in runs)
    attempts = {run.path.name: run.read_json("environment.json")["attempts"] for run in runs}
    assert sorted(map(len, attempts.values())) == [1] * (len(runs) - 1) + [2], attempts
    (taken,) = [run for run in runs if run.attempt() > 1]
    assert taken in met
    taken_over = (taken.claims_path / "000002.json").stat().st_mtime
    assert taken_over - died > STALE_AFTER_S / 2, "not before its owner is stale by the clock of the server"
