import pytest

from patchscale.costs.counts import count
from patchscale.errors import UserError
from patchscale.recipes import RECIPES
from patchscale.sweeps.executors.base import Options
from patchscale.sweeps.executors.local import LocalExecutor
from patchscale.sweeps.plan import plan_study, totals
from patchscale.sweeps.resources import resources_of
from patchscale.sweeps.study import build_study, config_paths, load_study

STUDY = """
study: fashion-mnist-nano
recipe: fashion-mnist
base: {training: {epochs: 5}}
grid:
  model: [vit_nano, adventurer_nano]
  patch_size: [14, 7, 4]
  seed: [0]
order: cheapest-first
"""


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def models_and_patches(study):
    return [(config.model.name, config.model.patch_size) for config in study.configs]


def test_every_combination_is_a_run_on_top_of_recipe_and_base(study_file):
    study = load_study(study_file)
    assert study.name == "fashion-mnist-nano"
    assert models_and_patches(study) == [(m, p) for m in ("vit_nano", "adventurer_nano") for p in (14, 7, 4)]
    recipe = RECIPES["fashion-mnist"]()
    for config in study.configs:
        assert config.training.epochs == 5
        assert config.training.batch_size == recipe.training.batch_size
        assert config.data == recipe.data
        assert config.recipe == "fashion-mnist"


def test_a_run_of_a_study_is_the_same_run_as_one_made_by_hand(study_file):
    from patchscale.config import build_config

    first = load_study(study_file).configs[0]
    by_hand = build_config(RECIPES["fashion-mnist"]().to_dict(), ["training.epochs=5", "model.patch_size=14"])
    assert first.identity == by_hand.identity


@pytest.mark.parametrize(
    ("overrides", "patches", "epochs", "seeds"),
    [
        (["patch_size=[2,1]"], {1, 2}, 5, {0}),
        (["model.patch_size=28", "seed=[3,4]"], {28}, 5, {3, 4}),
        (["grid.patch_size=7", "training.epochs=1"], {7}, 1, {0}),
        (["base.training.steps=9"], {14, 7, 4}, None, {0}),
        (["data.split_seed=1"], {14, 7, 4}, 5, {0}),
    ],
)
def test_overrides_replace_axes_and_settings(study_file, overrides, patches, epochs, seeds):
    study = load_study(study_file, overrides)
    assert {config.model.patch_size for config in study.configs} == patches
    assert {config.training.epochs for config in study.configs} == {epochs}
    assert {config.seed for config in study.configs} == seeds


def test_an_override_can_rename_the_study_and_its_recipe(study_file):
    study = load_study(study_file, ["study=other", "recipe=fashion-mnist-adventurer", "order=given"])
    assert (study.name, study.order, study.configs[0].recipe) == ("other", "given", "fashion-mnist-adventurer")


def test_grids_are_joined_and_duplicates_dropped():
    study = build_study(
        {
            "study": "joined",
            "base": {"model": {"img_size": 32}, "training.steps": 3},
            "grid": [
                {"model": "vit_test", "patch_size": [16, 8, 8]},
                {"model": ["vit_test", "adventurer_test"], "model.patch_size": [8]},
            ],
        }
    )
    assert models_and_patches(study) == [("vit_test", 16), ("vit_test", 8), ("adventurer_test", 8)]
    assert study.duplicates == 2


def test_without_a_grid_a_study_is_one_run():
    study = build_study({"study": "one", "base": {"model": {"name": "vit_test", "img_size": [32, 48]}}})
    assert models_and_patches(study) == [("vit_test", 16)]
    assert study.configs[0].model.img_size == (32, 48)


def test_image_sizes_may_be_pairs():
    study = build_study({"study": "pairs", "grid": {"img_size": [32, [32, 48]], "patch_size": 16}})
    assert [config.model.img_size for config in study.configs] == [32, (32, 48)]


def test_all_mistakes_come_in_one_line():
    with pytest.raises(UserError) as caught:
        build_study(
            {
                "studi": "x",
                "recipe": "fashion",
                "base": {"training": {"epoch": 3}, "trainin": {"steps": 2}},
                "grid": {"patchsize": [4], "seed": [], "execution.device": ["cpu"], "training": 3},
                "order": "random",
                "skip_invalid": "maybe",
            },
            source="study.yaml",
        )
    message = str(caught.value)
    assert message.startswith("study.yaml: ")
    assert "\n" not in message
    for part in (
        "studi: no such key of a study; did you mean study?",
        "study: give it a name",
        "recipe: 'fashion' is not one of fashion-mnist, ",
        "did you mean fashion-mnist?",
        "base.training.epoch: no such setting of a run; did you mean training.epochs?",
        "base.trainin.steps: no such setting of a run; did you mean training.steps?",
        "grid.patchsize: no such setting of a run; did you mean patch_size",
        "grid.seed: an empty list leaves nothing to run",
        "grid.execution.device: does not change what a run computes; put it in base",
        "grid.training: no such setting of a run; it is a section with the settings epochs, steps",
        "order: 'random' is not one of cheapest-first, widest-first, longest-first, given",
        "skip_invalid: true or false (got 'maybe')",
    ):
        assert part in message


def test_wrong_values_are_named_once_for_all_runs():
    with pytest.raises(UserError) as caught:
        build_study({"study": "x", "base": {"training": {"batch_size": 0}}, "grid": {"seed": [0, 1, -1], "model": [3]}})
    message = str(caught.value)
    assert message.count("training.batch_size: Input should be greater than or equal to 1 (got 0)") == 1
    assert message.count("model.name: Input should be a valid string (got 3)") == 1
    assert message.count("seed: Input should be greater than or equal to 0 (got -1)") == 1


def test_impossible_combinations_are_all_named_or_left_out_on_request():
    values = {"study": "x", "grid": {"img_size": [28, 32], "patch_size": [7, 8, 4], "model": ["vit_test", "vit_nano"]}}
    with pytest.raises(UserError) as caught:
        build_study(values)
    message = str(caught.value)
    assert "patch_size=8 with img_size=28; patch_size=7 with img_size=32" in message
    assert "skip_invalid: true" in message
    study = build_study({**values, "skip_invalid": True})
    assert len(study.configs) == 8
    assert study.left_out == ("patch_size=8 with img_size=28", "patch_size=7 with img_size=32")
    with pytest.raises(UserError, match="nothing to run"):
        build_study({"study": "x", "skip_invalid": True, "grid": {"img_size": [28], "patch_size": [3]}})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"study": "a/b"}, "must be a folder's name"),
        ({"study": ".."}, "must be a folder's name"),
        ({"study": "x", "grid": [3]}, "expected names with lists of values"),
        ({"study": "x", "base": [3]}, "base: expected nested settings"),
        ({"study": "x", "base": {"training": {"epochs": 1, "steps": 2}}}, "give one of training.epochs"),
        ({"study": "x", "grid": {"training.epochs": [1], "training.steps": [2]}}, "give one of training.epochs"),
        ({"study": "x", "grid": {"model": ["a"], "model.name": ["b"]}}, "given twice"),
        ({"study": "x", "grid": {"img_size": [[3], "a", True]}}, "model.img_size"),
        ({"study": "x", "grid": {4: [1]}, 5: 6}, "4: no such setting"),
    ],
)
def test_other_mistakes(values, words):
    with pytest.raises(UserError) as caught:
        build_study(values)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["patch=3", "patch_size=[]", "nonsense", "training.lr=1"])
def test_wrong_overrides_are_refused(study_file, override):
    with pytest.raises(UserError, match="override"):
        load_study(study_file, [override])


def test_a_date_in_yaml_is_an_ordinary_mistake(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("study: 2024-01-01\ngrid: {seed: [2024-01-01]}")
    with pytest.raises(UserError, match="seed: Input should be a valid integer"):
        load_study(path)


def test_config_paths_are_the_settings_of_a_run():
    assert {"model.patch_size", "training.learning_rate", "seed", "task"} <= set(config_paths())
    assert "training" not in config_paths()


def test_the_plan_is_priced_and_the_cheapest_comes_first(study_file, tmp_path):
    study = load_study(study_file)
    planned = plan_study(study, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    flops = [item.flops_train_total for item in planned]
    assert flops == sorted(flops)
    assert {item.state for item in planned} == {"queued"}
    first = planned[0]
    cost = count("vit_nano", patch_size=14, img_size=28, num_classes=10)
    assert first.counts == cost
    # 54,000 images (a tenth is held out), 5 epochs of 843.75 batches of 64, rounded up.
    assert first.workload.images_seen == 4219 * 64
    assert first.flops_train_total == cost.flops_train * 4219 * 64
    assert totals(planned) == {
        "runs": 6,
        "states": {"queued": 6},
        "flops_train_total": sum(flops),
        "flops_train_to_do": sum(flops),
    }


def test_the_given_order_is_kept_on_request(study_file, tmp_path):
    planned = plan_study(load_study(study_file, ["order=given"]), tmp_path)
    assert [item.config.model.patch_size for item in planned] == [14, 7, 4, 14, 7, 4]


def test_unknown_numbers_of_images_stay_unknown(tmp_path):
    values = {
        "study": "x",
        "base": {"data": {"name": "image_folder", "root": str(tmp_path / "absent")}, "model": {"name": "vit_test"}},
    }
    (planned,) = plan_study(build_study(values), tmp_path)
    assert planned.flops_train_total is None
    assert planned.counts.flops_forward > 0
    assert totals([planned])["flops_train_total"] is None
    (fixed,) = plan_study(build_study(values, ["training.steps=10"]), tmp_path)
    assert fixed.flops_train_total == 320 * fixed.counts.flops_train


def needing(resources, *overrides, **grid):
    base = {"model": {"name": "vit_test"}, "data": {"name": "scenes"}}
    grid = grid or {"patch_size": [16, 8], "img_size": [16, [16, 32]]}
    return build_study({"study": "x", "base": base, "grid": grid, "resources": resources}, overrides)


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"where": "patch_size"}, r"resources\.where: expected settings with their values"),
        ({"where": ["patch_size"]}, r"resources\.where: expected settings with their values"),
        ({"where": None}, r"resources\.where: expected settings with their values"),
        ({"where": {"patch_size": "small"}}, r"resources\.where\.patch_size: no value of this setting \(got 'small'\)"),
        ({"where": {"patch_size": 4}}, r"resources\.where: no run has model\.patch_size in \[4\]"),
        ({"where": {"patch_size": 8, "seed": 1}}, r"no run has model\.patch_size in \[8\] and seed in \[1\]"),
        ({"time_h": float("inf")}, r"resources\.time_h: a number \(got inf\)"),
        ({"memory_gib": float("nan")}, r"resources\.memory_gib: a number \(got nan\)"),
        ({"gpus": 1.5}, r"resources\.gpus: a whole number, or a part of one GPU such as 0\.25 \(got 1\.5\)"),
    ],
)
def test_resources_that_would_do_nothing_or_fail_later_are_refused(resources, words):
    with pytest.raises(UserError, match=words):
        needing([resources])


@pytest.mark.parametrize(
    ("where", "runs"), [({"patch_size": "16"}, 2), ({"img_size": [[16, 32]]}, 2), ({"img_size": [16, [16, 32]]}, 4)]
)
def test_resources_are_for_values_as_a_run_has_them(where, runs):
    study = needing([{"where": where, "cpus": 8}])
    assert sum(resources_of(config, study.resources).cpus == 8 for config in study.configs) == runs


def test_an_override_may_leave_resources_without_a_run():
    study = needing([{"where": {"patch_size": 8}, "cpus": 8}], "patch_size=16")
    assert {resources_of(config, study.resources).cpus for config in study.configs} == {None}


@pytest.mark.parametrize(
    ("needs", "whole", "devices"),
    [({}, None, 1), ({"gpus": 0, "processes": 4}, 0, 4), ({"gpus": 0.25}, 1, 1), ({"gpus": 2.0, "nodes": 3}, 2, 6)],
)
def test_gpus_are_whole_where_none_is_shared(needs, whole, devices):
    study = needing([needs])
    needs = resources_of(study.configs[0], study.resources)
    assert (needs.whole_gpus, needs.devices) == (whole, devices)


@pytest.mark.parametrize(("gpus", "has_room"), [(0, True), (0.5, False), (1, False), (None, False)])
def test_a_run_without_gpus_takes_none_of_this_machine(monkeypatch, tmp_path, gpus, has_room):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    study = needing([] if gpus is None else [{"gpus": gpus}])
    jobs = plan_study(study, tmp_path)
    executor = LocalExecutor(jobs, Options(resources=study.resources))
    executor.gpus.take("another", executor.gpus.gpus, 0)
    assert executor.has_room(jobs[0]) is has_room
