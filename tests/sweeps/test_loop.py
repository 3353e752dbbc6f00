"""The scheduling loop comes to its end whatever becomes of an earlier stage."""

import pytest

from patchscale.runs.record import RunDirectory
from patchscale.sweeps.budget import Budget, Ledger
from patchscale.sweeps.executors.base import Ending
from patchscale.sweeps.loop import Rules, carry_out
from patchscale.sweeps.plan import plan_study
from patchscale.sweeps.study import build_study

from .conftest import Recorder


class Cancelling:
    """An executor whose jobs are all cancelled by somebody."""

    workers = 1

    def __init__(self):
        self.running = []

    def adopt(self, jobs):
        return {}

    def has_room(self, job):
        return not self.running

    def start(self, job):
        self.running.append(job)

    def flush(self):
        pass

    def ended(self, *, timeout_s):
        while self.running:
            yield self.running.pop(), Ending(cancelled="its job was cancelled")

    def stop(self, received):
        return False

    def kill(self):
        pass

    def close(self):
        pass


@pytest.fixture
def planned(tmp_path):
    base = {
        "model": {"name": "vit_test", "img_size": 16, "patch_size": 16},
        "data": {"name": "scenes", "train_images": 8, "val_images": 8, "test_images": 8},
        "training": {"batch_size": 4, "num_validations": 1},
    }
    stages = [{"training": {"steps": 100}}, {"training": {"steps": 4}}, {"training": {"steps": 3}}]
    jobs = plan_study(build_study({"study": "s", "base": base, "stages": stages}), tmp_path)
    for job in jobs:
        RunDirectory.create(tmp_path, "s", job.config)
    return jobs


@pytest.mark.timeout(60)
def test_later_stages_of_a_cancelled_one_are_left(planned):
    told = Recorder()
    carry_out(planned, Cancelling(), watcher=told, rules=Rules())
    assert [*told.ended_runs] == [planned[0].run_id]
    assert set(told.left) == {job.run_id for job in planned[1:]}


@pytest.mark.timeout(60)
def test_a_first_stage_beyond_the_budget_ends_the_study(planned):
    ledger = Ledger(planned)
    ledger.left_hours = lambda job: 0.8 if job.stage == 1 else 0.1
    told = Recorder()
    carry_out(planned, Cancelling(), watcher=told, rules=Rules(budget=Budget(0.5, ledger)))
    assert (told.started_runs, told.ended_runs) == ([], {})
    assert any("runs are left" in text for text in told.messages)
