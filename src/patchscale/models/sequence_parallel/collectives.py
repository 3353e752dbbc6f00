"""Differentiable exchanges between the ranks of a group; the backward pass of each is its exact adjoint.

So if every rank calls backward() on a loss of its own, each tensor gets the gradient of the SUM of these losses.
Backward passes communicate too: every rank must run every exchange, in the same order, and `tie` what it received
and does not use, or the others would wait for ever.

torch.distributed.nn.functional has such functions too, but on gloo those that pass through its all_to_all take ranks of
a subgroup for those of the whole job (torch 2.11 and 2.15), and meshes of two dimensions are made of subgroups.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def sum_over_ranks(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of what each rank gives; same shape on all."""
    return _Sum.apply(x, group)


def gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """What each rank gives, [ranks, ...]; same shape on all."""
    return _Gather.apply(x, group)


def exchange(x: Tensor, rows_out: Sequence[int], rows_in: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Rows of x [sum(rows_out), ...] to each rank in turn; what each sent here, [sum(rows_in), ...]."""
    return _Exchange.apply(x, list(rows_out), list(rows_in), group)


def tie(x: Tensor, *unused: Tensor) -> Tensor:
    """x, with `unused` as inputs whose gradient is zero: their backward passes run, though nothing depends on them."""
    return _Tie.apply(x, *unused)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _summed(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dsum: Tensor) -> tuple[Tensor, None]:
        return _summed(dsum, ctx.group), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        gathered = x.new_empty(dist.get_world_size(group), *x.shape)
        dist.all_gather(list(gathered.unbind(0)), x.contiguous(), group=group)
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dgathered: Tensor) -> tuple[Tensor, None]:
        return _summed(dgathered, ctx.group)[dist.get_rank(ctx.group)], None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows_out: list[int], rows_in: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.rows_out, ctx.rows_in, ctx.group = rows_out, rows_in, group
        return _exchanged(x, rows_out, rows_in, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dreceived: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchanged(dreceived, ctx.rows_in, ctx.rows_out, ctx.group), None, None, None


class _Tie(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *unused: Tensor) -> Tensor:
        ctx.save_for_backward(*unused)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, ...]:
        return dx, *(torch.zeros_like(tensor) for tensor in ctx.saved_tensors)


def _summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _exchanged(x: Tensor, rows_out: list[int], rows_in: list[int], group: dist.ProcessGroup) -> Tensor:
    received = x.new_empty(sum(rows_in), *x.shape[1:])
    dist.all_to_all_single(received, x.contiguous(), rows_in, rows_out, group=group)
    return received
