import json
import pickle

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from patchscale.errors import UserError
from patchscale.training.checkpoint import (
    Totals,
    TrainingState,
    load_checkpoint,
    load_weights,
    remove_leftovers,
    save_checkpoint,
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


def test_a_restored_state_goes_on_bit_for_bit(tmp_path):
    path = tmp_path / "checkpoint" / "last.pt"
    undisturbed = make_state(steps=7)
    stopped = make_state(steps=3)
    save_checkpoint(path, stopped, "abc")
    resumed = make_state(seed=99)
    assert load_checkpoint(path, resumed, "abc")
    take_steps(resumed, 4)
    assert all(torch.equal(a, b) for a, b in zip(tensors(resumed), tensors(undisturbed), strict=True))
    assert resumed.totals == undisturbed.totals


def test_no_checkpoint_is_not_an_error(tmp_path):
    assert not load_checkpoint(tmp_path / "last.pt", make_state(), "abc")


def damaged(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def emptied(path):
    path.write_bytes(b"")


def other_format(path):
    torch.save({"model": {}}, path)


def unsafe(path):
    path.write_bytes(pickle.dumps({"format": print}, protocol=2))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (damaged, "damaged checkpoint"),
        (emptied, "damaged checkpoint"),
        (unsafe, "damaged checkpoint"),
        (other_format, "not a checkpoint of this version"),
    ],
)
def test_a_damaged_or_foreign_file_is_named_with_the_remedy(tmp_path, spoil, words):
    path = tmp_path / "last.pt"
    save_checkpoint(path, make_state(steps=1), "abc")
    spoil(path)
    with pytest.raises(UserError, match=words) as caught:
        load_checkpoint(path, make_state(), "abc")
    assert str(path) in str(caught.value)
    assert "move it away" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, make_state(), "abc")
    with pytest.raises(UserError, match="belongs to run abc, this is def"):
        load_checkpoint(path, make_state(), "def")
    with pytest.raises(UserError, match="does not fit this run's model"):
        load_checkpoint(path, make_state(width=5), "abc")


def test_final_weights_round_trip_with_their_metadata(tmp_path):
    from safetensors import safe_open

    path = tmp_path / "model.safetensors"
    saved, loaded = make_state(seed=1), make_state(seed=2)
    save_weights(path, saved.task, {"weights": "ema"})
    load_weights(path, loaded.task)
    assert all(torch.equal(a, b) for a, b in zip(saved.task.parameters(), loaded.task.parameters(), strict=True))
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["patchscale"]) == {"weights": "ema"}


def test_damaged_or_unfitting_weights_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="no final weights"):
        load_weights(path, make_state().task)
    save_weights(path, make_state().task, {})
    with pytest.raises(UserError, match=r"model\.safetensors: damaged, or the weights of another model"):
        load_weights(path, make_state(width=5).task)
    damaged(path)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load_weights(path, make_state().task)


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    for name in ("checkpoint/.last.pt.12.34.tmp", "checkpoint/last.pt", ".status.json.12.34.tmp", "status.json"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "missing")
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["last.pt", "status.json"]
