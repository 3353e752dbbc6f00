"""The light half works without torch, and fast: every verb that needs no training, with torch and company blocked."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from patchscale.config import build_config
from patchscale.runs.record import RunDirectory

BLOCKER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "timm", "torchvision", "transformers"):
            raise ImportError(f"{name} is blocked for this test", name=name)
sys.meta_path.insert(0, Blocked())
"""

VERBS = (
    "quickstart",
    "train",
    "eval",
    "sweep",
    "convert",
    "cost",
    "vlm",
    "fit",
    "plan",
    "report",
    "runs",
    "published",
    "bench",
    "doctor",
)

STUDY = """
study: light
recipe: fashion-mnist
grid: {model: [vit_nano, adventurer_nano], patch_size: [14, 7, 4]}
"""


def run_blocked(code, *arguments, cwd):
    environment = {**os.environ, "MPLCONFIGDIR": str(cwd)}
    return subprocess.run(
        [sys.executable, "-c", BLOCKER + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=120,
        check=False,
    )


def patchscale(*arguments, cwd):
    """The command with torch blocked; returns its stdout, and insists on success and on torch's absence."""
    code = (
        "sys.argv[0] = 'patchscale'\n"
        "from patchscale.cli.app import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = run_blocked(code, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study file, an empty folder of runs, and one with the finished runs of two curves."""
    root = tmp_path_factory.mktemp("light")
    (root / "study.yaml").write_text(STUDY)
    (root / "empty").mkdir()
    for model in ("vit_nano", "adventurer_nano"):
        for patch_size in (28, 14, 7, 4, 2, 1):
            config = build_config({"model": {"name": model, "img_size": 28, "patch_size": patch_size}})
            run = RunDirectory.create(root / "runs", "curves", config)
            row = {
                "run_id": config.run_id,
                "task": "classification",
                "dataset": "scenes",
                "model": model,
                "architecture": model.partition("_")[0],
                "img_size": 28,
                "patch_size": patch_size,
                "tokens": (28 // patch_size) ** 2,
                "seed": 0,
                "params_backbone": 400_000,
                "flops_forward_per_image": 10_000_000,
                "flops_train_total": 10**12,
                "metric_name": "top1",
                "metric": 0.9 - 0.01 * patch_size,
                "test_loss": 0.3 + 0.02 * patch_size**0.8,
                "recipe": "custom",
                "eval_protocol": "whole scene",
                "pos_embed": "learned",
                "wall_time_s": 10.0,
                "device": "cpu",
            }
            run.write_json("result.json", row)
            run.write_status("done")
    return root


def test_the_blocker_blocks(tmp_path):
    done = run_blocked("import torch", cwd=tmp_path)
    assert "torch is blocked for this test" in done.stderr


def test_every_verb_is_listed_here(tmp_path):
    from patchscale.cli.app import app

    assert tuple(command.name for command in app.registered_commands) == VERBS


def test_import_and_help(tmp_path):
    assert run_blocked("import patchscale; print(patchscale.__version__)", cwd=tmp_path).returncode == 0
    assert "quickstart" in patchscale("--help", cwd=tmp_path)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb, tmp_path):
    assert f"patchscale {verb}" in patchscale(verb, "--help", cwd=tmp_path)


def test_doctor_says_what_is_missing(tmp_path):
    assert "torch import\tfails: torch is blocked for this test\tinstall it again" in patchscale("doctor", cwd=tmp_path)


def test_published(folder):
    assert "imagenet" in patchscale("published", cwd=folder).lower()


def test_fit_a_published_table(folder):
    assert "DeiT-Base" in patchscale("fit", "published:patchification/test-loss", cwd=folder)


def test_plan_from_a_published_table(folder):
    table = ("published:patchification/imagenet", "--where", "architecture=adventurer")
    assert "What holds it back" in patchscale("plan", *table, "--budget", "infer_flops=1e11", cwd=folder)


def test_plan_from_runs(folder):
    curve = ("runs", "--form", "patch", "--target", "loss", "--where", "model=vit_nano")
    told = json.loads(patchscale("plan", *curve, "--budget", "infer_flops=1e9", "--json", cwd=folder))
    assert told["plan"]["best"]["model"] == "vit_nano"
    assert told["plan"]["best"]["infer_flops"] <= 1e9
    assert told["plan"]["axes"] == ["patch_size"]


def test_runs(folder):
    assert patchscale("runs", "empty", cwd=folder).count("\n") == 1
    assert len(json.loads(patchscale("runs", "runs", "--json", cwd=folder))) == 12


def test_fit_runs(folder):
    assert patchscale("fit", "runs", "--json", cwd=folder).strip()


def test_report(folder):
    patchscale("report", "runs", cwd=folder)
    assert list(folder.rglob("*.html"))


def test_dry_run_of_a_sweep(folder):
    plan = json.loads(patchscale("sweep", "study.yaml", "--dry-run", "--json", cwd=folder))
    assert len(plan["runs"]) == 6
    assert plan["totals"]["flops_train_total"] > 0


def test_dry_run_counts_a_folder_of_images(tmp_path):
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "photos" / name / f"{number}.png")
    (tmp_path / "study.yaml").write_text(
        "study: own\nbase: {data: {name: image_folder, root: photos}, model: {img_size: 32}}\n"
        "grid: {patch_size: [8, 4]}\n"
    )
    planned = json.loads(patchscale("sweep", "study.yaml", "--dry-run", "--json", cwd=tmp_path))
    assert all(run["flops_train_total"] > 0 for run in planned["runs"])


def test_costs_need_neither_torch_nor_timm_nor_transformers(tmp_path):
    """Every built-in model, task and head, and every vision-language model."""
    code = """
import patchscale as ps
from patchscale.costs.vision_language import MODELS
from patchscale.shapes import SHAPES

for name in SHAPES:
    assert ps.estimate_cost(name, patch_size=8, img_size=64, device="h100").time.step_time_s > 0
for task, head in (("segmentation", "upernet"), ("detection", "cascade_mask_rcnn")):
    cost = ps.estimate_cost("vit_tiny", patch_size=8, img_size=64, task=task, head=head, num_classes=91, train=False)
    assert cost.memory.peak_bytes > cost.memory.weights == 4 * cost.params_total
for name in MODELS:
    assert ps.estimate_vision_language_cost(name, img_size=(600, 800)).flops_prefill > 0
assert ps.largest_image("qwen2.5-vl-7b", memory_bytes=17 * 2**30).binds == ("memory_bytes",)
assert not {"torch", "timm", "transformers"} & set(sys.modules)
"""
    done = run_blocked(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_cost(tmp_path):
    written = json.loads(
        patchscale(
            "cost", "vit_tiny", "adventurer_tiny", "--patch-size", "16,1", "--device", "h100", "--json", cwd=tmp_path
        )
    )
    assert [row["tokens"] for row in written["costs"]] == [196, 50_176, 196, 50_176]
    assert all(row["time"]["step_time_s"] > 0 for row in written["costs"])
    assert "h100" in patchscale("cost", "--list-devices", cwd=tmp_path)


def test_cost_of_a_timm_name_says_what_to_install(tmp_path):
    done = run_blocked("from patchscale.cli.app import main; main()", "cost", "xcit_nano_12_p16_224", cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'patchscale[train]', or choose a built-in model" in done.stderr.splitlines()[-1]


def test_vlm(tmp_path):
    arguments = ("vlm", "llava-1.5-7b", "qwen2.5-vl-7b", "--device", "h100", "--json")
    written = json.loads(patchscale(*arguments, "--img-size", "448x448", cwd=tmp_path))
    assert [row["visual_tokens"] for row in written["costs"]] == [576, 256]
    largest = json.loads(patchscale(*arguments, "--max-memory-gib", 24, cwd=tmp_path))
    assert all(row["peak_memory_bytes"] <= 24 * 2**30 for row in largest["largest"])


def test_training_without_torch_says_what_to_install(folder):
    for arguments in (
        ["train", "--model", "vit_nano"],
        ["eval", "anything"],
        ["convert", "a.pth", "-o", "b.safetensors"],
    ):
        done = run_blocked("from patchscale.cli.app import main; main()", *arguments, cwd=folder)
        assert done.returncode == 2
        assert "pip install 'patchscale[train]'" in done.stderr


def test_recipes_are_listed(folder):
    assert "fashion-mnist" in patchscale("train", "--list-recipes", cwd=folder)


def test_a_sweep_without_torch_says_what_to_install(folder):
    done = run_blocked("from patchscale.cli.app import main; main()", "sweep", "study.yaml", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: training needs torch, torchvision, timm: pip install 'patchscale[train]'"
    )


@pytest.mark.parametrize(
    "arguments",
    [["-c", "import patchscale"], ["-c", "from patchscale import RunConfig"], ["-m", "patchscale", "--help"]],
    ids=["import", "config", "help"],
)
def test_it_starts_within_a_second(arguments, tmp_path):
    """Processor time, the best of five, so that a busy machine does not fail it."""

    def seconds():
        before = os.times()
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=tmp_path)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        return min(used, time.perf_counter() - started)

    assert min(seconds() for _ in range(5)) < 1.0


def test_the_package_is_the_one_under_test():
    import patchscale

    assert Path(patchscale.__file__).is_relative_to(Path(__file__).parents[1])
