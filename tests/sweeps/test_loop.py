"""The scheduling loop comes to its end whatever becomes of its runs, and spares the file system."""

import time

import pytest

from patchscale.errors import UserError
from patchscale.runs.record import RunDirectory
from patchscale.sweeps.budget import Budget, Ledger
from patchscale.sweeps.code_versions import refuse_mixed_code
from patchscale.sweeps.executors.base import Ending
from patchscale.sweeps.loop import LOOK_EVERY_S, Rules, carry_out
from patchscale.sweeps.plan import plan_study
from patchscale.sweeps.retries import FILE
from patchscale.sweeps.runner import run_study
from patchscale.sweeps.study import build_study

from .conftest import Recorder

CANCELLED = Ending(cancelled="its job was cancelled")


class Queue:
    """An executor that starts nothing; after `looks`, each with `then` before it, all its runs have ended."""

    def __init__(self, ending=CANCELLED, *, workers=1, looks=0, look_s=0.0, then=lambda look: None):
        self.running = []
        self.ending, self.workers, self.looks, self.look_s, self.then = ending, workers, looks, look_s, then
        self.looked = 0

    def adopt(self, jobs):
        return {}

    def has_room(self, job):
        return len(self.running) < self.workers

    def start(self, job):
        self.running.append(job)

    def flush(self):
        pass

    def ended(self, *, timeout_s):
        self.then(self.looked)
        self.looked += 1
        time.sleep(self.look_s)
        while self.looked > self.looks and self.running:
            yield self.running.pop(), self.ending

    def withdraw(self):
        pass

    def stop(self, received):
        return False

    def kill(self):
        pass

    def close(self):
        pass


class Listener(Recorder):
    """Keeps which runs have begun, and how many it was shown at each look."""

    def __init__(self):
        super().__init__()
        self.begun, self.shown = [], []

    def started(self, job):
        self.begun.append(job.run_id)

    def looked(self, running):
        self.shown.append(len(running))


BASE = {
    "model": {"name": "vit_test", "img_size": 16, "patch_size": 16},
    "data": {"name": "scenes", "train_images": 8, "val_images": 8, "test_images": 8},
    "training": {"batch_size": 4, "num_validations": 1},
}


@pytest.fixture
def planned(tmp_path):
    stages = [{"training": {"steps": 100}}, {"training": {"steps": 4}}, {"training": {"steps": 3}}]
    jobs = plan_study(build_study({"study": "s", "base": BASE, "stages": stages}), tmp_path)
    for job in jobs:
        RunDirectory.create(tmp_path, "s", job.config)
    return jobs


def seeds(count, root):
    """Planned runs that differ in their seed; they have no directories yet."""
    return plan_study(build_study({"study": "s", "base": BASE, "grid": {"seed": list(range(count))}}), root)


@pytest.mark.timeout(60)
def test_later_stages_of_a_cancelled_one_are_left(planned):
    told = Recorder()
    carry_out(planned, Queue(), watcher=told, rules=Rules())
    assert [*told.ended_runs] == [planned[0].run_id]
    assert set(told.left) == {job.run_id for job in planned[1:]}


@pytest.mark.timeout(60)
def test_a_first_stage_beyond_the_budget_ends_the_study(planned):
    ledger = Ledger(planned)
    ledger.left_hours = lambda job: 0.8 if job.stage == 1 else 0.1
    told = Recorder()
    carry_out(planned, Queue(), watcher=told, rules=Rules(budget=Budget(0.5, ledger)))
    assert (told.started_runs, told.ended_runs) == ([], {})
    assert any("runs are left" in text for text in told.messages)


@pytest.mark.parametrize("others", [0, 1])
def test_what_another_sweep_carries_out_is_of_the_budget_too(tmp_path, others):
    """Both a run that was found so when the study was planned, and one that another sweep has begun since."""
    jobs = seeds(2, tmp_path)
    RunDirectory.create(tmp_path, "s", jobs[others].config)
    told = Recorder()
    with jobs[others].run.lock():
        jobs[others].run.write_status("running")
        if others == 1:
            jobs = seeds(2, tmp_path)
            assert [job.state for job in jobs] == ["queued", "running"]
        ledger = Ledger(jobs)
        ledger.left_hours = lambda job: 1.0
        carry_out(jobs, Queue(), watcher=told, rules=Rules(budget=Budget(1.5, ledger)))
    assert (told.ended_runs, told.left) == ({}, [jobs[others].run_id])
    assert any(text.startswith("1 runs are left") for text in told.messages)
    carry_out(jobs[1 - others :: 2], Queue(), watcher=told, rules=Rules(budget=Budget(1.5, ledger)))
    assert set(told.ended_runs) == {jobs[1 - others].run_id}


def test_a_run_has_started_when_its_process_has_and_not_before(tmp_path):
    first, second = jobs = seeds(2, tmp_path)
    told = Listener()

    def begin(look):
        if look == 2:
            assert (told.begun, told.shown) == ([], [0, 0]), "both wait in the queue"
            with first.run.lock():
                pass

    carry_out(jobs, Queue(workers=2, looks=3, look_s=1.1 * LOOK_EVERY_S, then=begin), watcher=told, rules=Rules())
    assert told.messages[0] == "2 runs are handed over"
    assert (told.begun, told.shown[2:]) == ([first.run_id], [1, 0]), "the last look finds nothing any more"
    assert set(told.ended_runs) == {first.run_id, second.run_id}


@pytest.mark.parametrize(("runs", "looks"), [(2, 3), (100, 1)])
def test_many_queued_runs_are_looked_at_less_often(tmp_path, runs, looks):
    """A hundred every two seconds; and once more when nothing is left."""
    told = Listener()
    queue = Queue(workers=runs, looks=2, look_s=1.1 * LOOK_EVERY_S)
    carry_out(seeds(runs, tmp_path), queue, watcher=told, rules=Rules())
    assert len(told.ended_runs) == runs
    assert len(told.shown) == looks


def test_a_budget_is_reckoned_once_a_look(tmp_path):
    class Counting(Ledger):
        calls = 0

        def left_hours(self, job):
            self.calls += 1
            return 1.0

    jobs = seeds(200, tmp_path)
    ledger, looks = Counting(jobs), 20
    queue = Queue(workers=100, looks=looks)
    carry_out(jobs, queue, watcher=Recorder(), rules=Rules(budget=Budget(20.5, ledger)))
    # Twenty fit; then, at each look, those that wait and those that are under way, each once.
    assert len(jobs) * looks / 2 < ledger.calls < 2 * len(jobs) * looks


def test_a_damaged_file_of_one_run_spares_the_others(tmp_path):
    jobs = seeds(2, tmp_path)
    for job in jobs:
        RunDirectory.create(tmp_path, "s", job.config)
    (jobs[0].run.path / "environment.json").write_text("{")
    told = Recorder()
    carry_out(jobs, Queue(Ending(out_of_memory=True)), watcher=told, rules=Rules())
    assert {state for state, _ in told.ended_runs.values()} == {"failed"}
    assert len(told.ended_runs) == 2
    assert "environment.json" in told.ended_runs[jobs[0].run_id][1]


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_damaged_counts_of_one_run_spare_the_others(tiny, tmp_path, content):
    study = tiny(patch_size=[16, 8])
    damaged = RunDirectory.create(tmp_path, study.name, study.configs[0])
    damaged.write_status("failed", kind="out_of_memory", message="no memory")
    (damaged.path / FILE).write_text(content)
    told = Recorder()
    table = run_study(study, tmp_path, retry_failed=True, progress=told)
    assert table["status"].tolist() == ["done", "done"]


def test_runs_of_another_grid_in_the_folder_are_of_the_curve_too(tiny, tmp_path):
    (earlier,) = tiny(patch_size=[8]).configs
    run = RunDirectory.create(tmp_path, "tiny", earlier)
    run.write_json("environment.json", {"code": "0123456789"})
    with pytest.raises(UserError, match=rf"1 of 2 runs were made by other code \({run.path.name}: 0123456789"):
        run_study(tiny(patch_size=[16]), tmp_path)
    planned = plan_study(tiny("training.learning_rate=0.01", patch_size=[16]), tmp_path)  # of another curve
    refuse_mixed_code(planned, planned, tmp_path / "tiny")


@pytest.mark.timeout(60)
def test_a_study_that_is_stopped_does_not_wait_for_runs_that_were_not_submitted_yet(tiny, tmp_path):
    class OneByOne(Queue):
        """Submits one run at a flush, as Slurm does later what it cannot take now."""

        submitted = ()

        def flush(self):
            self.submitted = self.running[:1]

        def ended(self, *, timeout_s):
            for job in self.submitted:
                job.run.write_status("failed", kind="storage", message="no space left")
                self.running.remove(job)
                yield job, Ending(exit_code=1)
            self.submitted = ()

        def withdraw(self):
            self.running = []

    study = tiny(patch_size=[16, 8], seed=[0, 1])
    jobs = plan_study(study, tmp_path)
    carry_out(jobs, OneByOne(workers=4), watcher=Listener(), rules=Rules())
    assert [job.run.status()["state"] for job in jobs] == ["failed", "queued", "queued", "queued"]


@pytest.mark.timeout(60)
def test_runs_are_asked_to_save_until_they_have_ended_once_the_budget_is_spent(tiny, tmp_path):
    class Deaf(Queue):
        """Ends its run when it has been asked three times."""

        asked = 0

        def stop(self, received):
            self.asked += 1
            if self.asked == 3:
                self.looks = 0
            return False

    planned = plan_study(tiny(patch_size=[16]), tmp_path)

    def begin(look):
        if look == 1:
            with planned[0].run.lock():
                time.sleep(0.1)

    deaf = Deaf(looks=10**9, look_s=0.05, then=begin)
    carry_out(planned, deaf, watcher=Listener(), rules=Rules(budget=Budget(1e-9, Ledger(planned))))
    assert deaf.asked >= 3
