"""Speeds from times, and the file that keeps them: planted speeds come back, damaged files are refused. No torch."""

import json
from dataclasses import replace

import pytest

from patchscale.costs.counts import count
from patchscale.costs.profile import (
    DeviceProfile,
    check_profiles_folder,
    list_profiles,
    load_profile,
    profile_name,
    profiles_folder,
    save_profile,
)
from patchscale.costs.roofline import OVERLAP, TERMS, USUAL, Speeds, executed_macs, fit_speeds, step_work
from patchscale.costs.time import device_memory_bytes, step_time
from patchscale.errors import UserError

# model, img_size, patch_size, batch_size
STEPS = [
    ("vit_tiny", 32, 16, 1),
    ("vit_nano", 64, 4, 4),
    ("vit_small", 224, 16, 2),
    ("vit_base", 224, 32, 1),
    ("vit_tiny", 96, 2, 1),
    ("adventurer_nano", 80, 2, 1),
    ("adventurer_small", 112, 8, 1),
    ("vit_nano", 32, 32, 1),
]
HELD_OUT = [("vit_tiny", 128, 8, 4), ("adventurer_tiny", 96, 4, 2), ("vit_small", 64, 4, 8)]
PLANTED = {"layers": 3e-4, "linear": 1e-11, "attention": 3e-11, "scan": 2e-11, "moved": 4e-10, "updated": 2e-9}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHSCALE_CONFIG_DIR", str(tmp_path))
    return tmp_path / "devices"


def works(steps, *, train=True, checkpointing=False):
    return [
        step_work(
            count(model, patch_size=patch, img_size=size),
            train=train,
            batch_size=batch,
            activation_checkpointing=checkpointing,
        )
        for model, size, patch, batch in steps
    ]


def planted(overlap=1, **changes):
    return Speeds(seconds=PLANTED | changes, overlap=overlap, fit_error=0, leave_one_out_error=0, undetermined=())


@pytest.fixture
def profile():
    return DeviceProfile(
        name="my-cpu",
        device="cpu",
        device_name="A processor",
        num_threads=1,
        precision="fp32",
        torch_version="2.15.0+cpu",
        date="2026-11-22",
        memory_offset_bytes=4 * 10**8,
        measurements=({"model": "vit_tiny", "img_size": 32, "train": True, "step_time_s": 0.5},),
        train=replace(planted(), undetermined=("layers",), leave_one_out_error=0.1),
        infer=planted(linear=2e-11),
    )


@pytest.mark.parametrize(("device", "overlap"), [("cpu", 1), ("cuda", OVERLAP)])
def test_planted_speeds_come_back_from_exact_times(device, overlap):
    """On a device whose ratios are far from the usual ones."""
    truth = planted(overlap, layers=3e-3 if overlap > 1 else 3e-4)
    times = [truth.time_s(work) for work in works(STEPS)]
    found = fit_speeds(works(STEPS), times, device=device, measured_spread=1e-4)
    assert found.overlap == overlap
    assert found.undetermined == ()
    assert found.seconds == pytest.approx(truth.seconds, rel=1e-3)
    assert found.fit_error < 1e-5
    for work in works(HELD_OUT) + works(HELD_OUT, checkpointing=True):
        assert found.time_s(work) == pytest.approx(truth.time_s(work), rel=1e-3)


def test_usual_ratios_pull_predictions_of_noisy_times_by_little():
    found = fit_speeds(works(STEPS), [planted().time_s(work) for work in works(STEPS)], device="cpu")
    for work in works(HELD_OUT) + works(HELD_OUT, checkpointing=True):
        assert found.time_s(work) == pytest.approx(planted().time_s(work), rel=0.03)


def test_usual_ratios_come_back_exactly():
    truth = replace(planted(), seconds={term: 1e-11 * ratio for term, ratio in USUAL["cpu"].items()})
    found = fit_speeds(works(STEPS), [truth.time_s(work) for work in works(STEPS)], device="cpu")
    assert found.seconds == pytest.approx(truth.seconds, rel=1e-6)
    assert found.leave_one_out_error < 1e-6


def test_what_the_steps_do_not_say_is_named_and_stays_usual():
    steps = [step for step in STEPS if step[0].startswith("vit")]
    found = fit_speeds(works(steps), [planted().time_s(work) for work in works(steps)], device="cpu")
    assert "scan" in found.undetermined  # no step has any of it
    assert found.seconds["scan"] / found.seconds["linear"] == pytest.approx(USUAL["cpu"]["scan"])
    only_wide = [("vit_base", 224, 16, batch) for batch in (8, 16, 32)]
    found = fit_speeds(works(only_wide), [planted().time_s(work) for work in works(only_wide)], device="cpu")
    assert set(found.undetermined) >= {"layers", "attention", "moved"}
    assert found.seconds["layers"] / found.seconds["linear"] == pytest.approx(USUAL["cpu"]["layers"], rel=0.5)


def test_noise_is_seen_in_the_errors():
    exact = [planted().time_s(work) for work in works(STEPS)]
    noisy = [time * factor for time, factor in zip(exact, (1.3, 0.7, 1.3, 0.7, 1.3, 0.7, 1.3, 0.7), strict=True)]
    found = fit_speeds(works(STEPS), noisy, device="cpu")
    assert 0.05 < found.fit_error < found.leave_one_out_error


def test_the_work_of_a_step():
    counts = count("vit_tiny", patch_size=16, img_size=224)
    infer = step_work(counts, train=False, batch_size=2)
    assert infer["linear"] + infer["attention"] == 2 * sum(counts.macs.values())
    assert infer["attention"] == 2 * counts.macs["attention_quadratic"]
    assert infer["scan"] == infer["updated"] == 0
    assert infer["moved"] == 2 * (196 + 1) * 12 * (10 * 192 + 2 * 768)  # patches and class token
    train, again = (step_work(counts, train=True, activation_checkpointing=with_it) for with_it in (False, True))
    assert train["attention"] == 3.5 * counts.macs["attention_quadratic"]
    assert again["attention"] == 4.5 * counts.macs["attention_quadratic"]
    assert train["updated"] == again["updated"] == counts.params_total
    assert set(train) == set(TERMS)
    scanned = count("adventurer_tiny", patch_size=16, img_size=224)
    work = step_work(scanned, train=False)
    assert work["scan"] == scanned.macs["scan"]
    assert work["attention"] == 0
    assert work["linear"] == sum(scanned.macs.values()) - scanned.macs["scan"] - scanned.macs["conv"]


@pytest.mark.parametrize(
    ("model", "channels", "prefix"),
    [
        ("vit_giant_swiglu_reg4", 10 * 1536 + 3 * 4096, 5),
        ("vit_so400m", 10 * 1152 + 2 * 4304, 0),
        ("vit_small_reg4", 10 * 384 + 2 * 1536, 5),
    ],
)
def test_numbers_moved_follow_the_mlp_and_all_tokens(model, channels, prefix):
    counts = count(model, patch_size=16, img_size=224)
    assert step_work(counts, train=False)["moved"] == (196 + prefix) * counts.shape.depth * channels


def test_what_is_computed_again_is_of_training_alone():
    counts = count("vit_tiny", patch_size=16, img_size=224)
    assert executed_macs(counts, train=False, activation_checkpointing=True) == counts.macs


def test_a_profile_comes_back_as_it_was(profile, folder):
    assert list_profiles() == []
    assert save_profile(profile) == folder / "my-cpu.json"
    assert list_profiles() == ["my-cpu"]
    assert load_profile("my-cpu") == profile
    save_profile(replace(profile, memory_offset_bytes=1))
    assert load_profile("my-cpu").memory_offset_bytes == 1
    assert [path.name for path in folder.iterdir()] == ["my-cpu.json"]  # no temporary files stay


def test_without_the_variable_profiles_are_in_the_users_folder(monkeypatch):
    monkeypatch.delenv("PATCHSCALE_CONFIG_DIR")
    assert profiles_folder().parts[-2:][1] == "devices"
    assert "patchscale" in profiles_folder().parts[-2].lower()


def test_names_are_made_of_the_device():
    assert profile_name("NVIDIA H100 80GB HBM3", precision="bf16", num_threads=None) == "nvidia-h100-80gb-hbm3-bf16"
    assert profile_name("Intel(R) Xeon(R)", precision="fp32", num_threads=2) == "intel-r-xeon-r-fp32-2t"


@pytest.mark.parametrize("name", ["", "../elsewhere", "a b", ".hidden"])
def test_names_that_are_no_file_names_are_refused(name, profile):
    with pytest.raises(UserError, match="cannot be called"):
        save_profile(replace(profile, name=name))


def test_an_unknown_profile_is_refused_with_those_that_are_there(profile):
    save_profile(profile)
    with pytest.raises(UserError, match=r"no profile 'other' is stored \(there are: my-cpu\)"):
        load_profile("other")


def damaged(change):
    def edit(path):
        written = json.loads(path.read_text())
        change(written)
        path.write_text(json.dumps(written))

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(path.read_text()[:100]),
        lambda path: path.write_text(""),
        lambda path: path.write_bytes(b"\xff\xfe\x00"),
        lambda path: path.write_text("[1, 2]"),
        lambda path: path.write_text("null"),
        damaged(lambda written: written.pop("train")),
        damaged(lambda written: written.update(format=2)),
        damaged(lambda written: written.update(num_threads="many")),
        damaged(lambda written: written.update(measurements=[{}])),
        damaged(lambda written: written.update(measurements=None)),
        damaged(lambda written: written["measurements"][0].update(repeats="often")),
        damaged(lambda written: written.update(infer=None)),
        damaged(lambda written: written["train"].update(seconds={})),
        damaged(lambda written: written["train"].update(overlap=0)),
        damaged(lambda written: written["train"].update(overlap=10**6)),
        damaged(lambda written: written["train"].update(fit_error=float("nan"))),
        damaged(lambda written: written["infer"].update(leave_one_out_error=-0.1)),
        damaged(lambda written: written["train"]["seconds"].update(linear=-1)),
        damaged(lambda written: written["train"]["seconds"].update(linear=float("nan"))),
        damaged(lambda written: written["train"]["seconds"].update(magic=1)),
        damaged(lambda written: written["train"]["seconds"].pop("linear")),
    ],
)
def test_a_damaged_profile_is_refused_in_a_line(damage, profile):
    path = save_profile(profile)
    damage(path)
    with pytest.raises(UserError, match="cannot be read") as caught:
        load_profile("my-cpu")
    message = str(caught.value)
    assert str(path) in message
    assert "--calibrate" in message
    assert "\n" not in message


def test_a_folder_that_cannot_be_written_is_said(profile, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PATCHSCALE_CONFIG_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be written"):
        save_profile(profile)
    with pytest.raises(UserError, match="set PATCHSCALE_CONFIG_DIR to another folder"):
        check_profiles_folder()


def test_a_look_at_the_folder_leaves_nothing_in_it(folder):
    check_profiles_folder()
    assert list(folder.iterdir()) == []


def test_a_damaged_profile_stands_in_no_other_devices_way():
    folder = profiles_folder()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "broken.json").write_text('{"format": 1, "train": {"seconds": 3}}')
    counts = count("vit_tiny", patch_size=16, img_size=224)
    assert not step_time(counts, device="h100").calibrated
    with pytest.raises(UserError, match=r"broken\.json cannot be read"):
        step_time(counts, device="broken")


@pytest.mark.parametrize(
    ("device_name", "memory_gb"),
    [("NVIDIA H100 80GB HBM3", 80), ("NVIDIA A100-SXM4-40GB", 40), ("NVIDIA GeForce RTX 4090", 24), ("Some CPU", None)],
)
def test_a_profiled_device_has_the_memory_of_its_kind(profile, device_name, memory_gb):
    expected = None if memory_gb is None else memory_gb * 10**9
    assert device_memory_bytes(replace(profile, device_name=device_name)) == expected
