"""What the documentation shows does run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run(*command: str, cwd: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("study", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_study_can_be_planned(study, tmp_path):
    planned = json.loads(
        run(sys.executable, "-m", "patchscale", "sweep", str(study), "--dry-run", "--json", cwd=tmp_path)
    )
    assert len(planned["runs"]) >= 6


def test_the_study_in_the_readme_can_be_planned(tmp_path):
    (study,) = blocks("yaml")
    (tmp_path / "study.yaml").write_text(study)
    planned = json.loads(
        run(sys.executable, "-m", "patchscale", "sweep", "study.yaml", "--dry-run", "--json", cwd=tmp_path)
    )
    assert len(planned["runs"]) == 16


def test_the_python_in_the_readme_runs(tmp_path):
    (code,) = blocks("python")
    assert "test loss" in run(sys.executable, "-c", code, cwd=tmp_path)
