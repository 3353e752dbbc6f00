import hashlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from patchscale.config import RunConfig, build_config, load_config
from patchscale.errors import UserError


def test_yaml_round_trip_keeps_the_identity(tmp_path):
    config = build_config({"model": {"img_size": [32, 48], "patch_size": 8}, "training": {"epochs": 0.5}})
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    again = load_config(path)
    assert again == config
    assert again.identity == config.identity
    assert again.run_id == f"vit_tiny-p8-r32x48-s0-{config.identity}"


def test_identity_ignores_how_and_where_but_not_what():
    base = build_config({})
    same = build_config(
        {},
        [
            "execution.num_workers=4",
            "execution.device=cpu",
            "execution.micro_batch_size=2",
            "execution.ssd_backend=reference",
            "recipe=other",
        ],
    )
    assert same.identity == base.identity
    named = {"data": {"name": "mnist"}}
    assert build_config(named, ["data.root=/elsewhere"]).identity == build_config(named).identity
    for override in ("seed=1", "model.patch_size=8", "training.learning_rate=0.002", "data.split_seed=3"):
        assert build_config({}, [override]).identity != base.identity, override


def test_settings_are_what_a_curve_holds_fixed():
    base = build_config({"model": {"name": "vit_nano"}})
    for override in ("seed=1", "model.patch_size=8", "model.img_size=64", "model.name=adventurer_nano"):
        assert build_config({"model": {"name": "vit_nano"}}, [override]).settings == base.settings, override
    for override in ("training.learning_rate=0.002", "training.batch_size=64", "data.augment=none"):
        assert build_config({"model": {"name": "vit_nano"}}, [override]).settings != base.settings, override


def test_what_has_no_effect_makes_no_new_run():
    vit = {"model": {"name": "vit_nano", "img_size": 32, "patch_size": 8}}
    for override in ("model.flip_schedule=none", "model.img_size=[32,32]", "data.val_fraction=0.2"):
        assert build_config(vit, [override]).identity == build_config(vit).identity, override
    adventurer = {"model": {"name": "adventurer_nano"}}
    assert build_config(adventurer, ["model.flip_schedule=none"]).identity != build_config(adventurer).identity


def test_a_setting_at_its_default_is_not_part_of_the_identity():
    values = RunConfig().to_dict()
    assert build_config(values).identity == build_config({}).identity
    assert RunConfig().identity == hashlib.sha256(b"{}").hexdigest()[:10]


def test_the_folder_of_own_data_is_part_of_the_identity():
    first = build_config({"data": {"name": "image_folder", "root": "/a"}})
    second = build_config({"data": {"name": "image_folder", "root": "/b"}})
    assert first.identity != second.identity


def test_a_relative_folder_is_kept_as_the_place_it_means(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = build_config({"data": {"name": "image_folder", "root": "photos"}})
    assert config.data.root == str(tmp_path / "photos")


@given(st.integers(1, 300), st.integers(1, 40))
def test_a_patch_is_accepted_exactly_when_it_divides_the_image(img_size, patch_size):
    values = {"model": {"img_size": img_size, "patch_size": patch_size}}
    if img_size % patch_size == 0:
        assert build_config(values).model.patch_size == patch_size
    else:
        with pytest.raises(UserError, match=f"patch_size={patch_size} does not divide"):
            build_config(values)


def test_all_mistakes_are_reported_together_in_one_line():
    with pytest.raises(UserError) as caught:
        build_config({"model": {"nam": "vit_tiny"}, "training": {"batch_size": 0, "precision": "fp8"}, "seed": -1})
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "model.nam: no such field",
        "training.batch_size",
        "(got 0)",
        "training.precision",
        "'fp8'",
        "seed",
    ):
        assert part in message
    assert "patch_size" in message  # the fields that model does have


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("patch_size", "not of the form name=value"),
        ("=3", "not of the form name=value"),
        ("seed.x=3", "a single value"),
        ("training.epochs=-1", "greater than 0"),
        ("task=segmentaton", "classification"),
        ("data.name=image_folder", "data.root"),
        ("training.epochs=null", "exactly one"),
        ("task=captioning", "(got 'captioning')"),
        ("execution.micro_batch_size=0", "execution.micro_batch_size: give a number of images, at least 1, or auto"),
        ("execution.activation_checkpointing=maybe", "'auto', 'on' or 'off'"),
    ],
)
def test_wrong_overrides_say_what_is_wrong(override, words):
    with pytest.raises(UserError) as caught:
        build_config({"training": {"epochs": 1}, "seed": 0}, [override])
    assert words in str(caught.value)


def test_giving_steps_replaces_epochs():
    config = build_config({"training": {"epochs": 3}}, ["training.steps=10"])
    assert (config.training.epochs, config.training.steps) == (None, 10)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {root: 2020-01-01}", "data.root"),
        ("a: [1", "not valid YAML"),
        ("- 1\n- 2\n", "expected a mapping"),
        ("", "expected a mapping"),
    ],
)
def test_broken_files_are_named(tmp_path, text, words):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        load_config(tmp_path / "absent.yaml")


def test_yaml_reads_1e_3_as_a_number():
    assert build_config({}, ["training.learning_rate=1e-3"]).training.learning_rate == 0.001


def test_on_and_off_are_words_here_although_yaml_reads_them_as_booleans():
    for word in ("on", "off"):
        config = build_config({}, [f"execution.activation_checkpointing={word}"])
        assert config.execution.activation_checkpointing == word
        assert build_config(yaml.safe_load(config.to_yaml())) == config


def test_default_config_is_valid():
    assert RunConfig().training.epochs == 1
