"""Killed again and again, also in the middle of writing a checkpoint, a run ends with the same result, bit for bit."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.pausing import FIRST_FILE_OF_A_CHECKPOINT, LAST_FILE_OF_A_CHECKPOINT, go_on, is_paused, pause
from tests.training.conftest import outcome, start, start_process, wait_until

from patchscale.training.loop import run_training

# All that draws random numbers or keeps state, and a row, a status and a checkpoint at every step.
SETTINGS = (
    "model.drop_path_rate=0.3",
    "data.augment=crop",
    "training.mixup=0.8",
    "training.cutmix=1.0",
    "training.ema_decay=0.9",
    "training.num_validations=3",
    "execution.log_every_steps=1",
    "execution.checkpoint_every_s=0",
)

TIMEOUT_S = 600.0
"""What a start and a few steps may take on a machine with much else to do."""


@dataclass
class Kills:
    """What became of the kills of one run."""

    landed: int = 0
    in_writes: int = 0
    """Those that left a half-written checkpoint behind."""
    missed: int = 0
    """The run had ended before."""


class OneProcess:
    """A run as a sweep starts it."""

    def __init__(self, run):
        self.process = start(run)

    def is_alive(self):
        return self.process.is_alive()

    def kill(self, draw):
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL


class TwoRanks:
    """A run of two processes that torch has been imported for: seconds instead of the minute of torchrun."""

    def __init__(self, run):
        import training_on_ranks

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        jobs = [("train", str(run.path))]
        self.processes = [start_process(training_on_ranks.on_ranks, rank, 2, port, jobs) for rank in range(2)]

    def is_alive(self):
        return all(process.is_alive() for process in self.processes)

    def kill(self, draw):
        for process in draw.sample(self.processes, k=2):
            process.kill()
        return self.wait() == [-signal.SIGKILL] * 2

    def wait(self):
        for process in self.processes:
            process.join()
        return [process.exitcode for process in self.processes]


class Torchrun:
    """A run of two processes, as a user starts it."""

    def __init__(self, run):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        with (run.path / "torchrun.log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, "-m", "patchscale", "train", "--run-dir", str(run.path)],
                stdout=log,
                stderr=log,
                env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            )

    def is_alive(self):
        return self.process.poll() is None

    def kill(self, draw):
        """The whole machine goes down, or one rank alone; torchrun then ends the other."""
        ranks = descendants(self.process.pid)
        alone = bool(ranks) and draw.random() < 0.5
        for pid in [draw.choice(ranks)] if alone else [self.process.pid, *ranks]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return self.process.wait(timeout=120) != 0


def descendants(pid):
    """Process ids of the children of a process, and of theirs."""
    try:
        children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [each for child in children for each in (child, *descendants(child))]


def half_written(run):
    return list(run.checkpoint_dir.glob(".step-????????.tmp"))


def step_of(run):
    return (run.read_json("status.json") or {}).get("step", 0)


def kill_at_random(run, launch, kills, *, steps, seed=0):
    """Kill the run `kills` times at moments spread over its `steps`: anywhere, and inside checkpoint writes."""
    draw, counted = random.Random(seed), Kills()
    moments = [("writing", "after a step", "writing", "starting")[number % 4] for number in range(kills)]
    draw.shuffle(moments)
    for step, moment in zip(sorted(draw.choices(range(1, steps * 9 // 10), k=kills)), moments, strict=True):
        pause_at(moment, run, step, steps, draw)
        attempt = launch(run)
        try:
            wait_for(moment, run, attempt, step, draw)
        finally:
            landed = attempt.kill(draw)
            go_on(run.path)
        counted.landed += landed
        counted.missed += not landed
        counted.in_writes += landed and bool(half_written(run))
        wait_until(lambda: not run.is_locked(), TIMEOUT_S)
    return counted


def pause_at(moment, run, step, steps, draw):
    """So that a kill cannot come too late: before its last row, or in the midst of writing a checkpoint."""
    if moment == "writing":
        files = draw.choice([FIRST_FILE_OF_A_CHECKPOINT, LAST_FILE_OF_A_CHECKPOINT])
        pause(run.path, after_step=step, opened=files)
    else:
        pause(run.path, after_step=steps - 1)


def wait_for(moment, run, attempt, step, draw):
    """Until the run is being started; or has done `step` and is anywhere, or is writing a checkpoint; or has ended."""
    if moment == "starting":
        wait_until(lambda: run.is_locked() or not attempt.is_alive(), TIMEOUT_S)
        time.sleep(draw.uniform(0, 0.2))
    elif moment == "writing":
        wait_until(lambda: is_paused(run.path) or not attempt.is_alive(), TIMEOUT_S)
    else:
        wait_until(lambda: step_of(run) >= step or not attempt.is_alive(), TIMEOUT_S)
        time.sleep(draw.uniform(0, 0.03))


def check(make_run, launch, kills, *, steps, finish=run_training):
    settings = (*SETTINGS, f"training.steps={steps}")
    undisturbed, killed = make_run(*settings, study="undisturbed"), make_run(*settings, study="killed")
    finish(undisturbed)
    began = time.monotonic()
    counted = kill_at_random(killed, launch, kills, steps=steps)
    finish(killed)
    print(f"{counted} in {time.monotonic() - began:.0f} s")
    assert counted.landed == kills
    assert counted.in_writes >= max(1, kills // 5)
    assert outcome(killed) == outcome(undisturbed)


def test_five_kills(make_run):
    check(make_run, OneProcess, 5, steps=40)


@pytest.mark.slow
def test_fifty_kills(make_run):
    check(make_run, OneProcess, 50, steps=200)


def finish_two_ranks(run):
    assert TwoRanks(run).wait() == [0, 0]


def finish_with_torchrun(run):
    attempt = Torchrun(run)
    assert attempt.process.wait(timeout=300) == 0, (run.path / "torchrun.log").read_text()[-3000:]


@pytest.fixture
def importable(monkeypatch):
    """New processes find here what they are to run."""
    monkeypatch.syspath_prepend(Path(__file__).parent)


@pytest.mark.usefixtures("importable")
def test_three_kills_of_two_processes(make_run):
    check(make_run, TwoRanks, 3, steps=16, finish=finish_two_ranks)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("importable")
def test_fifty_kills_of_two_processes(make_run):
    check(make_run, TwoRanks, 50, steps=80, finish=finish_two_ranks)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_under_torchrun(make_run):
    check(make_run, Torchrun, 50, steps=80, finish=finish_with_torchrun)
