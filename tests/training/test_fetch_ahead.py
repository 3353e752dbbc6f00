import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tests.training.conftest import metrics, start, wait_until
from torch.utils.data import Dataset

from patchscale.errors import RunFailed
from patchscale.training.batches import load_batches
from patchscale.training.fetch_ahead import fetched_ahead
from patchscale.training.journal import Watcher
from patchscale.training.loop import run_training
from patchscale.training.order import TrainingOrder

CPU = torch.device("cpu")
ORDER = TrainingOrder(seed=0, num_images=50, batch_size=8)


class Keys(Dataset):
    """The image is its key (epoch, index)."""

    def __getitem__(self, key):
        return torch.tensor(key, dtype=torch.float32), torch.tensor(0)


def fetching():
    """Threads that fetch ahead."""
    return [thread for thread in threading.enumerate() if thread.name == "fetch ahead"]


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_items_keep_their_order():
    assert list(fetched_ahead(iter(range(200)))) == list(range(200))
    assert not fetching()


def test_two_are_fetched_ahead_and_no_more():
    fetched = []

    def items():
        for number in range(20):
            fetched.append((number, threading.current_thread().name))
            yield number

    taken = fetched_ahead(items())
    for number in taken:
        wait_until(lambda: len(fetched) >= min(20, number + 3))  # noqa: B023
        time.sleep(0.01)
        assert len(fetched) <= number + 3
    assert {thread for _, thread in fetched} == {"fetch ahead"}


def test_an_error_comes_in_its_place_with_its_words():
    def items():
        yield from range(5)
        raise OSError(5, "cannot be read", "/data/cat.png")

    got = []
    with pytest.raises(OSError, match=r"cannot be read: '/data/cat.png'") as caught:
        got.extend(fetched_ahead(items()))
    assert "items" in [entry.name for entry in caught.traceback]
    assert not fetching()
    taken = fetched_ahead(items())
    assert [next(taken) for _ in range(5)] == list(range(5))
    taken.close()


@pytest.mark.parametrize("taken", [1, 2, 7])
def test_closed_early_the_thread_ends_and_the_items_are_closed(taken):
    ended = []

    def items():
        try:
            yield from range(1000)
        finally:
            ended.append(threading.current_thread().name)

    numbers = fetched_ahead(items())
    for _ in range(taken):
        next(numbers)
    numbers.close()
    assert not fetching()
    assert len(ended) == 1


def test_closed_while_it_fetches_it_waits_for_that_item_alone():
    begun, asked = threading.Event(), []

    def items():
        for number in range(1000):
            asked.append(number)
            if number == 1:
                begun.set()
                time.sleep(0.5)
            yield number

    numbers = fetched_ahead(items())
    next(numbers)
    assert begun.wait(10)
    numbers.close()
    assert not fetching()
    assert asked == [0, 1]


def test_batches_closed_early_leave_no_thread_and_no_process():
    before = multiprocessing.active_children()
    batches = load_batches(Keys(), ORDER, range(1000), num_workers=2, device=CPU)
    for number in range(3):
        images, _ = next(batches)
        assert images.int().tolist() == [list(key) for key in ORDER(number)]
    loaders = [process.pid for process in multiprocessing.active_children() if process not in before]
    assert (len(loaders), len(fetching())) == (2, 1)
    batches.close()
    assert not fetching()
    assert not any(map(lives, loaders))


def test_without_loader_processes_there_is_no_thread():
    batches = load_batches(Keys(), ORDER, range(3), num_workers=0, device=CPU)
    next(batches)
    assert not fetching()


def test_an_error_in_a_step_leaves_no_thread_and_no_process(make_run):
    loaders = []

    class Broken(Watcher):
        def step_done(self, step, total_steps, loss):
            loaders.extend(process.pid for process in multiprocessing.active_children())
            assert fetching()
            if step == 3:
                raise ZeroDivisionError("in a step")

    run = make_run("training.steps=500", "execution.num_workers=2")
    with pytest.raises(RunFailed, match="ZeroDivisionError: in a step") as caught:
        run_training(run, progress=Broken())
    assert caught.value.__traceback__ is not None  # the loop's frames still live
    assert not fetching()
    assert len(set(loaders)) >= 2
    assert not any(map(lives, set(loaders)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_asked_to_stop_takes_its_loaders_along(make_run, number, code):
    run = make_run("training.steps=100000", "execution.num_workers=2", "execution.log_every_steps=1")
    process = start(run)
    wait_until(lambda: run.metrics_path.exists() and len(metrics(run)) >= 3)
    loaders = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(loaders) == 2
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    assert run.status()["state"] == "interrupted"
    assert not any(map(lives, loaders))


def test_a_killed_loader_process_ends_the_run(make_run):
    class Killer(Watcher):
        def step_done(self, step, total_steps, loss):
            if step == 3:
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    run = make_run("training.steps=100000", "execution.num_workers=1")
    with pytest.raises(RunFailed) as caught:
        run_training(run, progress=Killer())
    assert caught.value.kind == "crash"
    assert run.status()["state"] == "failed"
    wait_until(lambda: not fetching())
    assert not multiprocessing.active_children()


STUCK = """
import multiprocessing, threading, time
import torch
from patchscale.training.batches import load_batches

class Stuck(torch.utils.data.Dataset):
    def __getitem__(self, key):
        if key >= 2:
            time.sleep(10_000)
        return torch.zeros(1), torch.tensor(0)

if __name__ == "__main__":
    batches = load_batches(Stuck(), lambda number: [number], range(9), num_workers=1, device=torch.device("cpu"))
    next(batches)
    print(*[process.pid for process in multiprocessing.active_children()], flush=True)
    next(batches)
    batches.close()
    raise SystemExit(7)
"""


def test_a_loader_process_that_hangs_holds_up_nobody(tmp_path):
    script = tmp_path / "stuck.py"
    script.write_text(STUCK)
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 7, ended.stderr
    (loader,) = ended.stdout.split()
    wait_until(lambda: not lives(loader))
    assert "Traceback" not in ended.stderr
