"""Calibration for real, with the smallest steps: what it measures, keeps and refuses. No times are asserted."""

import pytest
import torch

from patchscale.costs.counts import count
from patchscale.costs.profile import load_profile, save_profile
from patchscale.costs.roofline import TERMS
from patchscale.costs.time import step_time
from patchscale.errors import RunFailed, UserError
from patchscale.measurements import calibrate as calibrate_module
from patchscale.measurements.calibrate import SMALLEST, calibrate, fastest
from patchscale.measurements.step import StepConfig

MiB = 2**20


@pytest.fixture(scope="module")
def calibrated():
    """(profile, what was told meanwhile)"""
    told = []
    profile = calibrate("cpu", num_threads=1, progress=told.append, train_steps=SMALLEST, infer_steps=SMALLEST)
    return profile, told


def test_the_profile_says_how_it_was_made(calibrated):
    profile, told = calibrated
    assert (profile.device, profile.precision, profile.num_threads) == ("cpu", "fp32", 1)
    assert profile.name.endswith("-fp32-1t")
    assert profile.torch_version == torch.__version__
    assert len(told) == 1 + 2 * 2 * len(SMALLEST)
    assert "vit_test, patch 8 at 16 px (1/2)" in told[1]


def test_every_step_was_measured_and_explained(calibrated):
    profile, _ = calibrated
    assert [(row["model"], row["train"]) for row in profile.measurements] == [
        (step.model, train) for train in (True, False) for step in SMALLEST
    ]
    assert all(row["step_time_s"] > 0 for row in profile.measurements)
    for speeds in (profile.train, profile.infer):
        assert set(speeds.seconds) == set(TERMS)
        assert all(seconds > 0 for seconds in speeds.seconds.values())
        assert speeds.fit_error >= 0
        assert speeds.leave_one_out_error >= 0


def test_the_memory_beside_tensors_is_that_of_a_process_with_torch(calibrated):
    profile, _ = calibrated
    assert 100 * MiB < profile.memory_offset_bytes < 4096 * MiB


def test_it_is_kept_and_used(calibrated, tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHSCALE_CONFIG_DIR", str(tmp_path))
    profile, _ = calibrated
    save_profile(profile)
    assert load_profile(profile.name) == profile
    counts = count("adventurer_test", patch_size=8, img_size=32)
    train, infer = (step_time(counts, device="cpu", train=train, num_threads=1) for train in (True, False))
    assert train.calibrated
    assert train.relative_error == profile.train.leave_one_out_error
    assert infer.relative_error == profile.infer.leave_one_out_error
    assert "made with" not in train.source  # same torch, same threads


def test_steps_of_calibration_are_few_and_can_exist():
    for train, infer in (
        (calibrate_module.CPU_TRAIN, calibrate_module.CPU_INFER),
        (calibrate_module.GPU_TRAIN, calibrate_module.GPU_INFER),
    ):
        for steps in (train, infer):
            assert 3 <= len(steps) <= 6
            macs = [count(step.model, patch_size=step.patch_size, img_size=step.img_size).macs.keys() for step in steps]
            assert any("scan" in parts for parts in macs)
            assert any("attention_quadratic" in parts for parts in macs)


def test_of_two_rounds_the_faster_one_counts():
    times = iter([3.0, 1.0, 2.0, 5.0])

    def measure(config, **_):
        return {"model": config.model, "status": "ok", "step_time_s": next(times)}

    configs = [StepConfig(model=model, patch_size=8, img_size=16) for model in ("vit_test", "adventurer_test")]
    rows = fastest(configs, num_threads=1, rounds=2, measure=measure)
    assert [(row["model"], row["step_time_s"], row["repeats"]) for row in rows] == [
        ("vit_test", 2.0, 1.5),
        ("adventurer_test", 1.0, 5.0),
    ]


def test_too_few_steps_are_an_error_not_a_profile():
    with pytest.raises(RunFailed, match="too few training steps"):
        calibrate("cpu", num_threads=1, train_steps=SMALLEST[:1], infer_steps=SMALLEST[:1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "abacus"}, "--device 'abacus'"),
        ({"device": "cpu", "precision": "int3"}, "--precision 'int3'"),
        ({"device": "cpu", "num_threads": 0}, "--threads 0"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        calibrate(**options)
