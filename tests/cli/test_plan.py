"""The verb `plan`, run as a user runs it."""

import html
import json

import numpy as np
import pandas as pd
import pytest

from patchscale.planner.compute_curve import ComputeCurve

TABLE = ["published:patchification/imagenet", "--where", "architecture=adventurer"]
PANEL_C = ["published:patchification/test-loss", "--where", "panel=c"]
NINES = "9" * 5000
VLM = ["published:vlm/tokens-llm-size", "--where", "task=OCR", "--form", "vlm"]


def test_a_plan_in_words_with_tables(call):
    code, out, err = call(
        "plan", *TABLE, "--device", "a100", "--images-seen", "3e8",
        "--budget", "train_gpu_hours=300", "--budget", "latency_s=5ms",
    )  # fmt: skip
    assert code == 0, err
    assert "The law. relative-patch: y = E + A * (p/r)^a * N^-h" in out
    assert "of 300 GPU-hours of training" in out
    assert "of 5 ms latency" in out
    assert "What holds it back is" in out
    assert "tied with the best, cheapest first" in out
    assert "next step along each axis" in out
    assert "adventurer_" in out
    assert "nan" not in out


def test_models_of_another_family_are_marked(call):
    arguments = [*TABLE, "--model", "vit_small,vit_base", "--patch-size", "16,8", "--budget", "infer_flops=1e12"]
    code, out, _ = call("plan", *arguments, "--img-size", "224")
    assert code == 0
    assert "This is an extrapolation (model family)" in out
    rows = [line for line in out.splitlines() if line.startswith(("vit_", "model\tvit_", "patch_size\tvit_"))]
    assert rows
    assert all("outside: model family" in row for row in rows)
    best = json.loads(call("plan", *arguments, "--img-size", "224", "--json")[1])["plan"]["best"]
    assert (best["extrapolated"], best["outside"]) == (True, "model family")


def test_as_json(call):
    arguments = ["plan", *TABLE, "--model", "adventurer_base", "--img-size", "224", "--budget", "infer_flops=3e11"]
    code, out, err = call(*arguments, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["plan"]["best"]["model"] == "adventurer_base"
    assert told["plan"]["best"]["infer_flops"] <= 3e11
    assert told["plan"]["sentence"].startswith("Of ")
    assert told["law"]["form"] == "relative-patch"
    assert call(*arguments, "--json")[1] == out


def test_a_page(call, tmp_path):
    arguments = ["plan", *TABLE, "--model", "adventurer_base", "--img-size", "224", "--budget", "infer_flops=3e11"]
    code, out, err = call(*arguments, "--report", "pages/plan.html")
    assert code == 0, err
    assert out.endswith("The page: pages/plan.html\n")
    page = (tmp_path / "pages" / "plan.html").read_text(encoding="utf-8")
    sentence = next(line for line in out.splitlines() if line.startswith("The plan. ")).removeprefix("The plan. ")
    assert sentence in html.unescape(page).replace("\u00a0", " ")
    assert "--budget infer_flops=3e11 --report pages/plan.html" in page
    told = json.loads(call(*arguments, "--report", "again.html", "--json")[1])
    assert told["report"] == "again.html"
    assert (tmp_path / "again.html").exists()


def test_units_of_budgets(call):
    arguments = ["plan", *TABLE, "--model", "adventurer_*", "--img-size", "224", "--patch-size", "16,8", "--json"]
    plain = call(*arguments, "--budget", "peak_memory_bytes=8e9")
    unit = call(*arguments, "--budget", "peak_memory_bytes=8GB")
    assert plain[0] == 0
    assert json.loads(plain[1])["plan"] == json.loads(unit[1])["plan"]
    assert json.loads(plain[1])["plan"]["best"]["peak_memory_bytes"] <= 8e9


def test_vision_language_models(call):
    llms = [part for name in ("0.5B=0.5e9", "1.8B=1.8e9", "4B=4e9", "7B=7e9") for part in ("--llm", name)]
    code, out, err = call(
        "plan",
        *VLM,
        "--allow-mixed",
        *llms,
        "--visual-tokens",
        "1,4,16,36,64,144,576",
        "--budget",
        "infer_flops=1.2e12",
    )
    assert code == 0, err
    assert "visual tokens" in out
    assert "language model 0.5B" in out


def test_language_models_and_tokens_are_those_of_the_table_by_default(call):
    code, out, err = call("plan", *VLM, "--device", "h100", "--budget", "infer_flops=1.2e12", "--json")
    assert code == 0, err
    told = json.loads(out)["plan"]
    assert told["configurations"] == 4 * 7
    assert told["best"]["llm"] == "Qwen1.5-0.5B"
    assert told["best"]["latency_s"] > 0


def test_a_named_model_is_varied_within_time_and_memory(call):
    code, out, err = call(
        "plan", *VLM, "--vlm", "qwen2.5-vl-7b", "--llm", "qwen2.5-1.5b", "--llm", "qwen2.5-3b",
        "--img-size", "112,224,448", "--merge-factor", "1,2", "--device", "a100",
        "--budget", "latency_s=50ms", "--budget", "peak_memory_bytes=16GB",
    )  # fmt: skip
    assert code == 0, err
    assert "of 50 ms time to the first token" in out
    assert "of 14.9 GiB memory" in out
    assert "qwen2.5-vl-7b with" in out
    assert "and language model qwen2.5-" in out


def test_a_schedule_from_checkpoints(call, tmp_path):
    curves = [
        ComputeCurve(patch_size=16, a=1e6, b=0.4, c=0.3, d=1e15),
        ComputeCurve(patch_size=8, a=3e6, b=0.42, c=0.2, d=4e15),
    ]
    rows = [
        {"patch_size": curve.patch_size, "flops_train_total": flops, "test_loss": curve.error(flops)}
        for curve in curves
        for flops in np.geomspace(1e15, 1e19, 8)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "checkpoints.csv", index=False)
    code, out, err = call("plan", tmp_path / "checkpoints.csv", "--schedule", "--budget", "train_flops=1e18")
    assert code == 0, err
    assert "Train with patches of 16 px for" in out
    assert "then patches of 8 px" in out
    code, out, _ = call("plan", tmp_path / "checkpoints.csv", "--schedule", "--budget", "train_flops=1e18", "--json")
    assert [stage["patch_size"] for stage in json.loads(out)["stages"]] == [16, 8]
    assert call("plan", tmp_path / "checkpoints.csv", "--schedule", "--budget", "latency_s=1")[0] == 2
    code, out, _ = call(
        "plan", tmp_path / "checkpoints.csv", "--schedule", "--budget", "train_flops=1e18", "--report", "pages/s.html"
    )
    assert code == 0
    assert out.endswith("The page: pages/s.html\n")
    page = html.unescape((tmp_path / "pages" / "s.html").read_text(encoding="utf-8")).replace("\u00a0", " ")
    assert out.splitlines()[0] in page
    assert "--schedule --budget train_flops=1e18 --report pages/s.html" in page
    assert page.count("<tbody>") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to plan from"),
        (TABLE, "no budget is given"),
        ([*TABLE, "--budget", "infer_flops=-5"], "the limit is not a positive number"),
        ([*TABLE, "--budget", "infer_flops=1e9", "--budget", "infer_flops=1e10"], "infer_flops is given twice"),
        ([*TABLE, "--budget", "infer_flops=1e12", "--rank-by", "model"], "rank_by='model' is not priced"),
        ([*TABLE, "--budget", "infer_flops=1e12", "--img-size", "225", "--patch-size", "16"], "divides none of the"),
        ([*TABLE, "--budget", "infer_flops=1e12", "--form", "vlm"], "no column 'llm_params'"),
        ([*TABLE, "--budget", "train_gpu_hours"], "is not of the form name=value"),
        ([*TABLE, "--budget", "latency_s=fast"], "'fast' is not a number such as 200"),
        ([*TABLE, "--budget", "train_gpu_hours=3"], "it needs images_seen and a device"),
        ([*TABLE, "--budget", "infer_flops=1e12", "--report", "."], "--report .: this is a folder"),
        ([*TABLE, "--budget", "train_flops=1e18", "--schedule", "--report", "."], "--report .: this is a folder"),
        ([*TABLE, "--budget", "infer_flop=3"], "did you mean 'infer_flops'"),
        ([*TABLE, "--budget", "infer_flops=3"], "no configuration keeps the budgets; the nearest, adventurer_tiny"),
        ([*TABLE, "--budget", "infer_flops=1e12", "--model", "vit_bse"], "did you mean 'vit_base'"),
        ([*TABLE, "--budget", "latency_s=1", "--device", "tpu"], "device 'tpu' is not known"),
        ([*TABLE, "--budget", "infer_flops=1e12", "--images-seen", "many"], "--images-seen: 'many' is not a number"),
        (
            ["published:siglip2/imagenet", "--form", "relative-patch:C=0", "--budget", "infer_flops=1e12"],
            "no built-in model",
        ),
        ([*TABLE, "--budget", "infer_flops=nan"], "the limit is not a positive number"),
        ([*TABLE, "--budget", f"infer_flops={NINES}"], "the limit is not a positive number"),
        ([*TABLE, "--budget", "infer_flops=1e12", "--batch-size", "0"], "Invalid value for '--batch-size'"),
        ([*TABLE, "--budget", "infer_flops=1e12", "--batch-size", NINES], "Invalid value for '--batch-size'"),
        ([*TABLE, "--budget", "infer_flops=1e12", "--text-tokens", "-1"], "Invalid value for '--text-tokens'"),
        ([*TABLE, "--budget", "infer_flops=1e12", "--seed", "-1"], "seed=-1 is negative"),
        ([*TABLE, "--budget", "infer_flops=1e12", "--images-seen", "nan"], "nan is not a positive number"),
        ([*TABLE, "--budget", "infer_flops=1e12", "--images-seen", NINES], "inf is not a positive number"),
        ([*TABLE, "--budget", "infer_flops=1e12", "--images-seen", "1e300"], "1e+300 is not a positive number below"),
        ([*TABLE, "--budget", "infer_flops=1e12", "--patch-size", NINES], "is not a positive whole number of up to 18"),
        ([*TABLE, "--budget", "infer_flops=1e12", "--img-size", "nan"], "'nan' is not a positive whole number"),
        (
            [*TABLE, "--budget", "infer_flops=1e12", "--merge-factor", "2"],
            "--llm; leave out --merge-factor",
        ),
        (
            [*TABLE, "--budget", "infer_flops=1e12", "--visual-tokens", "2"],
            "--llm; leave out --visual-tokens",
        ),
        (
            [*TABLE, "--budget", "train_flops=1e18", "--schedule", "--model", "vit_base", "--device", "a100"],
            "--schedule follows from the checkpoints of the table alone; leave out --model and --device",
        ),
        (
            [*TABLE, "--budget", "train_flops=1e18", "--schedule", "--form", "patch", "--seed", "0"],
            "the table alone; leave out --form and --seed",
        ),
        ([*TABLE, "--budget", "infer_flops=1e12", "--fixed", "img_size=5"], "fixed img_size=5: img_size is chosen or"),
        ([*TABLE, "--budget", "infer_flops=1e12", "--fixed", "params_backbone=5"], "params_backbone is chosen or"),
        ([*TABLE, "--budget", "infer_flops=1e12", "--fixed", "low=5"], "columns that a plan writes itself: low"),
        ([*VLM, "--budget", "infer_flops=1e12", "--llm", "7B=7e9", "--llm", "7B=8e9"], "--llm 7B is given twice"),
        ([*TABLE, "--budget", "infer_flops=1e12", "--text-tokens", "50"], "--llm; leave out --text-tokens"),
        ([*VLM, "--budget", "infer_flops=1e12", "--img-size", "224"], "no image to choose: leave out img_sizes"),
        (
            [*PANEL_C, "--form", "patch", "--model", "vit_*", "--budget", "infer_flops=1e12"],
            "fitted to model Adventurer-Base, predicts the same for every model",
        ),
        ([*VLM, "--budget", "infer_flops=1e12", "--images-seen", "1e8"], "no training; leave out --images-seen"),
        (
            [*VLM, "--vlm", "qwen2.5-vl-7b", "--visual-tokens", "4", "--budget", "infer_flops=1e13"],
            "tokens of their own; leave out --visual-tokens",
        ),
        ([*VLM, "--budget", "infer_flops=1e12", "--llm", "7B=nan"], "llms: nan is not a positive number"),
        ([*VLM, "--vlm", "qwen2.5-vl-8b", "--img-size", "224", "--budget", "infer_flops=1e13"], "did you mean"),
        ([*VLM, "--vlm", "qwen2.5-vl-7b", "--budget", "infer_flops=1e13"], "no img_sizes"),
        ([*VLM, "--budget", "peak_memory_bytes=8GB"], "is not priced (it needs named models)"),
        ([*VLM, "--budget", "latency_s=8ms"], "is not priced (it needs a device)"),
        ([*VLM, "--allow-mixed", "--budget", "infer_flops=1e12", "--llm", "7B"], "--llm '7B' is not of the form"),
    ],
)
def test_mistakes_are_one_line(call, arguments, message):
    code, out, err = call("plan", *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert len(err) < 400 or not any(NINES in one for one in arguments)
    assert out == ""
