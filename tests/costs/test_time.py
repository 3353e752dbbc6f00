"""Assumed and calibrated times: the published hours, what is computed again, and what is said about it. No torch."""

import re
from dataclasses import replace

import pytest

from patchscale.costs import time as time_module
from patchscale.costs.counts import count
from patchscale.costs.estimate import estimate_cost
from patchscale.costs.profile import DeviceProfile, save_profile
from patchscale.costs.roofline import Speeds
from patchscale.costs.time import ASSUMED_MFU, flops_train_executed, run_hours, step_time
from patchscale.errors import UserError
from patchscale.published_tables.tables import published

IMAGENET_TRAIN = 1_281_167
A100_FLOPS_PER_S = 312e12


def table_6():
    """(model, patch size, published GPU-hours of one epoch)"""
    rows = published("patchification/compute-cost").to_dict("records")
    return [
        (model, int(row["patch_size"]), row[f"gpu_hours_per_epoch_{model}"])
        for row in rows
        for model in ("deit_base", "adventurer_base")
    ]


@pytest.fixture(autouse=True)
def no_profiles(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHSCALE_CONFIG_DIR", str(tmp_path))


@pytest.fixture
def profile():
    seconds = {"layers": 1e-4, "linear": 1e-11, "attention": 2e-11, "scan": 5e-11, "moved": 1e-9, "updated": 5e-9}
    infer = Speeds(seconds=seconds, overlap=1, fit_error=0.02, leave_one_out_error=0.07, undetermined=())
    return DeviceProfile(
        name="my-cpu",
        device="cpu",
        device_name="A processor",
        num_threads=1,
        precision="fp32",
        torch_version=time_module._installed_torch() or "2.11.0",
        date="2026-11-22",
        memory_offset_bytes=4 * 10**8,
        measurements=({"train": True}, {"train": True}, {"train": False}),
        train=replace(infer, leave_one_out_error=0.05),
        infer=infer,
    )


@pytest.mark.parametrize(("model", "patch_size", "hours"), table_6())
def test_the_ten_published_times_are_within_15_percent(model, patch_size, hours):
    time = step_time(count(model, patch_size=patch_size, img_size=224), device="a100")
    assert run_hours(time, images=IMAGENET_TRAIN) == pytest.approx(hours, rel=0.15)


@pytest.mark.parametrize(("model", "architecture"), [("deit_base", "vit"), ("adventurer_base", "adventurer")])
def test_the_assumed_mfu_has_the_smallest_largest_error(model, architecture):
    utilisation = [
        count(model, patch_size=patch, img_size=224).flops_train * IMAGENET_TRAIN / (hours * 3600 * A100_FLOPS_PER_S)
        for name, patch, hours in table_6()
        if name == model
    ]
    assert ASSUMED_MFU[architecture] == pytest.approx((min(utilisation) + max(utilisation)) / 2, abs=5e-5)


def test_an_assumed_time_says_what_is_assumed():
    counts = count("vit_base", patch_size=16, img_size=224)
    on_a100, on_h100 = (step_time(counts, device=device) for device in ("a100", "h100"))
    assert (on_a100.calibrated, on_a100.relative_error) == (False, None)
    assert "MFU 0.3228 of 312 TFLOP/s" in on_a100.source
    assert "too" not in on_a100.source
    assert "assumed to hold for this device too" in on_h100.source
    assert on_a100.step_time_s / on_h100.step_time_s == pytest.approx(989.4 / 312)
    inference = step_time(counts, device="a100", train=False)
    assert "assumed to hold for inference too" in inference.source
    assert inference.step_time_s == pytest.approx(counts.flops_forward / (0.3228 * A100_FLOPS_PER_S))


def test_rates_follow_from_the_step():
    counts = count("vit_tiny", patch_size=16, img_size=224)
    one, eight = (step_time(counts, device="a100", batch_size=batch) for batch in (1, 8))
    assert eight.step_time_s == pytest.approx(8 * one.step_time_s)
    assert eight.images_per_s == pytest.approx(8 / eight.step_time_s)
    assert eight.tokens_per_s == pytest.approx(196 * eight.images_per_s)
    assert run_hours(one, images=7200) == pytest.approx(2 * one.step_time_s)


def test_attention_scores_are_computed_again():
    counts = count("vit_base", patch_size=4, img_size=224)
    again = flops_train_executed(counts) - counts.flops_train
    assert again == 0.5 * 2 * counts.macs["attention_quadratic"]
    without_attention = count("adventurer_base", patch_size=4, img_size=224)
    assert flops_train_executed(without_attention) == without_attention.flops_train


@pytest.mark.parametrize("model", ["vit_base", "adventurer_base"])
def test_checkpointing_does_the_forward_pass_of_the_blocks_again(model):
    counts = count(model, patch_size=8, img_size=224)
    again = flops_train_executed(counts, activation_checkpointing=True) - flops_train_executed(counts)
    assert again == counts.flops_forward - 2 * (counts.macs["patch_embed"] + counts.macs["head"])
    plain, checkpointed = (
        step_time(counts, device="a100", activation_checkpointing=with_it).step_time_s for with_it in (False, True)
    )
    assert checkpointed / plain == pytest.approx(1 + again / flops_train_executed(counts))
    forward = [
        step_time(counts, device="a100", train=False, activation_checkpointing=with_it).step_time_s
        for with_it in (False, True)
    ]
    assert forward[0] == forward[1]


def test_a_profile_says_what_it_knows(profile):
    counts = count("vit_tiny", patch_size=16, img_size=224)
    time = step_time(counts, device=profile, num_threads=1)
    assert (time.calibrated, time.relative_error) == (True, 0.05)
    assert "A processor (fp32, 1 CPU thread)" in time.source
    assert "from 2 training steps" in time.source
    assert "made with" not in time.source
    inference = step_time(counts, device=profile, train=False)
    assert inference.relative_error == 0.07
    assert inference.step_time_s < time.step_time_s


def test_other_threads_and_another_torch_are_said(profile):
    counts = count("vit_tiny", patch_size=16, img_size=224)
    time = step_time(counts, device=replace(profile, torch_version="1.13.0"), num_threads=4)
    assert "made with 1 CPU thread, not 4" in time.source
    if time_module._installed_torch() is not None:
        assert "made with torch 1.13.0, not" in time.source


@pytest.mark.parametrize(("repeats", "said"), [(1.1, False), (1.9, True)])
def test_a_busy_machine_is_said(profile, repeats, said):
    measurements = (*profile.measurements, {"train": True, "repeats": repeats})
    time = step_time(count("vit_tiny", patch_size=16, img_size=224), device=replace(profile, measurements=measurements))
    assert ("the same step took up to 1.9 times as long" in time.source) == said


def test_a_stored_profile_is_found_by_its_name_and_by_its_device(profile):
    counts = count("vit_tiny", patch_size=16, img_size=224)
    save_profile(profile)
    h100 = replace(profile, name="the-big-one", device="cuda", device_name="NVIDIA H100 80GB HBM3", precision="bf16")
    save_profile(h100)
    assert step_time(counts, device="my-cpu") == step_time(counts, device="cpu") == step_time(counts, device=profile)
    assert step_time(counts, device="h100").calibrated
    assert not step_time(counts, device="a100").calibrated


def test_the_profile_with_the_threads_asked_for_is_taken(profile):
    counts = count("vit_tiny", patch_size=16, img_size=224)
    save_profile(profile)
    save_profile(replace(profile, name="two", num_threads=2, date="2026-11-23"))
    assert "(fp32, 1 CPU thread)" in step_time(counts, device="cpu", num_threads=1).source
    assert "(fp32, 2 CPU threads)" in step_time(counts, device="cpu").source  # the newest


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cpu"}, "run patchscale cost --calibrate"),
        ({"device": "abacus"}, "'abacus' is not known"),
        ({"device": "a100", "precision": "fp32"}, "fp32 is not known, only in bf16"),
        ({"device": "a100", "batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_line(options, words):
    with pytest.raises(UserError, match=words) as caught:
        step_time(count("vit_tiny", patch_size=16, img_size=224), **options)
    assert "\n" not in str(caught.value)


def test_a_profile_of_another_precision_is_refused(profile):
    save_profile(profile)
    for device in (profile, "my-cpu", "cpu"):
        with pytest.raises(UserError, match="measured in fp32, not bf16"):
            step_time(count("vit_tiny", patch_size=16, img_size=224), device=device, precision="bf16")


def test_scores_that_are_written_are_not_computed_again():
    fused = count("deit_tiny_patch16_224", patch_size=16, img_size=224)
    written = count("beit_base_patch16_224", patch_size=16, img_size=224)  # its position biases are learned
    assert flops_train_executed(fused) == fused.flops_train + fused.macs["attention_quadratic"]
    assert flops_train_executed(written) == written.flops_train


def test_every_micro_batch_goes_through_all_layers(profile):
    counts = count("vit_tiny", patch_size=16, img_size=224)
    whole = step_time(counts, device=profile, batch_size=8)
    parts = step_time(counts, device=profile, batch_size=8, micro_batch_size=3)
    launching_s = profile.train.seconds["layers"] * 3 * 12  # forward and backward of twelve blocks
    assert parts.step_time_s - whole.step_time_s == pytest.approx(2 * launching_s)  # three passes instead of one
    assert step_time(counts, device=profile, batch_size=8, micro_batch_size=16) == whole


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch_size": 16.0}, "patch_size=16.0: give a whole number, at least 1"),
        ({"batch_size": 0}, "batch_size=0: give a whole number, at least 1"),
        ({"micro_batch_size": "2"}, "micro_batch_size='2': give a whole number"),
        ({"num_classes": -1}, "num_classes=-1: give a whole number, at least 0"),
        ({"num_classes": None}, "num_classes=None: give a whole number, at least 0"),
        ({"pos_embed": "rope"}, "pos_embed='rope': choose learned or sincos2d"),
        ({"precision": "fp8"}, "precision='fp8': choose"),
        ({"num_threads": 0}, "num_threads=0: give a whole number, at least 1"),
    ],
)
def test_estimates_refuse_what_is_no_number(options, words):
    with pytest.raises(UserError, match=re.escape(words)):
        estimate_cost("vit_tiny", **{"patch_size": 16, "img_size": 224, **options})
