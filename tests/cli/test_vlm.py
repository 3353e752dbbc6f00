"""`patchscale vlm`: requests of vision-language models priced, and the largest image for a budget."""

import json

import pytest

from patchscale.costs.vision_language.estimate import estimate_vision_language_cost


def test_one_request_part_by_part(call):
    code, out, err = call("vlm", "qwen2.5-vl-7b", "--img-size", "1080x1920", "--device", "h100")
    assert code == 0
    parts, summary = out.split("\n\n")
    assert parts.splitlines()[0] == "part\tparameters\tGMACs\tGFLOPs"
    assert "total\t8,292,166,656" in parts  # the released weights have as many
    values = dict(zip(*(line.split("\t") for line in summary.strip().splitlines()), strict=True))
    assert (values["as seen"], values["visual tokens"]) == ("1092x1932", "2,691")
    assert float(values["first token, s"]) > 0
    assert "FLOPs = 2 x MACs" in err
    assert "assumed" in err
    assert "enlarged from 1080x1920 to 1092x1932" in err


def test_several_models_and_sizes_as_json(call):
    names = ("qwen2.5-vl-7b", "internvl3-8b")
    _, out, _ = call("vlm", *names, "--img-size", "1080x1920,448", "--num-images", 2, "--json")
    found = json.loads(out)["costs"]
    assert [(one["model"], tuple(one["img_size"])) for one in found] == [
        (name, size) for name in names for size in ((1080, 1920), (448, 448))
    ]
    for one in found:
        expected = estimate_vision_language_cost(one["model"], img_size=tuple(one["img_size"]), num_images=2)
        assert one["visual_tokens"] == expected.visual_tokens == 2 * one["visual_tokens_per_image"]
        assert one["flops_prefill"] == expected.flops_prefill
        assert one["peak_memory_bytes"] == expected.peak_memory_bytes


def test_the_largest_image_holds_its_budgets_and_one_cap_more_does_not(call):
    request = ("vlm", "qwen2.5-vl-7b", "--batch-size", 8, "--device", "h100", "--json")
    _, out, _ = call(*request, "--max-memory-gib", 24)
    (found,) = json.loads(out)["largest"]
    assert found["limited_by"] == ["memory_bytes"]
    assert found["peak_memory_bytes"] <= 24 * 2**30
    side = found["img_size"][0]
    larger = estimate_vision_language_cost("qwen2.5-vl-7b", img_size=side + 28, batch_size=8)
    assert larger.peak_memory_bytes > 24 * 2**30
    _, out, _ = call(*request, "--max-memory-gib", 24, "--max-latency-s", found["first_token_s"] / 2)
    (faster,) = json.loads(out)["largest"]
    assert faster["limited_by"] == ["latency_s"]
    assert faster["first_token_s"] <= found["first_token_s"] / 2
    assert faster["set"]["max_pixels"] < found["set"]["max_pixels"]


def test_the_largest_image_in_words(call):
    _, out, err = call("vlm", "internvl3-8b", "--max-latency-s", 0.2, "--device", "rtx4090")
    assert out.startswith("model\tas seen\t")
    assert out.splitlines()[0].split("\t")[-2:] == ["limited by", "first token, s"]
    assert out.splitlines()[1].split("\t")[-2] == "time to the first token"
    assert "max_dynamic_patch=1" in err


def test_json_says_what_is_counted(call):
    for asked in ((), ("--max-memory-gib", 24)):
        _, out, _ = call("vlm", "qwen2.5-vl-7b", *asked, "--json")
        assert json.loads(out)["conventions"]["flops"].startswith("2 x MACs")


def test_quantized_weights_do_not_make_arithmetic_faster(call):
    request = ("vlm", "qwen2.5-vl-7b", "--device", "h100")
    _, plain, said = call(*request)
    assert "quantized" not in said
    _, quantized, said = call(*request, "--weight-bytes-per-param", 0.5)
    assert plain.split("\t")[-1] == quantized.split("\t")[-1]
    assert "arithmetic with quantized weights is taken to be bf16" in said


def test_no_device_of_these_models_asks_for_calibration(call):
    for device in ("cpu", "my-profile"):
        _, _, err = call("vlm", "qwen2.5-vl-7b", "--device", device)
        assert "calibrat" not in err
        assert "h100" in err


def test_models_are_listed(call):
    _, out, _ = call("vlm", "--list-models")
    assert "qwen2.5-vl-7b\tSmartResize\tmax_pixels" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name at least one model"),
        (["qwen2.5-vl-9b"], "did you mean qwen2.5-vl-7b"),
        (["qwen2.5-vl-7b", "--img-size", "10x9000"], "longer than 200:1"),
        (["qwen2.5-vl-7b", "--img-size", "big"], "--img-size 'big'"),
        (["qwen2.5-vl-7b", "--max-latency-s", 1], "give the --device"),
        (["qwen2.5-vl-7b", "--device", "cpu"], "nothing can be assumed"),
        (["qwen2.5-vl-7b", "--device", "h1000"], "device 'h1000' is not known"),
        (["qwen2.5-vl-7b", "--max-memory-gib", 4], "give more, or take a smaller model"),
        (["qwen2.5-vl-7b", "--max-memory-gib", 4], "GiB (--max-memory-gib 4)"),
        (
            ["qwen2.5-vl-7b", "--max-latency-s", 1e-6, "--device", "h100"],
            "s to the first token (--max-latency-s 1e-06)",
        ),
        (["qwen2.5-vl-7b", "--max-memory-gib", "nan"], "--max-memory-gib nan: give a finite number above 0"),
        (["qwen2.5-vl-7b", "--max-latency-s", "inf", "--device", "h100"], "--max-latency-s inf: give"),
        (["qwen2.5-vl-7b", "--max-memory-gib", 0], "--max-memory-gib 0: give"),
        (["qwen2.5-vl-7b", "--max-memory-gib", 24, "--aspect-ratio", 2000], "--aspect-ratio 2000: give"),
        (["qwen2.5-vl-7b", "--max-memory-gib", 24, "--aspect-ratio", "nan"], "from 0.001 to 1000"),
        (["qwen2.5-vl-7b", "--max-memory-gib", 24, "--aspect-ratio", 300], "--aspect-ratio 300 is not one for qwen2.5"),
        (["qwen2.5-vl-7b", "--max-memory-gib", 24, "--num-images", 0], "--num-images 0"),
        (["qwen2.5-vl-7b", "--max-memory-gib", 24, "--img-size", "448"], "--img-size: with"),
        (["qwen2.5-vl-7b", "--aspect-ratio", 1], "--aspect-ratio is that of"),
        (["qwen2.5-vl-7b", "--weight-bytes-per-param", "nan"], "--weight-bytes-per-param nan: give"),
        (["qwen2.5-vl-7b", "--device", "h100", "--precision", "fp32"], "fp32 is not known"),
        (["qwen2.5-vl-7b", "--max-latency-s", 1, "--device", "h100", "--precision", "fp32"], "fp32 is not known"),
        (["qwen2.5-vl-7b", "--precision", "int3"], "precision='int3' is not known"),
    ],
)
def test_mistakes_end_in_one_line(call, arguments, words):
    code, out, err = call("vlm", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
