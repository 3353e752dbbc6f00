"""Many runs on this machine: what starting them costs, and that two sweeps never carry out one of them twice."""

import os
import subprocess
import sys
import time

import pytest

from patchscale.runs.record import RunDirectory
from patchscale.sweeps.runner import run_study
from patchscale.sweeps.study import build_study, load_study

MANY = int(os.environ.get("PATCHSCALE_MANY_RUNS", "1000"))
REPEATS = 20
OVERHEAD_S = 0.060

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

BASE = {
    "model": {"name": "vit_test", "img_size": 16, "patch_size": 16},
    "data": {"name": "scenes", "train_images": 8, "val_images": 8, "test_images": 8},
    "training": {"steps": 1, "batch_size": 4, "num_validations": 1},
    "execution": {"device": "cpu", "num_threads": 1},
}


def test_starting_a_run_takes_less_than_60_ms(tmp_path):
    """All the time of a sweep in which no run of its one worker holds its claim: plan, start, settle, table.

    What a run does itself is left out, and the import of torch, once in a sweep. On cores that nobody else uses.
    """
    warm = build_study({"study": "warm", "base": BASE, "grid": {"seed": [0]}})
    run_study(warm, tmp_path, workers=1)  # the server that forks runs has imported torch by now
    study = build_study({"study": "many", "base": BASE, "grid": {"seed": list(range(MANY))}})
    started = time.perf_counter()
    table = run_study(study, tmp_path, workers=1)
    wall_s = time.perf_counter() - started
    assert (table["status"] == "done").all()
    own_s = [held_s(tmp_path / "many" / config.run_id) for config in study.configs]
    overhead_s = (wall_s - sum(own_s)) / MANY
    print(f"{MANY} runs in {wall_s:.1f} s, {1000 * overhead_s:.1f} ms each beside the run itself")
    assert overhead_s < OVERHEAD_S


def held_s(folder):
    """How long the run's process held its claim."""
    claims = folder / "claims"
    return (claims / "000001.released").stat().st_mtime - (claims / "000001.json").stat().st_mtime


STUDY = """
study: contested
base:
  model: {name: vit_test, img_size: 16}
  data: {name: scenes, train_images: 32, val_images: 8, test_images: 8}
  training: {steps: 3, batch_size: 4, num_validations: 1}
  execution: {device: cpu, num_threads: 1}
grid: {patch_size: [16, 8, 4], seed: [0, 1]}
"""

COMPETITOR = """
import sys, time
from pathlib import Path
from patchscale.sweeps.runner import run_study
from patchscale.sweeps.study import load_study

root, own, repeats = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
study = load_study(root / "study.yaml")
for number in range(repeats):
    (root / f"ready-{number}-{own}").touch()
    while len(list(root.glob(f"ready-{number}-*"))) < 2:
        time.sleep(0.001)
    table = run_study(study, root / str(number), workers=1, wait=True)
    assert (table["status"] == "done").all(), table
"""


def test_two_competing_sweeps_on_one_study_no_duplicate_in_20_repeats(tmp_path):
    """Twenty times, two sweeps begin one study at the same moment."""
    (tmp_path / "study.yaml").write_text(STUDY)
    sweeps = [
        subprocess.Popen([sys.executable, "-c", COMPETITOR, str(tmp_path), name, str(REPEATS)]) for name in ("a", "b")
    ]
    assert [sweep.wait(3000) for sweep in sweeps] == [0, 0]
    for number in range(REPEATS):
        runs = [
            RunDirectory(tmp_path / str(number) / "contested" / config.run_id)
            for config in load_study(tmp_path / "study.yaml").configs
        ]
        for run in runs:
            assert len(run.read_json("environment.json")["attempts"]) == 1, "carried out twice"
            assert run.log_path.read_text().count("starting at step 0") == 1
