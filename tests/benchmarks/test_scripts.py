"""Every benchmark script runs with small settings and writes what it says; the numbers need a quiet machine."""

import importlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from patchscale.laws.forms import LAWS

ROOT = Path(__file__).parents[2]
STATED = {"benchmark", "date", "device_name", "num_threads", "versions", "git_commit", "warm_up", "repetitions"}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a script in this process: (the JSON it wrote, what it printed)."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def run_script(name, *arguments):
        output = tmp_path / f"{name}.json"
        script = str(ROOT / "benchmarks" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments), "--threads", "1", "--output", str(output)])
        importlib.import_module(name).main()
        written = json.loads(output.read_text())
        assert written["setting"].keys() >= STATED
        assert written["setting"]["benchmark"] == name
        return written, capsys.readouterr().out

    return run_script


def test_mixer_cpu(run):
    written, said = run("mixer_cpu", "--tokens", 130, "--embed-dim", 32, "--warm-up", 0, "--repetitions", 2)
    assert {"ours", "products", "ours_longer"} <= written["time_s"].keys()
    assert written["time_ratio"]["ours / products"]["median"] > 0  # how much above 1 takes a quiet machine
    assert written["peak_memory_bytes"]["ours_longer"] > 0
    assert written["setting"]["chunk"] == 65
    peer_is_here = find_spec("transformers") is not None
    assert ("transformers / ours" in written["time_ratio"]) == peer_is_here
    assert ("left out" in said) != peer_is_here


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is missing; `make bench` installs it")
def test_our_mixer_agrees_with_transformers(run):
    written, said = run("mixer_cpu", "--tokens", 130, "--embed-dim", 64, "--warm-up", 0, "--repetitions", 2)
    assert "same weights, same output and gradients" in said
    assert max(written["agreement"]["relative_errors"].values()) < 1e-4


def test_vit_forward(run):
    written, said = run("vit_forward", "--batch-size", 1, "--warm-up", 0, "--repetitions", 2)
    assert "same logits with the same weights" in said
    assert written["target_met"] == (abs(written["time_ratio"]["ours / timm"]["median"] - 1) <= 0.03)


def test_pixel_step(run):
    written, said = run("pixel_step", "--model", "adventurer_test", "--img-size", 8)
    assert [(row["status"], row["checkpointing"], row["tokens"]) for row in written["rows"]] == [
        ("ok", False, 64),
        ("ok", True, 64),
    ]
    assert "without checkpointing: 64 tokens" in said


def test_detection_step(run):
    heads = ("linear", "mask_rcnn_nano")
    written, said = run(
        *("detection_step", "--model", "vit_test", "--heads", *heads, "--warm-up", 0, "--repetitions", 2)
    )
    assert [row["head"] for row in written["rows"]] == list(heads)
    assert written["target_met"] == (written["rows"][1]["time_s"]["median"] < 0.3)
    assert "vit_test patch 16, mask_rcnn_nano" in said


def test_attention_vs_scan(run):
    written, _ = run(
        *("attention_vs_scan", "--models", "vit_test", "adventurer_test", "--img-size", 16, "--patch-sizes", 8, 4),
        *("--batch-size", 1, "--warm-up", 0, "--repetitions", 2),
    )
    assert [row["tokens"] for row in written["rows"]] == [4, 16]
    assert all(row["ratio"]["25"] <= row["ratio"]["median"] <= row["ratio"]["75"] for row in written["rows"])


def test_laws(run):
    written, said = run("laws", "--draws", 40, "--durations", 1, "--warm-up", 0, "--repetitions", 1)
    lines = {line["name"]: line for line in written["lines"]}
    exact = [line for name, line in lines.items() if not name.endswith("_s")]  # seconds need a quiet machine
    assert all(line["met"] for line in exact), said
    assert len([name for name in lines if name.startswith("recovery")]) >= len(LAWS)
    assert lines["founding_a"]["target"] == [1.45, 1.77]


def test_coverage_goes_on_where_it_was_ended(run, tmp_path):
    small = ("--designs", "patch-5-noise-0.01", "vlm-28", "--draws", 40, "--partial", tmp_path / "partial")
    run("coverage", "--simulations", 2, "--processes", 1, *small)
    path = tmp_path / "partial" / "vlm-28.jsonl"
    before = path.read_text()
    written, said = run("coverage", "--simulations", 12, "--processes", 2, *small)
    assert path.read_text().startswith(before)
    rows = pd.DataFrame(written["rows"])
    assert (rows["simulations"] == 12).all()
    assert set(rows.query("form == 'vlm'")["quantity"]) == {"D", "A", "alpha", "beta", "inside", "outside", "decision"}
    assert rows["coverage"].mean() > 0.8
    assert "patch-5-noise-0.01" in said


def test_cost_accuracy_in_small(run):
    written, said = run("cost_accuracy", "--tiny", "--repetitions", 1)
    tables, targets = written["tables"], written["targets"]
    assert tables.keys() == {"counts", "timm", "table6_hours", "table6_memory", "memory", "time"}
    for name in (
        "counts_forward",
        "counts_train",
        "timm",
        "table6_hours",
        "table6_memory",
    ):  # they need no quiet machine
        assert targets[name]["met"], said
        assert 0 <= targets[name]["value"] <= targets[name]["target"]
    assert len(tables["table6_hours"]) == 10
    assert targets["table6_hours"]["value"] == max(abs(row["ratio"] - 1) for row in tables["table6_hours"])
    assert [row["status"] for row in tables["memory"] + tables["time"]] == ["ok"] * 4
    assert all(row["measured_bytes"] > 2**20 for row in tables["memory"])
    assert [text.partition(" ")[0] for text in targets["timm"]["exceptions"]] == ["xcit_nano_12_p16_224"]
    assert written["profile"]["measurements"]


def test_cost_accuracy_leaves_out_what_it_is_told_to(run):
    written, said = run("cost_accuracy", "--tiny", "--skip", "timm", "memory", "time", "table6")
    assert written["tables"].keys() == {"counts"}
    assert written["targets"].keys() == {"counts_forward", "counts_train"}
    assert "table6" not in said


def test_a_wrong_count_misses_its_aim(run, monkeypatch):
    from patchscale.costs import counts

    right = counts.backbone_macs
    monkeypatch.setattr(
        counts, "backbone_macs", lambda *sizes, **options: {p: 2 * n for p, n in right(*sizes, **options).items()}
    )
    written, said = run("cost_accuracy", "--tiny", "--skip", "timm", "memory", "time", "table6")
    assert not written["targets"]["counts_forward"]["met"]
    assert "NOT MET" in said


@pytest.mark.parametrize("part", ["correctness", "speed", "peers"])
def test_gpu_scan_in_small_on_a_cpu(part, run):
    written, _ = run("gpu_scan", "--tiny", "--device", "cpu", "--part", part, "--warm-up", 0, "--repetitions", 2)
    rows = written["rows"]
    assert written["setting"]["ssd_backend"] == "chunked"
    assert written["passed"]
    if part == "correctness":
        assert len(rows) == 8
        assert all(row["passed"] and row["largest"] <= row.get("limit", 1e-2) for row in rows)
        assert all(set(row["errors"]) >= {"y", "dx", "ddt", "dB", "dC"} for row in rows if "errors" in row)
    elif part == "speed":
        assert all(row["seconds"]["median"] > 0 for row in rows)
    else:
        unavailable = {row.get("scan", row.get("mixer")): row["unavailable"] for row in rows if "unavailable" in row}
        assert all("Error" in reason for reason in unavailable.values())
        assert any(row.get("mixer") == "ours" and "seconds" in row for row in rows)


def test_a_wrong_scan_fails_the_gpu_check(run, monkeypatch):
    from patchscale.models.ssd.backends import SSD_BACKENDS

    right = SSD_BACKENDS["chunked"]

    def wrong(x, dt, A, B, C, D, **options):
        y, state = right(x, dt, A, B, C, D, **options)
        return (1.05 * y).to(y.dtype), state

    monkeypatch.setitem(SSD_BACKENDS, "chunked", wrong)
    with pytest.raises(SystemExit, match="checks failed"):
        run("gpu_scan", "--tiny", "--device", "cpu", "--part", "correctness")


def test_gpu_models_in_small_on_a_cpu(run):
    written, said = run("gpu_models", "--tiny", "--device", "cpu", "--warm-up", 0, "--repetitions", 1)
    statuses = [row["status"] for row in written["rows"]]
    assert statuses == ["ok", "ok", *["out_of_memory"] * 4]  # the batch is halved three times
    assert "vit_test" in said


@pytest.mark.slow
def test_gpu_sh_in_small_on_a_cpu(tmp_path):
    environment = {
        "PATH": "/usr/bin:/bin",
        "TINY": "1",
        "DEVICE": "cpu",
        "OUT": str(tmp_path),
        "PYTHON": sys.executable,
    }
    # Without a GPU the marked tests fail, which decides the exit code.
    done = subprocess.run(
        ["sh", ROOT / "benchmarks/gpu.sh"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "failed: tests", done.stdout
    assert len(list(tmp_path.glob("gpu_*_cpu_*.json"))) == 6
