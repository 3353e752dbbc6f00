"""Finished runs are checked against their checksums, kept in one file, and failed ones are removed."""

import tarfile

import pytest
from tests.runs.test_store import finish, make_run

from patchscale.errors import UserError
from patchscale.runs.archive import archive, delete
from patchscale.runs.checksums import problems


def finished(root, **model):
    run = make_run(root, **model)
    run.checkpoint_dir.mkdir()
    (run.checkpoint_dir / "model.safetensors").write_bytes(b"weights")
    finish(run)
    return run


def test_a_whole_run_has_no_problems_and_a_changed_one_names_its_files(tmp_path):
    run = finished(tmp_path, patch_size=8)
    assert problems(run.path) == []
    (run.checkpoint_dir / "model.safetensors").write_bytes(b"weightz")
    (run.path / "result.json").unlink()
    assert problems(run.path) == [
        "result.json is missing",
        "checkpoint/model.safetensors has changed since the run was done",
    ]
    (run.path / "checksums.json").unlink()
    assert problems(run.path) is None


def test_an_archive_holds_every_file_but_claims(tmp_path):
    runs = [finished(tmp_path, patch_size=size) for size in (8, 16)]
    with runs[0].lock():
        pass
    size = archive([run.path for run in runs], tmp_path / "kept.tar.gz")
    assert size == (tmp_path / "kept.tar.gz").stat().st_size
    with tarfile.open(tmp_path / "kept.tar.gz") as tar:
        tar.extractall(tmp_path / "out", filter="data")
    for run in runs:
        copy = tmp_path / "out" / "study" / run.path.name
        assert problems(copy) == []
        assert not (copy / "claims").exists()


def test_what_cannot_be_archived_is_refused(tmp_path):
    run = finished(tmp_path, patch_size=8)
    with pytest.raises(UserError, match=r"end the name in \.tar"):
        archive([run.path], tmp_path / "kept.zip")
    with run.lock(), pytest.raises(UserError, match="1 runs are under way"):
        archive([run.path], tmp_path / "kept.tar")
    archive([run.path], tmp_path / "kept.tar")
    with pytest.raises(UserError, match="exists; choose another name"):
        archive([run.path], tmp_path / "kept.tar")
    with pytest.raises(UserError, match="which it is to hold; choose a place outside"):
        archive([run.path], run.path / "kept.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.tar", "study"]


def test_a_run_that_somebody_holds_is_not_deleted(tmp_path):
    run = make_run(tmp_path, patch_size=8)
    with run.lock():
        assert not delete(run.path)
    assert run.path.is_dir()
    assert delete(run.path)
    assert list(run.path.parent.iterdir()) == []


def test_a_study_about_claims_is_archived_whole_and_names_do_not_clash(tmp_path):
    run = finished(tmp_path, patch_size=8)
    moved = tmp_path / "claims-study" / run.path.name
    moved.parent.mkdir()
    run.path.rename(moved)
    archive([moved], tmp_path / "kept.tar")
    with tarfile.open(tmp_path / "kept.tar") as tar:
        assert f"claims-study/{moved.name}/result.json" in tar.getnames()
    with pytest.raises(UserError, match="is there twice, in two folders of this name"):
        archive([moved, moved], tmp_path / "again.tar")


def test_what_a_kill_has_left_goes_with_the_next_run_that_is_deleted(tmp_path):
    killed, other = (make_run(tmp_path, patch_size=size) for size in (8, 16))
    killed.path.rename(killed.path.with_name(f".{killed.path.name}.deleted-0123"))
    stays = other.path.parent / ".another.deleted-4567"
    stays.touch()  # no folder, so that it cannot be removed as one
    assert delete(other.path)
    assert list(other.path.parent.iterdir()) == [stays]
