"""Options of `patchscale sweep` that would have no effect."""

from pathlib import Path

import pytest

STUDY = "study: tiny\nbase: {model: {name: vit_test, img_size: 16, patch_size: 8}, data: {name: scenes}}\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--dry-run", "--budget", "3", "--ray-address", "x", "--workers", "4", "--early-fit"],
            "--dry-run starts nothing; leave out --workers and --budget and --early-fit and --ray-address",
        ),
        (["--dry-run", "--executor", "local"], "--dry-run starts nothing; leave out --executor"),
        (["--ray-address", "auto"], "only --executor ray has an address; leave out --ray-address"),
        (
            ["--executor", "slurm", "--runs-per-gpu", "2"],
            "Slurm gives every run GPUs of its own; leave out --runs-per-gpu",
        ),
    ],
)
def test_options_without_effect_are_refused(call, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(STUDY)
    assert call("sweep", "study.yaml", *options) == (2, "", f"error: {words}\n")
    assert sorted(path.name for path in Path().iterdir()) == ["study.yaml"]
