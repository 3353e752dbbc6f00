"""How ranks train one model together: DDP (every rank holds all of it) or FSDP2 (every rank holds a share).

Gradients are summed, not averaged, since each rank's loss is weighted by its part of the batch. Names of parameters
stay as they are. Under FSDP2 parameters, gradients, moving average and optimizer state are DTensors.
"""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from patchscale.training.distributed import Ranks


def train_together(
    task: nn.Module, average: nn.Module | None, ranks: Ranks, device: torch.device, *, parallel: str
) -> nn.Module:
    """Bring a task and its moving average to the device, in place; returns what training steps call.

    All ranks have initialised both alike.
    """
    if ranks.mesh is not None and parallel == "fsdp":
        # On the device block by block, so that the whole model never has to fit there.
        for model in (task, average):
            if model is not None:
                _shard(model, ranks)
        return task
    for model in (task, average):
        if model is not None:
            model.to(device)
    if ranks.mesh is None:
        return task
    # Looking for unused parameters also keeps the buckets as they are: by default they are formed anew after the first
    # step, so that a resumed run would add gradients in another order than an undisturbed one.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # its successor is too new
        together = DistributedDataParallel(
            task,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=True,
        )
    together.register_comm_hook(None, _sum_gradients)
    return together


def synchronised(model: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """Around the forward and backward pass of one of several micro-batches: DDP adds up over ranks in the last one.

    FSDP2 does so in every one, and so keeps no whole gradients.
    """
    return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together, a scalar that all ranks have."""
    return whole(get_total_norm(_gradients(parameters)))


def scale_gradients(parameters: Sequence[nn.Parameter], factor: float) -> None:
    """Multiply all gradients by `factor`."""
    torch._foreach_mul_(_gradients(parameters), factor)


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which every rank may have a share; collective if it is a share."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict in whole tensors, those of DTensors on the CPU; collective."""
    state = model.state_dict()
    return {name: whole(value).cpu() if isinstance(value, DTensor) else value for name, value in state.items()}


@torch.no_grad()
def fill(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a model, sharded or not, the values of a whole state dict that all ranks have."""
    for name, value in model.state_dict().items():
        new = state[name].to(value.device)
        value.copy_(
            distribute_tensor(new, value.device_mesh, value.placements, src_data_rank=None)
            if isinstance(value, DTensor)
            else new
        )


def _shard(model: nn.Module, ranks: Ranks) -> None:
    blocks = getattr(model.backbone, "blocks", None) or getattr(model.backbone, "layers", ())
    for module in [*blocks, model]:  # type: ignore[misc]
        fully_shard(module, mesh=ranks.everyone)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def _sum_gradients(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])
