"""`patchscale bench`: rows of the grid, the crossing in words, Ctrl-C, and settings that are stated."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.pausing import start_in_foreground

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


def test_a_crash_loses_no_row(call, monkeypatch):
    measure, done = step.measure_step, []

    def crashing(config, **options):
        if done:
            raise ZeroDivisionError
        done.append(measure(config, **options))
        return done[0]

    monkeypatch.setattr(step, "measure_step", crashing)
    with pytest.raises(ZeroDivisionError):
        call("bench", "vit_test", "--patch-size", "16,8", *QUICK, "--output", "b.json")
    assert json.loads(Path("b.json").read_text())["rows"] == done


def test_a_real_ctrl_c_leaves_the_finished_rows(tmp_path):
    batches = ",".join(str(2**n) for n in range(20))  # more than anybody waits for
    command = [*("bench", "vit_test", "--batch-size", batches), *QUICK, "--output", "b.json"]
    process = start_in_foreground(
        [sys.executable, "-m", "patchscale", *command], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        end = time.monotonic() + 120
        while not (tmp_path / "b.json").exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        rows = json.loads((tmp_path / "b.json").read_text())["rows"]  # whole at any time
        process.send_signal(signal.SIGINT)
        out, said = (text.decode() for text in process.communicate(timeout=60))
    finally:
        process.kill()
    assert process.returncode == 130, said
    kept = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert kept[: len(rows)] == rows
    assert {row["status"] for row in kept} == {"ok"}
    assert said.splitlines()[-1] == f"interrupted: {len(kept)} of 20 measured; kept in b.json"
    assert len(out.splitlines()) == 1 + len(kept)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it can run")
def test_a_scan_is_refused_only_where_a_model_has_one(call):
    given = ["--ssd-backend", "triton", *QUICK]
    assert call("bench", "vit_test", *given)[0] == 0
    code, _, said = call("bench", "vit_test", "adventurer_test", *given)
    assert code == 2
    assert "--ssd-backend triton cannot run here: the Triton kernels are for CUDA devices" in said


@pytest.mark.parametrize("given", ["32x", "x32", "32x32x32", "3.2", "-32"])
def test_image_sizes_are_read_as_everywhere(given, call):
    code, _, said = call("bench", "vit_test", f"--img-size={given}", "--device", "cpu")
    assert code == 2
    assert said == f"error: --img-size {given!r}: give pixels, one side (224) or height x width (128x256)\n"


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


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [
        (KeyboardInterrupt(), 130, "interrupted: 2 sizes measured; kept in c.json"),
        (crossover.StepFailed("its process died (SIGSEGV)"), 1, "failed: 64 tokens: its process died (SIGSEGV)"),
        (crossover.CannotTry("out of memory"), 0, None),
    ],
)
def test_a_search_that_is_cut_off_keeps_its_sizes(error, code, last, call, monkeypatch):
    def compare(first, second, **_):
        if first.img_size >= 8:
            raise error
        assert first.img_size == 4 or len(json.loads(Path("c.json").read_text())["trials"]) == 1
        times = {"first_s": 1.0, "second_s": 2.0, "ratio": 0.5, "ratio_25": 0.5, "ratio_75": 0.5, "spent_s": 0.0}
        return crossover.Trial(tokens=first.img_size**2, img_size=first.img_size, patch_size=1, **times)

    monkeypatch.setattr(crossover, "compare_models", compare)
    ended, out, said = call("bench", "--crossover", "--device", "cpu", "--output", "c.json")
    assert ended == code, said
    written = json.loads(Path("c.json").read_text())
    assert [trial["tokens"] for trial in written["trials"]] == [16, 36]
    assert written["answer"] == out.splitlines()[-1]
    assert written["failed"] == (code == 1)
    assert last is None or said.splitlines()[-1] == last
