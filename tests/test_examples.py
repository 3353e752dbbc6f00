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


@pytest.mark.parametrize("guide", sorted((ROOT / "examples").glob("*.md")), ids=lambda path: path.stem)
def test_a_guide_prints_what_it_shows(guide, tmp_path):
    """Words exactly; numbers to 2 %, because the last digit of an interval may differ between machines."""
    steps = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", guide.read_text(), flags=re.DOTALL)
    assert len(steps) == guide.read_text().count("```python") > 0
    mark = "--- next block ---"
    code = f"\nprint({mark!r})\n".join(code for code, _ in steps)
    said = run(sys.executable, "-c", code, cwd=tmp_path).split(mark + "\n")
    number = r"-?\d+\.?\d*(?:e[+-]?\d+)?"
    for given, (_, shown) in zip(said, steps, strict=True):
        assert re.sub(number, "#", given).split() == re.sub(number, "#", shown).split()
        values = [[float(text) for text in re.findall(number, words)] for words in (given, shown)]
        assert values[0] == pytest.approx(values[1], rel=0.02, abs=2e-3)


def test_the_python_in_the_readme_runs(tmp_path):
    (code,) = blocks("python")
    assert "test loss" in run(sys.executable, "-c", code, cwd=tmp_path)
