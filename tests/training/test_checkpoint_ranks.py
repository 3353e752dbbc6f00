"""Checkpoints of several processes: written together, read by any other number of them."""

import json
from pathlib import Path

import pytest
import torch
from tests.training.conftest import start_process

from patchscale.training.checkpoint import Checkpoints


@pytest.fixture
def on_ranks(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)  # where new processes find what they are to run
    import checkpoint_on_ranks

    def run(world, *jobs):
        (tmp_path / "rendezvous").unlink(missing_ok=True)
        arguments = (world, str(tmp_path), list(jobs))
        processes = [start_process(checkpoint_on_ranks.on_ranks, rank, *arguments) for rank in range(world)]
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * world

    return run


def alone(tmp_path, name):
    """The same job without any process group."""
    import checkpoint_on_ranks

    getattr(checkpoint_on_ranks, name)(tmp_path, "plain")


@pytest.mark.parametrize("parallel", ["plain", "fsdp"])
def test_of_two_processes_in_one_two_and_four(tmp_path, on_ranks, parallel):
    on_ranks(2, f"save:{parallel}", "load:plain", "load:fsdp")
    path = tmp_path / "checkpoint/step-00000003"
    files = {"manifest.json", "rank-00000.safetensors", "rank-00001.safetensors"}
    assert {file.name for file in path.iterdir()} == files
    manifest = json.loads(json.loads((path / "manifest.json").read_text())["manifest"])
    assert set(manifest["files"]) == files - {"manifest.json"}
    alone(tmp_path, "load")
    on_ranks(4, "load:plain", "load:fsdp")


def test_of_one_process_in_two(tmp_path, on_ranks):
    import checkpoint_on_ranks

    state = checkpoint_on_ranks.make_state("plain")
    checkpoint_on_ranks.take_steps(state, 3)
    checkpoint_on_ranks.checkpoints(tmp_path).save(state)
    torch.save(checkpoint_on_ranks.values(state), tmp_path / "expected.pt")
    alone(tmp_path, "load")
    on_ranks(2, "load:plain", "load:fsdp")


def test_of_four_processes_in_two(on_ranks):
    on_ranks(4, "save:fsdp")
    on_ranks(2, "load:fsdp", "load:plain")


def test_one_rank_without_room_stops_all(tmp_path, on_ranks):
    on_ranks(2, "fail_on_one")
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-00000002"]
    words = [(tmp_path / f"words-{rank}").read_text() for rank in (0, 1)]
    assert words[0] == words[1]
    assert "checkpoint of step 3 cannot be written (File too large)" in words[0]


def test_all_ranks_know_of_damage(tmp_path, on_ranks):
    on_ranks(2, "save:plain")
    checkpoints = Checkpoints(tmp_path / "checkpoint", identity="abc")
    (checkpoints.folder / "step-00000003" / "rank-00001.safetensors").unlink()
    on_ranks(2, "damaged")
