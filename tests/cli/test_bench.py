"""`patchscale bench`: rows of the grid, the crossing in words, Ctrl-C, and settings that are stated."""

import json

import pytest

from patchscale.measurements import crossover, step

QUICK = ["--img-size", "32", "--device", "cpu", "--warm-up", "0", "--repetitions", "2", "--num-threads", "1"]


def test_a_grid_is_one_row_each(call):
    code, out, said = call(
        "bench",
        "vit_test",
        "adventurer_test",
        "--patch-size",
        "16,8",
        "--batch-size",
        "1,2",
        *QUICK,
        "--output",
        "b.json",
    )
    assert code == 0, said
    lines = [line.split("\t") for line in out.splitlines()]
    assert lines[0][:6] == ["model", "img_size", "patch_size", "tokens", "batch", "status"]
    assert [line[:6] for line in lines[1:]] == [
        [model, "32", patch, tokens, batch, "ok"]
        for model in ("vit_test", "adventurer_test")
        for patch, tokens in (("16", "4"), ("8", "16"))
        for batch in ("1", "2")
    ]
    assert "[8/8] adventurer_test patch 8 at 32 px, batch 2" in said
    assert "CPU threads 1" in said
    assert "fp32; 0 warm-up and 2 timed steps; scan: chunked; memory: rise of resident memory" in said
    with open("b.json") as file:  # noqa: PTH123
        written = json.load(file)
    assert len(written["rows"]) == 8
    assert written["setting"]["num_threads"] == 1
    assert {"torch", "timm", "triton", "python"} <= written["setting"]["versions"].keys()


def test_json_is_in_plain_units(call):
    code, out, said = call("bench", "vit_test", "--infer", "--precision", "bf16", *QUICK, "--json")
    assert code == 0, said
    found = json.loads(out)
    (row,) = found["rows"]
    assert (row["train"], row["precision"], row["patch_size"]) == (False, "bf16", 16)
    assert found["setting"]["precision"] == "bf16"
    assert row["step_time_s"] > 0
    assert row["images_per_s"] == pytest.approx(1 / row["step_time_s"])


def test_what_does_not_fit_is_a_row_and_the_rest_goes_on(call):
    code, out, said = call("bench", "vit_test", "--batch-size", f"{2**45},1", *QUICK)
    assert code == 0, said
    assert [line.split("\t")[5] for line in out.splitlines()[1:]] == ["out_of_memory", "ok"]
    assert "out_of_memory: vit_test patch 16: " in said


def test_what_breaks_is_a_failure(call, monkeypatch):
    broken = {"model": "vit_test", "img_size": 32, "patch_size": 16, "tokens": 4, "batch_size": 1}
    broken |= {"status": "failed", "message": "its process died (SIGSEGV)"}
    monkeypatch.setattr(step, "measure_step", lambda config, **options: broken)
    code, out, said = call("bench", "vit_test", *QUICK)
    assert code == 1
    assert "failed" in out
    assert "failed: vit_test patch 16: its process died (SIGSEGV)" in said


def test_ctrl_c_prints_what_was_measured(call, monkeypatch):
    measure, left = step.measure_step, [None, KeyboardInterrupt]

    def interrupted(config, **options):
        if stop := left.pop(0):
            raise stop
        return measure(config, **options)

    monkeypatch.setattr(step, "measure_step", interrupted)
    code, out, said = call("bench", "vit_test", "--patch-size", "16,8,4", *QUICK)
    assert code == 130
    assert len(out.splitlines()) == 2
    assert "interrupted: 1 of 3 measured" in said


def test_the_crossing_is_searched_and_told(call):
    code, out, said = call(
        *("bench", "vit_test", "adventurer_test", "--crossover", "--max-tokens", "40", "--device", "cpu"),
        *("--warm-up", "0", "--repetitions", "3", "--num-threads", "1", "--output", "c.json"),
    )
    assert code == 0, said
    lines = out.splitlines()
    assert lines[0].split("\t") == ["tokens", "img_size", "vit_test, ms", "adventurer_test, ms", "ratio", "25-75 %"]
    # Three steps on a busy machine do not tell which model is faster: the answer must be that of the ratios.
    assert lines[1].split("\t")[0] == "16"
    assert "a training step of" in lines[-1]
    with open("c.json") as file:  # noqa: PTH123
        written = json.load(file)
    assert written["answer"] == lines[-1]
    second_faster = [trial["tokens"] for trial in written["trials"] if trial["ratio"] > 1]
    assert (written["first_second"] is None) == (not second_faster)
    assert written["first_second"] in [None, *second_faster]
    assert written["last_first"] in {None, 16, 25, 36} - set(second_faster)
    assert written["setting"]["max_tokens"] == 40


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (crossover.CannotTry("no kernel"), 1)])
def test_a_search_that_finds_nothing_is_no_success(error, code, call, monkeypatch):
    def compare(*_, **__):
        raise error

    monkeypatch.setattr(crossover, "compare_models", compare)
    ended, out, _ = call("bench", "--crossover", "--device", "cpu")
    assert ended == code
    assert "nothing was measured" in out
