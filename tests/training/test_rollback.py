"""A loss that stops being finite, with real divergence: the run warms up to a far too large step."""

import json
import os
import signal

import pytest
from tests.training.conftest import metrics, outcome
from tests.training.test_kill import TwoRanks, importable  # noqa: F401

from patchscale.errors import RunFailed
from patchscale.training.interrupt import Interrupted
from patchscale.training.journal import Watcher
from patchscale.training.loop import run_training

# Up to 800 the gradient stays finite for 12 steps, from 900 on it overflows in one of the last.
WARMING_UP = (
    "training.warmup_fraction=0.9",
    "training.weight_decay=0",
    "training.num_validations=1",
    "data.augment=none",
    "execution.log_every_steps=1",
)
TOO_LARGE = (*WARMING_UP, "training.learning_rate=1100")
ROLLBACK = "training.on_non_finite=rollback"


class StopAt(Watcher):
    """Asks the run to save and stop after a step, the first time it is done, as a scheduler would."""

    def __init__(self, step):
        self.step = step

    def step_done(self, step, total_steps, loss):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def stop_at(run, step):
    with pytest.raises(Interrupted):
        run_training(run, progress=StopAt(step))


def rollbacks(run):
    return [row for row in metrics(run) if row["kind"] == "rollback"]


def test_a_run_fails_unless_told_otherwise(make_run):
    run = make_run(*TOO_LARGE)
    with pytest.raises(RunFailed, match="non-finite") as caught:
        run_training(run)
    assert caught.value.kind == "non_finite"
    assert not rollbacks(run)


def test_it_goes_back_to_the_last_checkpoint_and_on_with_half_the_step(make_run):
    run = make_run(*TOO_LARGE, ROLLBACK)
    stop_at(run, 4)
    row = run_training(run)
    assert row["learning_rate_factor"] == 0.5
    assert row["steps"] == 12

    (back,) = rollbacks(run)
    assert back["step"] == 5
    assert 6 <= back["failed_step"] <= 12
    assert back["learning_rate_factor"] == 0.5
    log = run.log_path.read_text()
    assert f"at step {back['failed_step']} of 12" in log
    assert "gone back to step 4, on with 0.5 times the learning rate" in log

    # Every step is there once, with the halved schedule after the step gone back to.
    steady = make_run(*WARMING_UP, "training.learning_rate=550", study="steady")
    run_training(steady)
    rates = {
        name: [row["learning_rate"] for row in metrics(each) if row["kind"] == "train"]
        for name, each in (("went back", run), ("steady", steady))
    }
    assert len(rates["went back"]) == 12
    assert rates["went back"][1:4] == pytest.approx([2 * rate for rate in rates["steady"][1:4]], rel=1e-6)
    assert rates["went back"][5:11] == pytest.approx(rates["steady"][5:11], rel=1e-6)


def test_without_a_checkpoint_it_goes_back_to_the_start(make_run):
    run = make_run(*TOO_LARGE, ROLLBACK)
    assert run_training(run)["learning_rate_factor"] == 0.5
    (back,) = rollbacks(run)
    assert back["step"] == 1
    assert sum(row["kind"] == "train" for row in metrics(run)) == 12


@pytest.mark.usefixtures("importable")
def test_ranks_go_back_together(make_run):
    """Both times the overflow is certain; nearer to the limit, the rounding of two ranks decides."""
    run = make_run(*WARMING_UP, "training.learning_rate=1e8", ROLLBACK)
    assert TwoRanks(run).wait() == [1, 1]
    assert (run.status()["state"], run.status()["kind"]) == ("failed", "non_finite")
    (back,) = rollbacks(run)
    assert back["step"] == 1
    log = run.log_path.read_text()
    assert log.count("starting at step 0 of 12 on 2 processes") == 2
    assert log.count("gone back to step 0, on with 0.5 times the learning rate") == 1


def test_a_second_time_it_fails(make_run):
    run = make_run(*WARMING_UP, "training.learning_rate=1e8", ROLLBACK)
    with pytest.raises(RunFailed, match="non-finite") as caught:
        run_training(run)
    assert caught.value.kind == "non_finite"
    assert len(rollbacks(run)) == 1
    assert (run.status()["state"], run.status()["kind"]) == ("failed", "non_finite")


def test_a_second_time_in_another_process_it_fails(make_run):
    run = make_run(*WARMING_UP, "training.learning_rate=2500", ROLLBACK)  # half of it is too much as well, but later
    stop_at(run, 2)

    class StopAfterGoingBack(StopAt):
        def step_done(self, step, total_steps, loss):
            if rollbacks(run):
                super().step_done(step, total_steps, loss)

    with pytest.raises(Interrupted):
        run_training(run, progress=StopAfterGoingBack(5))
    with pytest.raises(RunFailed, match="non-finite"):
        run_training(run)
    assert len(rollbacks(run)) == 1
    assert run.log_path.read_text().count("gone back to step 2") == 1


@pytest.mark.parametrize("step", [5, 7])
def test_stopped_after_going_back_it_ends_the_same(make_run, step):
    once, twice = make_run(*TOO_LARGE, ROLLBACK, study="once"), make_run(*TOO_LARGE, ROLLBACK, study="twice")
    for run in (once, twice):
        stop_at(run, 4)
    run_training(once)

    class StopAfterGoingBack(StopAt):
        def step_done(self, step, total_steps, loss):
            if rollbacks(twice):
                super().step_done(step, total_steps, loss)

    with pytest.raises(Interrupted):
        run_training(twice, progress=StopAfterGoingBack(step))
    run_training(twice)
    assert outcome(once) == outcome(twice)


def test_dropped_between_going_back_and_the_next_checkpoint_it_goes_back_again(make_run):
    once, twice = make_run(*TOO_LARGE, ROLLBACK, study="once"), make_run(*TOO_LARGE, ROLLBACK, study="twice")
    for run in (once, twice):
        stop_at(run, 4)
    run_training(once)

    class Dropped(Exception):
        pass

    class DropAfterGoingBack(Watcher):
        def step_done(self, step, total_steps, loss):
            if rollbacks(twice) and step == 7:
                raise Dropped

    with pytest.raises(RunFailed, match="Dropped"):
        run_training(twice, progress=DropAfterGoingBack())
    run_training(twice)
    assert outcome(once) == outcome(twice)
    assert json.loads((twice.path / "result.json").read_text())["learning_rate_factor"] == 0.5
