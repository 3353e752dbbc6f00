"""`patchscale cost`: tables for people, plain numbers for scripts, one clear line for mistakes."""

import json

import pytest

from patchscale.costs.estimate import estimate_cost
from patchscale.costs.profile import list_profiles


@pytest.fixture(autouse=True)
def own_profiles(tmp_path, monkeypatch):
    """No test reads or writes the user's profiles."""
    monkeypatch.setenv("PATCHSCALE_CONFIG_DIR", str(tmp_path / "settings"))


def tables(text):
    """Every table of the output: a list of rows, each a dictionary."""
    found = []
    for block in text.split("\n\n"):
        lines = [line.split("\t") for line in block.strip().splitlines() if "\t" in line]
        found.append([dict(zip(lines[0], line, strict=True)) for line in lines[1:]])
    return found


def test_one_model_part_by_part(call):
    code, out, err = call("cost", "vit_base", "--batch-size", 8, "--device", "a100", "--images", "imagenet")
    assert code == 0
    assert out.startswith("vit_base, patch 16 at 224 px: 196 tokens; classification, linear head for 1000 classes")
    counts, memory, time = tables(out)
    expected = estimate_cost("vit_base", patch_size=16, img_size=224, batch_size=8, device="a100")
    rows = {row["part"]: row for row in counts}
    assert rows["total"]["parameters"] == f"{expected.params_total:,}"
    assert float(rows["total"]["GFLOPs"]) == pytest.approx(35.13)
    assert float(rows["attention_quadratic"]["GMACs"]) == pytest.approx(0.7153)
    assert float(rows["total, with what is computed again"]["training GFLOPs"]) > float(
        rows["total"]["training GFLOPs"]
    )
    sizes = {row["memory"]: row for row in memory}
    assert sizes["weights"]["all kept"] == "330 MiB"
    assert sizes["which is at"].keys() == {"memory", "all kept", "with checkpointing"}
    assert time[-1]["time"] == "1,281,167 images, hours of one device"
    assert float(time[-1]["value"]) == pytest.approx(expected.device_hours(1_281_167), rel=1e-3)
    assert "FLOPs = 2 x MACs" in err
    assert "assumed MFU" in err


def test_a_grid_is_one_table(call):
    _, out, _ = call("cost", "vit_tiny", "adventurer_tiny", "--patch-size", "16,4", "--img-size", "224,64x128")
    (rows,) = tables(out)
    assert [(row["model"], row["img_size"], row["patch_size"]) for row in rows] == [
        (model, size, patch)
        for model in ("vit_tiny", "adventurer_tiny")
        for size in ("224", "64x128")
        for patch in ("16", "4")
    ]
    assert rows[1]["tokens"] == "3,136"
    assert "step time" not in rows[0]


def test_plain_numbers_as_json(call):
    arguments = ("cost", "adventurer_tiny", "--patch-size", "2,1", "--batch-size", 4, "--checkpointing")
    _, out, _ = call(*arguments, "--device", "h100", "--images", 1000, "--epochs", 2, "--json")
    found = json.loads(out)
    assert found["conventions"]["flops"].startswith("2 x MACs")
    for row, patch_size in zip(found["costs"], (2, 1), strict=True):
        expected = estimate_cost(
            "adventurer_tiny",
            patch_size=patch_size,
            img_size=224,
            batch_size=4,
            activation_checkpointing=True,
            device="h100",
        )
        assert row["tokens"] == (224 // patch_size) ** 2
        assert row["flops_train_per_image"] == expected.flops_train == 2 * sum(row["macs_train_per_image"].values())
        assert row["flops_train_executed_per_image"] > row["flops_train_per_image"]
        assert row["peak_memory_bytes"] == expected.memory.peak_bytes == sum(row["memory_bytes"].values())
        assert row["images_seen"] == 2000
        assert row["device_hours"] == pytest.approx(2000 / row["time"]["images_per_s"] / 3600)
        assert not row["time"]["calibrated"]


def test_what_does_not_fit_is_said(call):
    arguments = ("cost", "vit_base", "--batch-size", "1,4096")
    _, out, err = call(*arguments, "--device", "rtx4090")
    small, large = tables(out)[0]
    assert "fit" not in small["peak memory"]
    assert large["peak memory"].endswith(" GiB, does not fit")
    (line,) = [line for line in err.splitlines() if "fit" in line]
    assert line.startswith("vit_base, patch 16 at 224 px, batch 4096: needs ")
    assert line.endswith(" GiB, rtx4090 has 22.4 GiB: does not fit")
    for device, expected in ((("--device", "RTX4090"), [True, False]), ((), [None, None])):
        _, out, _ = call(*arguments, *device, "--json")
        assert [row["fits"] for row in json.loads(out)["costs"]] == expected


def test_activations_after_the_forward_pass(call):
    _, out, _ = call("cost", "vit_base")
    sizes = {row["memory"]: row for row in tables(out)[1]}
    assert sizes["which is at"]["all kept"] == "optimizer step"
    kept, again = (
        float(sizes["activations after the forward pass"][column].removesuffix(" MiB"))
        for column in ("all kept", "with checkpointing")
    )
    expected = estimate_cost("vit_base", patch_size=16, img_size=224).memory
    assert kept == pytest.approx(expected.forward_activations_bytes / 2**20, rel=0.01)
    assert 0 < again < kept / 4


def test_the_assumption_is_there_in_numbers(call):
    _, out, _ = call("cost", "adventurer_base", "--device", "h100", "--json")
    (row,) = json.loads(out)["costs"]
    per_s = row["assumed_mfu"] * row["peak_flops_per_s"]
    assert row["time"]["step_time_s"] == pytest.approx(row["flops_train_per_image"] / per_s)
    _, out, _ = call("cost", "adventurer_base", "--json")
    (row,) = json.loads(out)["costs"]
    assert (row["assumed_mfu"], row["peak_flops_per_s"]) == (None, None)


def test_heads_count(call):
    _, out, _ = call(
        *("cost", "vit_tiny", "--task", "segmentation", "--head", "upernet", "--num-classes", 150, "--img-size", 512),
        *("--infer", "--json"),
    )
    (row,) = json.loads(out)["costs"]
    assert (row["head"], row["train"]) == ("upernet", False)
    assert {"pyramid", "decoder", "head"} <= row["params"].keys()
    assert row["params_backbone"] == row["params_total"] - row["params_pos_embed"] - sum(
        row["params"][part] for part in ("pyramid", "decoder", "head")
    )


def test_calibration_is_kept_and_used(call, monkeypatch):
    from patchscale.measurements import calibrate

    monkeypatch.setattr(calibrate, "CPU_TRAIN", calibrate.SMALLEST)
    monkeypatch.setattr(calibrate, "CPU_INFER", calibrate.SMALLEST)
    code, out, err = call("cost", "--calibrate", "--device", "cpu", "--num-threads", 1)
    assert code == 0, err
    assert [row["steps"] for row in tables(out)[0]] == ["training", "inference"]
    (name,) = list_profiles()
    assert f"--device {name}" in err
    for device in (name, "cpu"):
        _, out, err = call("cost", "vit_nano", "--img-size", 64, "--device", device, "--json")
        (row,) = json.loads(out)["costs"]
        assert row["time"]["calibrated"]
        assert row["time"]["step_time_s"] > 0
        assert row["precision"] == "fp32"
    _, out, _ = call("cost", "--list-devices")
    assert name in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name at least one model"),
        (["vit_bse"], "did you mean"),
        (["qwen2.5-vl-7b"], "patchscale vlm qwen2.5-vl-7b"),
        (["vit_base", "--patch-size", "5"], "patch_size=5 does not divide"),
        (["vit_base", "--patch-size", "16,,8"], "--patch-size '16,,8'"),
        (["vit_base", "--img-size", "32x"], "--img-size '32x'"),
        (["vit_base", "--task", "captions"], "task='captions' is not known"),
        (["vit_base", "--head", "upernet"], "head='upernet' is not one for classification"),
        (["vit_base", "--device", "abacus"], "device 'abacus' is not known"),
        (["vit_base", "--device", "cpu"], "patchscale cost --calibrate"),
        (["vit_base", "--device", "h100", "--precision", "fp32"], "fp32 is not known"),
        (["vit_base", "--precision", "int8"], "--precision 'int8' is unknown"),
        (["vit_base", "--pos-embed", "rotary"], "--pos-embed 'rotary' is unknown"),
        (["vit_base", "--infer", "--checkpointing", "--ema"], "leave out --checkpointing and --ema"),
        (["vit_base", "--infer", "--micro-batch-size", 2], "leave out --micro-batch-size"),
        (["vit_base", "--epochs", 1], "leave out --epochs"),
        (["vit_base", "--calibrate"], "leave out a model"),
        (["--calibrate", "--images", 10], "leave out --images"),
        (["vit_base", "--images", "imagenet"], "give --device"),
        (["vit_base", "--images", "all", "--device", "h100"], "images 'all'"),
        (["vit_base", "--images", "10", "--epochs", "0", "--device", "h100"], "--epochs 0"),
        (["vit_base", "--task", "detection", "--num-classes", "1"], "num_classes=1 is too few"),
    ],
)
def test_mistakes_end_in_one_line(call, arguments, words):
    code, out, err = call("cost", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
