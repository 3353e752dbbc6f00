"""Mixing a long sequence stretch by stretch, so that what happens between two linear layers stays in a CPU's caches.

A stretch takes over from the one before it what it left behind (its last inputs, its state). Nothing else of it is
kept: in the backward pass, from the last stretch to the first, each is computed again. Gradients of the inputs are
written to where they belong, without the pieces and copies that autograd would make of slices.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from patchscale.models.reading_order import Stretch

Left = tuple[Tensor, ...]
MixStretch = Callable[[Tensor, Left | None, bool], tuple[Tensor, Left]]
"""(inputs [B, l, C], what the stretch before left or None, is_last) -> (outputs [B, l, E], what this one leaves)."""


def mix_by_stretches(
    mix: MixStretch, order: Sequence[Stretch], tokens: Tensor, mean: Tensor | None, parameters: Sequence[Tensor]
) -> Tensor:
    """Mix `tokens` [B, L, C], read in `order`; outputs [B, L, E] in raster order, that of the mean dropped.

    `parameters` are those that `mix` uses: gradients go to them. Second derivatives are not available.
    """
    return _MixByStretches.apply(mix, order, tokens, mean, *parameters)


class _MixByStretches(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mix: MixStretch, order: Sequence[Stretch], tokens: Tensor, mean: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        mixed, left, all_left = None, None, []
        for stretch in order:
            part, left = mix(stretch.read(tokens, mean), left, stretch is order[-1])
            if mixed is None:
                mixed = part.new_empty(*tokens.shape[:2], part.shape[2])
            stretch.write(part, mixed, None)
            all_left.append(left)
        assert mixed is not None
        # The parameters themselves, for `mix` uses them and not what a checkpoint around this would save of them.
        ctx.mix, ctx.order, ctx.parameters = mix, order, parameters
        ctx.save_for_backward(tokens, mean, *(tensor for left in all_left for tensor in left))
        device = tokens.device.type
        ctx.autocast = {
            "device_type": device,
            "enabled": torch.is_autocast_enabled(device),
            "dtype": torch.get_autocast_dtype(device),
        }
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dmixed: Tensor) -> tuple[Tensor | None, ...]:
        tokens, mean, *kept = ctx.saved_tensors
        width = len(kept) // max(1, len(ctx.order) - 1)
        trained = [parameter for parameter in ctx.parameters if parameter.requires_grad]
        dtokens = torch.empty_like(tokens)
        dmean = None if mean is None else torch.empty_like(mean)
        dtrained = [torch.zeros_like(parameter) for parameter in trained]
        no_mean = dmixed.new_zeros(len(dmixed), 1, dmixed.shape[2])  # its output is dropped, and has no gradient

        dleft: tuple[Tensor, ...] = ()
        for i in reversed(range(len(ctx.order))):
            stretch = ctx.order[i]
            inputs = stretch.read(tokens, mean).detach().requires_grad_()
            before = [tensor.detach().requires_grad_() for tensor in kept[(i - 1) * width : i * width]] if i else []
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                part, left = ctx.mix(inputs, tuple(before) or None, stretch is ctx.order[-1])
            gradients = [stretch.read(dmixed, no_mean), *dleft]
            found = torch.autograd.grad([part, *left], [inputs, *before, *trained], gradients)
            stretch.write(found[0], dtokens, dmean)
            dleft = found[1 : 1 + len(before)]
            for total, here in zip(dtrained, found[1 + len(before) :], strict=True):
                total += here
        dparameters = iter(dtrained)
        return (
            None,
            None,
            dtokens,
            dmean,
            *(next(dparameters) if parameter.requires_grad else None for parameter in ctx.parameters),
        )
