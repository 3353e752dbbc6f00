"""In which order runs start, whom a GPU is shared with, and what a study may cost."""

import os
import time

import pytest

from patchscale.runs.record import RunDirectory, append_jsonl
from patchscale.sweeps.budget import Budget, Ledger
from patchscale.sweeps.order import price_of_stages
from patchscale.sweeps.packing import CONTEXT_BYTES, Gpus
from patchscale.sweeps.plan import plan_study

GIB = 2**30


def patches(planned):
    return [item.config.model.patch_size for item in planned]


def test_cheapest_and_longest_first(tiny, tmp_path):
    study = tiny(patch_size=[8, 2, 16, 4])
    assert patches(plan_study(study, tmp_path)) == [16, 8, 4, 2]
    assert patches(plan_study(tiny("order=longest-first", patch_size=[8, 2, 16, 4]), tmp_path)) == [2, 4, 8, 16]
    assert patches(plan_study(tiny("order=given", patch_size=[8, 2, 16, 4]), tmp_path)) == [8, 2, 16, 4]


def test_widest_first_takes_the_ends_of_every_curve_before_what_lies_between(tiny, tmp_path):
    study = tiny("order=widest-first", model=["vit_test", "adventurer_test"], patch_size=[16, 8, 4, 2, 1], seed=[0, 1])
    planned = plan_study(study, tmp_path)
    first = planned[:4]
    assert sorted((item.config.model.name, item.config.model.patch_size) for item in first) == [
        ("adventurer_test", 1),
        ("adventurer_test", 16),
        ("vit_test", 1),
        ("vit_test", 16),
    ]
    assert {item.config.model.patch_size for item in planned[4:6]} == {4}, "then what is farthest from both"
    assert [item.config.seed for item in planned] == [0] * 10 + [1] * 10
    assert len({item.config.identity for item in planned}) == 20


@pytest.mark.parametrize("order", ["cheapest-first", "widest-first", "longest-first", "given"])
def test_no_stage_comes_before_the_one_it_starts_from(tmp_path, order):
    from tests.sweeps.test_stages import staged

    stages = [{"patch_size": 2, "training": {"steps": 50}}, {"patch_size": 8, "training": {"steps": 1}}, {}]
    planned = plan_study(staged(f"order={order}", stages=stages, seed=[0, 1]), tmp_path)
    places = {item.config.identity: place for place, item in enumerate(planned)}
    assert len(places) == 6
    assert all(places[item.former.config.identity] < place for place, item in enumerate(planned) if item.former)
    assert all(price_of_stages(item) > price_of_stages(item.former) for item in planned if item.former)


def test_small_runs_share_a_gpu_as_far_as_their_memory_allows():
    gpus = Gpus({"0": 10 * GIB, "1": 10 * GIB}, runs_per_gpu=3)
    for number in range(4):
        found = gpus.find(1, 2 * GIB)
        gpus.take(str(number), found, 2 * GIB)
    assert [sorted(gpu.runs) for gpu in gpus.gpus] == [["0", "2"], ["1", "3"]]
    # 4 GiB and two contexts are taken; four fifths of 10 GiB are to be had.
    rest = int(0.8 * 10 * GIB) - 4 * GIB - 3 * CONTEXT_BYTES
    assert gpus.find(1, rest + 1) is None
    assert gpus.find(1, rest)[0].name == "0"
    assert gpus.find(2, 1) is None, "a run of several GPUs has them alone"
    for number in range(4):
        gpus.release(str(number))
    assert [gpu.name for gpu in gpus.find(2, 20 * GIB)] == ["0", "1"], "a run alone plans its own memory"


def test_no_more_than_so_many_runs_share_a_gpu():
    gpus = Gpus({"0": 1000 * GIB}, runs_per_gpu=2)
    for number in range(2):
        gpus.take(str(number), gpus.find(1, 0), 0)
    assert gpus.find(1, 0) is None
    unknown = Gpus({"0": None}, runs_per_gpu=2)
    unknown.take("0", unknown.find(1, 0), 0)
    assert unknown.find(1, 0) is None, "of a device of unknown memory nobody takes a part"


def finish(item, hours, **results):
    run = RunDirectory.create(item.run.path.parent.parent, item.run.path.parent.name, item.config)
    run.write_json("result.json", {"wall_time_s": 3600 * hours, **results})


def test_a_budget_is_never_exceeded_by_what_is_predicted(tiny, tmp_path):
    planned = plan_study(tiny(patch_size=[16, 8, 4, 2]), tmp_path)
    budget = Budget(10.0, Ledger(planned))
    first, second, third, _ = planned
    assert budget.allows(first, ()), "one run is started to learn what runs cost"
    assert not budget.allows(second, [first]), "but no other one meanwhile"
    finish(first, 1.0)
    budget.ended(first)
    expected = second.work / first.work
    assert budget.ledger.left_hours(second) == pytest.approx(expected)
    assert Budget(1.0 + 1.01 * expected, budget.ledger).allows(second, ())
    assert not Budget(1.0 + 0.99 * expected, budget.ledger).allows(second, ())
    assert not Budget(1.0 + 1.01 * expected, budget.ledger).allows(third, [second])


def test_runs_under_way_count_with_what_they_have_used(tiny, tmp_path):
    planned = plan_study(tiny("resources.processes=2", patch_size=[16, 8]), tmp_path)
    study = tiny("resources.processes=2", patch_size=[16, 8])
    run = RunDirectory.create(tmp_path, study.name, planned[0].config)
    run.write_status("running", step=0, steps=8)
    append_jsonl(run.metrics_path, {"kind": "train", "step": 4, "wall_time_s": 1800.0})
    ledger = Ledger(planned, resources=study.resources)
    assert ledger.spent_hours == pytest.approx(1.0), "half an hour of two processes"
    assert ledger.left_hours(planned[0]) == pytest.approx(1.0)
    assert Budget(1.1, ledger).is_spent([planned[0]]) is False
    append_jsonl(run.metrics_path, {"kind": "train", "step": 5, "wall_time_s": 2100.0})
    assert Budget(1.1, ledger).is_spent([planned[0]]) is True


def test_hours_of_a_named_device_need_no_runs(tiny, tmp_path):
    (item,) = plan_study(tiny("training.precision=bf16"), tmp_path)
    assert 0 < Ledger([item], device="h100").left_hours(item) < 1
    assert Ledger([item]).left_hours(item) is None
    assert Ledger([item]).spent_hours == 0


def held(run, *hours, end="released"):
    """Leave claims of processes that held the run so long, one after the other; the last one ended like this."""
    now = time.time()
    for number, duration_h in enumerate(hours, 1):
        with run.lock():
            pass
        claim = run.claims_path / f"{number:06d}.json"
        os.utime(claim, (now, now - 3600 * duration_h))
        for suffix in (".beat", ".released"):
            os.utime(claim.with_suffix(suffix), (now, now))
    if end == "killed":
        claim.with_suffix(".released").unlink()


def test_work_that_was_lost_counts(tiny, tmp_path):
    study = tiny("resources.processes=2", patch_size=[16, 8])
    first, second = planned = plan_study(study, tmp_path)
    run = RunDirectory.create(tmp_path, study.name, first.config)
    held(run, 1.0, 0.5, 0.25, end="killed")
    run.write_status("interrupted", step=4, steps=8)
    ledger = Ledger(planned, resources=study.resources)
    assert ledger.spent_hours == pytest.approx(2 * 1.75), "though nothing was ever logged"
    assert ledger.left_hours(first) == pytest.approx(2 * 1.75), "half of it is done"
    assert not Budget(3.4, ledger).allows(second, ())
    assert Budget(3.4, ledger).is_spent([first])
    finish(first, 0.1)
    budget = Budget(10, ledger)
    budget.ended(first)
    assert ledger.spent_hours == pytest.approx(2 * 1.75), "more than the attempt that came to the end"


def test_a_run_has_as_many_devices_as_it_had_processes_unless_resources_tell(tiny, tmp_path):
    study = tiny(patch_size=[16, 8, 4])
    done, begun, queued = planned = plan_study(study, tmp_path)
    finish(done, 1.0, world_size=16)
    run = RunDirectory.create(tmp_path, study.name, begun.config)
    held(run, 1.0)
    run.write_json("environment.json", {"ranks": [{"host": "a"}, {"host": "b"}]})
    assert Ledger(planned).used == pytest.approx({done.run_id: 16, begun.run_id: 2, queued.run_id: 0})
    rules = tiny("resources.gpus=4").resources
    assert Ledger(planned, resources=rules).used == pytest.approx({done.run_id: 4, begun.run_id: 4, queued.run_id: 0})
