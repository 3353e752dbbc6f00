"""What each process of a group does in `test_checkpoint_ranks.py`; a module of its own, as new processes import it."""

import resource
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from patchscale.errors import RunFailed, UserError
from patchscale.training.checkpoint import Checkpoints, Totals, TrainingState


def on_ranks(rank: int, world: int, folder: str, jobs: list[str]) -> None:
    """Do each of `jobs`, "name", "name:argument", in a gloo group of `world` processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    try:
        for job in jobs:
            name, _, argument = job.partition(":")
            globals()[name](Path(folder), argument)
    finally:
        dist.destroy_process_group()


def make_state(parallel: str, seed: int = 0) -> TrainingState:
    """`parallel` is "plain" (one process; DDP looks the same) or "fsdp". Sizes are odd, so shards are uneven."""
    torch.manual_seed(seed)
    task = nn.Sequential(nn.Linear(3, 7), nn.GELU(), nn.Linear(7, 5, bias=False), nn.Linear(5, 1))
    ema = ModelEmaV3(task, decay=0.9, use_warmup=True)
    if parallel == "fsdp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for model in (task, ema.module):
            for layer in model:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
    return TrainingState(
        task=task, optimizer=torch.optim.AdamW(task.parameters(), lr=0.1), ema=ema, totals=Totals(window_loss=0.1)
    )


def take_steps(state: TrainingState, steps: int) -> None:
    """Every rank has the same batch, so that gradients do not depend on their number."""
    for _ in range(steps):
        torch.manual_seed(100 + state.totals.step)
        state.optimizer.zero_grad()
        state.task(torch.randn(5, 3)).square().mean().backward()
        state.optimizer.step()
        state.totals.add_step(1.0, 0.5, is_final=False)
        state.ema.update(state.task, step=state.totals.step)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def values(state: TrainingState) -> dict[str, torch.Tensor]:
    """All tensors of a state, whole."""
    named = {f"task.{name}": tensor for name, tensor in state.task.state_dict().items()}
    named |= {f"ema.{name}": tensor for name, tensor in state.ema.module.state_dict().items()}
    for name, parameter in state.task.named_parameters():
        named |= {f"optimizer.{name}.{key}": value for key, value in state.optimizer.state[parameter].items()}
    return {name: whole(tensor).detach().clone() for name, tensor in named.items()}


def checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(folder / "checkpoint", identity="abc")


def save(folder: Path, parallel: str) -> None:
    state = make_state(parallel)
    take_steps(state, 3)
    checkpoints(folder).save(state, loss=0.25)
    expected = values(state)  # gathered by all
    if dist.get_rank() == 0:
        torch.save(expected, folder / "expected.pt")


def load(folder: Path, parallel: str) -> None:
    state = make_state(parallel, seed=9)
    take_steps(state, 1)  # a state that has its own optimizer state, as after a rollback
    assert checkpoints(folder).load(state)
    compare(folder, state)
    fresh = make_state(parallel, seed=8)
    assert checkpoints(folder).load(fresh)
    compare(folder, fresh)
    take_steps(fresh, 1)


def compare(folder: Path, state: TrainingState) -> None:
    expected, found = torch.load(folder / "expected.pt"), values(state)
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
    assert state.totals == Totals(step=3, train_time_s=1.5, window_loss=3.1, window_steps=3, window_time_s=1.5), (
        state.totals
    )


def fail_on_one(folder: Path, argument: str) -> None:
    """The disk is full for one rank alone: all of them hear of it, in the same words."""
    state = make_state("fsdp")
    take_steps(state, 2)
    checkpoints(folder).save(state)
    take_steps(state, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    with pytest.raises(RunFailed) as caught:
        checkpoints(folder).save(state)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.kind == "storage"
    (folder / f"words-{dist.get_rank()}").write_text(str(caught.value))
    state = make_state("fsdp", seed=9)
    assert checkpoints(folder).load(state)
    assert state.totals.step == 2


def damaged(folder: Path, argument: str) -> None:
    """All ranks agree that there is nothing to go on from."""
    with pytest.raises(UserError, match="damaged checkpoint"):
        checkpoints(folder).load(make_state("plain"))
