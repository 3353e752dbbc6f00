"""Studies whose runs hand weights on: what they expand to, how they are carried out, what is reported."""

import os
import signal

import pytest
import safetensors.torch
import torch
from tests.sweeps.conftest import Recorder

from patchscale.cli.source import select_rows
from patchscale.errors import UserError
from patchscale.runs.record import RunDirectory
from patchscale.runs.stages import finished_former_run, former_run
from patchscale.runs.store import load_runs
from patchscale.sweeps.plan import plan_study
from patchscale.sweeps.runner import run_study
from patchscale.sweeps.stop import SweepInterrupted
from patchscale.sweeps.study import build_study
from patchscale.training.loop import run_training

COARSE_TO_FINE = [{"patch_size": 8}, {"patch_size": 4, "training": {"steps": 6}}, {"patch_size": 2}]


def staged(*overrides, stages=COARSE_TO_FINE, **grid):
    values = {
        "study": "staged",
        "base": {
            "model": {"name": "vit_test", "img_size": 16},
            "data": {"name": "scenes", "train_images": 32, "val_images": 8, "test_images": 8},
            "training": {"steps": 8, "batch_size": 4, "num_validations": 1},
            "execution": {"device": "cpu", "num_threads": 1, "log_every_steps": 1, "checkpoint_every_s": 0},
        },
        "stages": stages,
        "grid": grid,
    }
    return build_study(values, overrides)


def test_every_combination_has_its_stages_and_each_names_the_one_before():
    study = staged(seed=[0, 1])
    assert [(config.seed, config.model.patch_size) for config in study.configs] == [
        (seed, patch_size) for seed in (0, 1) for patch_size in (8, 4, 2)
    ]
    for first, second, third in (study.configs[:3], study.configs[3:]):
        assert first.training.init_run is None
        assert second.training.init_run == first.identity
        assert third.training.init_run == second.identity
        assert [config.training.steps for config in (first, second, third)] == [8, 6, 8]


def test_a_change_of_an_early_stage_makes_all_later_ones_other_runs():
    before = staged().configs
    after = staged(stages=[{"patch_size": 8, "training": {"learning_rate": 0.01}}, *COARSE_TO_FINE[1:]]).configs
    assert not {config.identity for config in before} & {config.identity for config in after}
    late = staged(stages=[*COARSE_TO_FINE[:2], {"patch_size": 2, "training": {"learning_rate": 0.01}}]).configs
    assert [one.identity == other.identity for one, other in zip(before, late, strict=True)] == [True, True, False]


def test_settings_are_those_along_a_curve():
    """The same for every seed, model size and patch size; other for another way to the last stage."""
    stages = [{"img_size": 16}, {"img_size": 32}]
    last = [staged("img_size=16", stages=stages).configs[-1].settings]  # an override wins over a stage
    of_grid = {
        config.settings
        for config in staged(stages=stages, patch_size=[8, 4], seed=[0, 1]).configs
        if config.training.init_run is not None
    }
    assert len(of_grid) == 1
    assert of_grid != {staged(stages=[{"img_size": 32}], patch_size=[8]).configs[0].settings}
    assert of_grid != set(last)
    coarse = staged(stages=[{"patch_size": 8}, {"patch_size": 4}]).configs[-1]
    coarser = staged(stages=[{"patch_size": 16}, {"patch_size": 4}]).configs[-1]
    assert coarse.settings != coarser.settings


def test_stages_in_common_are_trained_once():
    study = staged(
        stages={
            "three": COARSE_TO_FINE,
            "two": [COARSE_TO_FINE[0], {"patch_size": 2}],
            "scratch": [{"patch_size": 2, "training": {"steps": 20}}],
        }
    )
    assert [config.model.patch_size for config in study.configs] == [8, 4, 2, 2, 2]
    assert [config.recipe for config in study.configs][-2:] == ["custom (two)", "custom (scratch)"]


def test_settings_go_from_recipe_over_base_and_stage_to_overrides_and_grid():
    stages = [
        {"recipe": "adventurer-tiny-stage1", "training": {"warmup_fraction": 0.2}},
        {"recipe": "adventurer-tiny-stage2"},
    ]
    first, second = staged("training.weight_decay=0.5", "data.root=null", stages=stages, seed=[3]).configs
    assert (first.data.augment, first.data.name) == ("three_augment", "scenes")
    assert (first.training.warmup_fraction, second.training.warmup_fraction) == (0.2, 0.05)
    assert (first.model.drop_path_rate, second.model.name) == (0.1, "vit_test")
    assert {config.training.weight_decay for config in (first, second)} == {0.5}
    assert {config.seed for config in (first, second)} == {3}


def test_weights_given_in_base_are_for_the_first_stage(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"anything")
    first, second, _ = staged(f"training.init_from={file}").configs
    assert first.training.init_from == str(file)
    assert (second.training.init_from, second.training.init_sha256) == (None, None)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([], "stages: expected a list of settings"),
        ({"a": {}}, "stages: expected a list of settings"),
        ([3], r"stages 1: expected nested settings \(got 3\)"),
        ([{}, {"patchsize": 2}], r"stages 2\.patchsize: no such setting of a run; did you mean .*patch_size"),
        ({"a": [{"recipe": "nothing"}]}, "recipe: 'nothing' is not one of"),
        ([{"seed": 1}], r"stages 1\.seed: is an axis of the grid as well; keep one of them"),
        ([{"training": {"init_run": "0123456789"}}], "a stage starts from the one before"),
        ([{"patch_size": 3}], "the patch does not divide the image"),
        ([{"training": {"quirks": ["positions_one_row_off"]}}], "is about Adventurer's learned positions"),
    ],
)
def test_mistakes_are_named(stages, words):
    with pytest.raises(UserError, match=words):
        staged(stages=stages, seed=[0])


def test_a_plan_adds_up_the_stages(tmp_path):
    planned = plan_study(staged(seed=[0]), tmp_path)
    assert [item.stage for item in planned] == [1, 2, 3]
    own = [item.flops_train_total for item in planned]
    assert [item.flops_train_stages for item in planned] == [own[0], own[0] + own[1], sum(own)]
    assert [item.row()["flops_train_stages"] for item in planned] == [item.flops_train_stages for item in planned]


def test_the_cheapest_comes_first_but_never_before_its_former_stage(tmp_path):
    # The last stage is the cheapest by itself.
    stages = [{"patch_size": 2, "training": {"steps": 50}}, {"patch_size": 8, "training": {"steps": 1}}]
    planned = plan_study(staged(stages=stages, seed=[0, 1]), tmp_path)
    places = {item.config.identity: place for place, item in enumerate(planned)}
    assert all(places[item.former.config.identity] < places[item.config.identity] for item in planned if item.former)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of two curricula and two seeds, carried out by two workers."""
    root = tmp_path_factory.mktemp("runs")
    study = staged(
        stages={"fine": COARSE_TO_FINE, "scratch": [{"patch_size": 2, "training": {"steps": 20}}]}, seed=[0, 1]
    )
    recorder = Recorder()
    table = run_study(study, root, workers=2, progress=recorder)
    return root, study, table, recorder


def test_stages_run_in_order_and_all_finish(finished):
    _, study, table, recorder = finished
    assert set(table["status"]) == {"done"}
    assert sorted(recorder.started_runs) == sorted(config.run_id for config in study.configs)
    places = {run_id: place for place, run_id in enumerate(recorder.started_runs)}
    by_identity = {config.identity: config for config in study.configs}
    for config in study.configs:
        if config.training.init_run:
            assert places[by_identity[config.training.init_run].run_id] < places[config.run_id]


def test_the_table_tells_the_stage_and_the_flops_of_all(finished):
    root, _, _, _ = finished
    table = load_runs(root)
    assert sorted(table["stage"]) == [1, 1, 1, 1, 2, 2, 3, 3]
    assert table[table["last_stage"]]["stage"].tolist().count(3) == table["last_stage"].sum() - 2 == 2
    for (_, _), rows in table[table["recipe"] == "custom (fine)"].groupby(["recipe", "seed"]):
        rows = rows.sort_values("stage")
        assert rows["flops_train_stages"].tolist() == rows["flops_train_total"].cumsum().tolist()
    scratch = table[table["recipe"] == "custom (scratch)"]
    assert (scratch["flops_train_stages"] == scratch["flops_train_total"]).all()


def test_laws_and_reports_look_at_last_stages_unless_asked(finished):
    table = load_runs(finished[0])
    assert select_rows(table, [])["stage"].tolist().count(3) == 2
    assert len(select_rows(table, [])) == 4
    assert set(select_rows(table, ["stage=2"])["patch_size"]) == {4}
    assert len(select_rows(table, ["last_stage=False"])) == 4


def test_a_stage_starts_from_the_final_weights_of_the_one_before(finished):
    root, study, _, _ = finished
    first, second = study.configs[:2]
    runs = [RunDirectory(root / "staged" / config.run_id) for config in (first, second)]
    assert former_run(runs[1], second).path.resolve() == runs[0].path.resolve()
    log = runs[1].log_path.read_text()
    assert f"{first.run_id}/checkpoint/model.safetensors: " in log
    assert "resampled patch_embed.proj.weight: 32x3x8x8 -> 32x3x4x4" in log


def test_a_finished_study_is_not_run_again(finished):
    root, study, _, _ = finished
    recorder = Recorder()
    assert set(run_study(study, root, workers=2, progress=recorder)["status"]) == {"done"}
    assert recorder.started_runs == []


def weights_of(root, config):
    return (root / "staged" / config.run_id / "checkpoint" / "model.safetensors").read_bytes()


def test_an_interrupted_study_ends_with_the_same_weights(finished, tmp_path):
    root, study, _, _ = finished
    killed = []

    def kill(job):
        if job.stage == 2 and not killed:
            killed.append(job)
            os.kill(os.getpid(), signal.SIGTERM)

    interrupted = Recorder(kill, at_step=2)
    with pytest.raises(SweepInterrupted):
        run_study(study, tmp_path, workers=2, progress=interrupted)
    assert killed
    interrupted.let_go()
    assert set(run_study(study, tmp_path, workers=2)["status"]) == {"done"}
    assert all(weights_of(tmp_path, config) == weights_of(root, config) for config in study.configs)


def test_a_stage_whose_former_has_failed_is_blocked(tmp_path):
    # A learning rate at which the first stage of seed 0 becomes non-finite.
    study = staged(
        stages=[{"patch_size": 8, "training": {"learning_rate": 1e30, "clip_grad_norm": None}}, *COARSE_TO_FINE[1:]]
    )
    recorder = Recorder()
    table = run_study(study, tmp_path, workers=2, progress=recorder).set_index("patch_size")
    assert table["status"].to_dict() == {8: "failed", 4: "blocked", 2: "blocked"}
    assert study.configs[0].run_id in table["message"][4]
    assert recorder.started_runs == [study.configs[0].run_id]
    assert recorder.ended_runs[study.configs[1].run_id][0] == "blocked"
    assert load_runs(tmp_path).set_index("patch_size")["status"][2] == "blocked"
    assert [item.state for item in plan_study(study, tmp_path)] == ["failed", "blocked", "blocked"]
    # A non-finite run is not retried, so nothing can be done.
    assert run_study(study, tmp_path, retry_failed=True, progress=Recorder())["status"].tolist().count("blocked") == 2


def test_a_failed_stage_that_is_retried_lets_the_later_ones_go_on(tmp_path):
    study = staged(stages=COARSE_TO_FINE[:2])
    first = RunDirectory.create(tmp_path, "staged", study.configs[0])
    first.write_status("failed", kind="crash", message="once")
    assert run_study(study, tmp_path)["status"].tolist() == ["failed", "blocked"]
    assert run_study(study, tmp_path, retry_failed=True)["status"].tolist() == ["done", "done"]


def test_a_stage_alone_says_what_to_run_first(tmp_path):
    first, second, _ = staged().configs
    run = RunDirectory.create(tmp_path, "staged", second)
    with pytest.raises(UserError, match=f"training.init_run={first.identity}: .* is not finished; run its study first"):
        run_training(run)
    RunDirectory.create(tmp_path, "staged", first)
    with pytest.raises(UserError, match=f"is not finished; run it first: patchscale train --run-dir .*{first.run_id}"):
        finished_former_run(run, second)


@pytest.mark.parametrize(("kind", "file"), [("final", "model"), ("raw", "model_raw"), ("ema", "model")])
def test_a_stage_may_start_from_either_kind_of_weights(tmp_path, kind, file):
    stages = [{"patch_size": 8}, {"patch_size": 8, "training": {"init_weights": kind}}]
    if kind == "final":
        del stages[1]["training"]
    overrides = ["training.ema_decay=0.5"]
    first, second = staged(*overrides, stages=stages).configs
    run_training(before := RunDirectory.create(tmp_path, "staged", first))
    weights = safetensors.torch.load_file(before.checkpoint_dir / f"{file}.safetensors")
    others = {path.name: safetensors.torch.load_file(path) for path in before.checkpoint_dir.glob("*.safetensors")}
    assert set(others) == {"model.safetensors", "model_raw.safetensors"}
    name = "backbone.head.weight"
    assert not torch.equal(others["model.safetensors"][name], others["model_raw.safetensors"][name])
    run_training(run := RunDirectory.create(tmp_path, "staged", second))
    assert f"checkpoint/{file}.safetensors: {len(weights)} tensors loaded" in run.log_path.read_text()


def test_raw_weights_are_evaluated_if_asked_for_and_the_average_is_kept(tmp_path):
    plain, both = (
        staged(*overrides, stages=[{"patch_size": 8}]).configs[0]
        for overrides in ([], ["training.ema_decay=0.5", "training.eval_weights=raw"])
    )
    results = [run_training(RunDirectory.create(tmp_path, "staged", config)) for config in (plain, both)]
    assert results[0]["test_loss"] == results[1]["test_loss"]
    assert [result["weights"] for result in results] == ["raw", "raw"]
    folder = tmp_path / "staged" / both.run_id / "checkpoint"
    assert sorted(path.name for path in folder.glob("*.safetensors")) == ["model.safetensors", "model_ema.safetensors"]
