import json

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from patchscale.errors import UserError
from patchscale.training.checkpoint import (
    Checkpoints,
    Totals,
    TrainingState,
    remove_leftovers,
    save_weights,
)


def make_state(seed=0, width=4, steps=0):
    torch.manual_seed(seed)
    task = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, 2))
    optimizer = torch.optim.AdamW(task.parameters(), lr=0.1)
    state = TrainingState(
        task=task, optimizer=optimizer, ema=ModelEmaV3(task, decay=0.9, use_warmup=True), totals=Totals()
    )
    take_steps(state, steps)
    return state


def take_steps(state, steps):
    for _ in range(steps):
        torch.manual_seed(100 + state.totals.step)
        loss = state.task(torch.randn(5, 3)).square().mean()
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        state.totals.add_step(loss.item(), 0.5, is_final=False)
        state.ema.update(state.task, step=state.totals.step)


def tensors(state):
    return [*state.task.state_dict().values(), *state.ema.module.state_dict().values()]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoint", identity="abc")


def test_a_restored_state_goes_on_bit_for_bit(checkpoints):
    undisturbed = make_state(steps=7)
    stopped = make_state(steps=3)
    stopped.totals.validation = {"loss": 0.1 + 0.2, "per_class": [1 / 3, None]}
    undisturbed.totals.validation = dict(stopped.totals.validation)
    checkpoints.save(stopped)
    resumed = make_state(seed=99)
    assert checkpoints.load(resumed)
    assert resumed.optimizer.state_dict()["param_groups"] == stopped.optimizer.state_dict()["param_groups"]
    take_steps(resumed, 4)
    assert equal(resumed, undisturbed)
    assert resumed.totals == undisturbed.totals


def test_a_state_that_went_on_goes_back_bit_for_bit(checkpoints):
    state = make_state(steps=3)
    checkpoints.save(state)
    take_steps(state, 5)
    assert checkpoints.load(state)
    assert state.totals.step == 3
    take_steps(state, 2)
    assert equal(state, make_state(steps=5))


def test_before_the_first_step_there_is_no_optimizer_state_to_save(checkpoints):
    checkpoints.save(make_state(seed=5))
    state = make_state(seed=6)
    assert checkpoints.load(state)
    take_steps(state, 2)
    assert equal(state, make_state(seed=5, steps=2))


def test_no_checkpoint_is_not_an_error(checkpoints):
    assert not checkpoints.load(make_state())
    checkpoints.clear()


def test_the_newest_are_kept_and_the_best(tmp_path):
    folder = tmp_path / "checkpoint"
    checkpoints = Checkpoints(folder, identity="abc", keep_last=2, keep_best=True)
    state = make_state()
    for loss in (0.9, 0.3, None, 0.5, 0.3, None):
        take_steps(state, 1)
        checkpoints.save(state, loss=loss)
    assert names(folder) == ["step-00000002", "step-00000005", "step-00000006"]
    checkpoints.clear()
    assert names(folder) == ["step-00000002"]
    assert checkpoints.load(state)
    assert state.totals.step == 2
    Checkpoints(folder, identity="abc").clear()
    assert names(folder) == []


def cut_off(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def one_bit_flipped(path):
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(bytes(content))


def emptied(path):
    path.write_bytes(b"")


def removed(path):
    path.unlink()


DAMAGE = [
    (cut_off, "manifest.json", r"manifest\.json cannot be read"),
    (emptied, "manifest.json", r"manifest\.json cannot be read"),
    (one_bit_flipped, "manifest.json", r"manifest\.json"),
    (removed, "manifest.json", r"manifest\.json is missing"),
    (cut_off, "rank-00000.safetensors", r"rank-00000\.safetensors is cut off"),
    (emptied, "rank-00000.safetensors", r"rank-00000\.safetensors is cut off"),
    (one_bit_flipped, "rank-00000.safetensors", r"rank-00000\.safetensors has changed"),
    (removed, "rank-00000.safetensors", r"rank-00000\.safetensors is missing"),
]


@pytest.mark.parametrize(("spoil", "name", "words"), DAMAGE)
def test_damage_is_named_with_the_remedy(checkpoints, spoil, name, words):
    checkpoints.save(make_state(steps=1))
    path = checkpoints.folder / "step-00000001"
    spoil(path / name)
    with pytest.raises(UserError, match=rf"damaged checkpoint \({words}.*and no older one is whole") as caught:
        checkpoints.load(make_state())
    assert str(path) in str(caught.value)
    assert f"move {checkpoints.folder} away" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("spoil", "name", "words"), DAMAGE)
def test_a_damaged_one_is_passed_over_for_an_older_one(tmp_path, spoil, name, words):
    lines = []
    checkpoints = Checkpoints(tmp_path / "checkpoint", identity="abc", keep_last=2, say=lines.append)
    state = make_state()
    for _ in range(3):
        take_steps(state, 1)
        checkpoints.save(state)
    spoil(checkpoints.folder / "step-00000003" / name)
    resumed = make_state(seed=9)
    assert checkpoints.load(resumed)
    assert resumed.totals.step == 2
    (line,) = lines
    assert "step-00000003: damaged checkpoint (" in line
    assert line.endswith("going on from step-00000002")

    # The next ones take the place of the damaged one.
    take_steps(resumed, 1)
    checkpoints.save(resumed)
    assert names(checkpoints.folder) == ["step-00000002", "step-00000003"]
    assert checkpoints.load(make_state())
    assert len(lines) == 1
    assert equal(resumed, state)


def test_steps_beyond_the_damage_are_not_taken_for_newer_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoint", identity="abc", keep_last=2)
    state = make_state()
    for steps in (1, 4):
        take_steps(state, steps)
        checkpoints.save(state)
    removed(checkpoints.folder / "step-00000005" / "manifest.json")
    assert checkpoints.load(state)
    take_steps(state, 1)
    checkpoints.save(state)
    assert names(checkpoints.folder) == ["step-00000001", "step-00000002"]


def test_a_checkpoint_of_another_version_is_named(checkpoints, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("patchscale.training.checkpoint.FORMAT", "patchscale-checkpoint-9")
        checkpoints.save(make_state())
    with pytest.raises(UserError, match="not a checkpoint of this version"):
        checkpoints.load(make_state())


def test_a_checkpoint_of_the_old_kind_is_named_until_there_is_a_new_one(checkpoints):
    checkpoints.folder.mkdir()
    (checkpoints.folder / "last.pt").write_bytes(b"anything")
    with pytest.raises(UserError, match=r"last.pt: a checkpoint of a version before this one, not read; move .* away"):
        checkpoints.load(make_state())
    checkpoints.save(make_state(steps=1))
    assert checkpoints.load(make_state())


def test_the_checkpoint_of_another_run_is_refused(checkpoints):
    checkpoints.save(make_state())
    with pytest.raises(UserError, match="belongs to run abc, this is def"):
        Checkpoints(checkpoints.folder, identity="def").load(make_state())
    with pytest.raises(UserError, match=r"does not fit this run's model \(ema\.0\.bias has shape \(4,\) in it"):
        checkpoints.load(make_state(width=5))


def test_nothing_in_a_checkpoint_is_a_pickle(checkpoints):
    checkpoints.save(make_state(steps=1))
    folder = checkpoints.folder / "step-00000001"
    assert names(folder) == ["manifest.json", "rank-00000.safetensors"]
    json.loads((folder / "manifest.json").read_text())
    content = (folder / "rank-00000.safetensors").read_bytes()
    json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def test_final_weights_round_trip_with_their_metadata(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file

    path = tmp_path / "model.safetensors"
    saved, loaded = make_state(seed=1), make_state(seed=2)
    save_weights(path, saved.task, {"weights": "ema"})
    loaded.task.load_state_dict(load_file(path))
    assert all(torch.equal(a, b) for a, b in zip(saved.task.parameters(), loaded.task.parameters(), strict=True))
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["patchscale"]) == {"weights": "ema"}


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    for folder in ("checkpoint/.step-00000002.tmp", "checkpoint/.step-00000001.old.tmp", "checkpoint/step-00000001"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "rank-00000.safetensors").touch()
    for name in (".status.json.12.34.tmp", "status.json"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "missing")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "rank-00000.safetensors",
        "status.json",
    ]
    assert names(tmp_path / "checkpoint") == ["step-00000001"]
