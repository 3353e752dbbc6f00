import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from patchscale.config import RunConfig
from patchscale.recipes import RECIPES
from patchscale.runs.record import RunDirectory

TINY = shlex.split(
    "train --model vit_test --patch-size 8 --img-size 16 --steps 4 data.train_images=40 data.val_images=8 "
    "data.test_images=8 training.batch_size=8 execution.device=cpu"
)


def the_run():
    (path,) = Path("runs/default").iterdir()
    return RunDirectory(path)


def test_train_reports_one_line_and_does_not_run_twice(call):
    code, out, err = call(*TINY)
    assert code == 0
    run = the_run()
    assert re.fullmatch(
        rf"vit_test patch 8 at 16 px, seed 0: top1 [\d.]+%, test loss [\d.]+ "
        rf"after 0\.8 epochs in \d+ s -> {run.path}\n",
        out,
    )
    assert err.splitlines()[0].startswith("vit_test, patch 8 at 16 px: 4 tokens, ")
    assert "step 4 of 4: val top1" in err

    code, out, err = call(*TINY, "--json")
    assert code == 0
    assert "finished before, nothing to run" in err
    assert json.loads(out) == {**run.result(), "path": str(run.path)}


def test_flags_win_over_the_file_and_overrides_over_both(call):
    values = {"seed": 1, "training": {"epochs": 3, "batch_size": 8}, "model": {"name": "vit_test", "img_size": 16}}
    Path("mine.yaml").write_text(yaml.safe_dump(values))
    arguments = ["--patch-size", "8", "--seed", "2", "--steps", "2", "--study", "a", "--runs-root", "r"]
    data = ["data.train_images=20", "data.val_images=4", "data.test_images=4", "execution.device=cpu"]
    code, *_ = call("train", "--config", "mine.yaml", *arguments, "training.steps=1", "seed=3", *data)
    assert code == 0
    (path,) = Path("r/a").iterdir()
    config = RunDirectory(path).config()
    assert (config.seed, config.training.steps, config.training.epochs) == (3, 1, None)
    assert (config.training.batch_size, config.model.patch_size) == (8, 8)


def test_a_failed_run_exits_with_1_and_names_the_kind(call):
    code, out, err = call(*TINY, "training.learning_rate=1e30", "training.steps=40")
    assert (code, out) == (1, "")
    assert re.search(r"^error: run failed \(non_finite\): non-finite", err, re.MULTILINE)
    assert the_run().status()["kind"] == "non_finite"


def test_a_run_directory_keeps_its_settings(call):
    call(*TINY)
    run = the_run()
    code, _, err = call("train", "--run-dir", str(run.path), "--seed", "5")
    assert code == 2
    assert "seed=5 would make it another run" in err

    # How it is carried out may change, until it is finished.
    for num_workers in (1, 2):
        if num_workers == 1:
            (run.path / "result.json").unlink()
        assert call("train", "--run-dir", str(run.path), f"execution.num_workers={num_workers}")[0] == 0
        assert run.config().execution.num_workers == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "nothing to train: give --config, --recipe"),
        (["train", "--recipe", "fashion-mnist", "--run-dir", "x"], "give one of --config, --recipe and --run-dir"),
        (["train", "--epochs", "1", "--steps", "2", "--model", "vit_test"], "--epochs 1 and --steps 2: give one"),
        (["train", "--img-size", "16by16"], "--img-size '16by16': give pixels"),
        (["train", "--model", "vit_tset"], "vit_tset"),
        (["train", "--model", "vit_test", "execution.device=mps"], "execution.device=mps: no such device here"),
    ],
)
def test_mistakes_are_refused_before_anything_is_made(call, arguments, words):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert not Path("runs").exists()


def test_recipes_are_listed(call):
    code, out, _ = call("train", "--list-recipes")
    assert code == 0
    assert [line.partition("\t")[0] for line in out.splitlines()[1:]] == list(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete_and_documented(name):
    config = RECIPES[name]()
    assert isinstance(config, RunConfig)
    assert config.recipe == name
    text = RECIPES[name].__doc__ or ""
    for part in (f"Command: patchscale train --recipe {name}", "Expected: ", "Cost: "):
        assert part in text


def test_a_stopped_command_exits_with_143_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-m", "patchscale"]
    steps = ["training.steps=100000", "training.num_validations=1", "execution.log_every_steps=1"]
    process = subprocess.Popen(
        [*command, *TINY, *steps], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not any('"step": 2' in path.read_text() for path in tmp_path.glob("runs/default/*/metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "")
    last = err.splitlines()[-1]
    assert re.match(r"stopped at step \d+ of 100000, saved; go on with: patchscale train --run-dir runs/default/", last)

    # The command it names goes on, here until it is killed for good.
    again = shlex.split(last.partition("go on with: ")[2])
    process = subprocess.Popen([*command, *again[1:]], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    assert any(re.match(r"resumed at step [1-9]\d* of 100000", line) for line in lines)
    process.kill()
    process.communicate()
