"""Mixing a long sequence stretch by stretch, so that what happens between two linear layers stays in a CPU's caches.

A stretch takes over from the one before it what it left behind (its last inputs, its state). Nothing else of it is
kept: in the backward pass, from the last stretch to the first, each is computed again. Gradients of the inputs are
written to where they belong, without the pieces and copies that autograd would make of slices.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from patchscale.models.reading_order import Stretch

Left = tuple[Tensor, ...]
Parameters = Mapping[str, Tensor]
MixStretch = Callable[[Parameters, Tensor, Left | None, bool], tuple[Tensor, Left]]
"""(parameters, inputs [B, l, C], what the stretch before left or None, is this the last?)
-> (outputs [B, l, E], what this stretch leaves). Must not depend on autocast: it runs without."""


def mix_by_stretches(
    mix: MixStretch,
    parameters: Parameters,
    order: Sequence[Stretch],
    tokens: Tensor,
    mean: Tensor | None,
    left: Left | None = None,
) -> tuple[Tensor, Left]:
    """Mix `tokens` [B, L, C], read in `order`; outputs [B, L, E] in raster order, that of the mean dropped.

    `left` is what came before the first stretch left; second result is what the last one leaves. Gradients go to
    tokens, mean, parameters and `left`, once; second derivatives are not available.
    """
    values = (*parameters.values(), *(left or ()))
    mixed, *left_at_end = _MixByStretches.apply(mix, tuple(parameters), order, tokens, mean, *values)
    return mixed, tuple(left_at_end)


class _MixByStretches(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mix: MixStretch,
        names: Sequence[str],
        order: Sequence[Stretch],
        tokens: Tensor,
        mean: Tensor | None,
        *values_and_left: Tensor,
    ) -> tuple[Tensor, ...]:
        values, left = values_and_left[: len(names)], values_and_left[len(names) :]
        parameters = dict(zip(names, values, strict=True))
        mixed, all_left = None, []
        for stretch in order:
            all_left.append(left)
            part, left = mix(parameters, stretch.read(tokens, mean), left or None, stretch is order[-1])
            if mixed is None:
                mixed = part.new_empty(*tokens.shape[:2], part.shape[2])
                mixed[:, -1:] = 0  # in a piece of an image nobody writes it, unless the class token is read here
            stretch.write(part, mixed, None)
        assert mixed is not None
        ctx.mix, ctx.names, ctx.order, ctx.widths = mix, names, order, [len(left) for left in all_left]
        ctx.save_for_backward(tokens, mean, *values, *(tensor for left in all_left for tensor in left))
        return mixed, *left

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dmixed: Tensor, *dleft: Tensor) -> tuple[Tensor | None, ...]:
        tokens, mean, *rest = ctx.saved_tensors
        values, kept = rest[: len(ctx.names)], iter(rest[len(ctx.names) :])
        all_left = [[next(kept) for _ in range(width)] for width in ctx.widths]
        parameters = {
            name: value.detach().requires_grad_(needed)
            for name, value, needed in zip(ctx.names, values, ctx.needs_input_grad[5 : 5 + len(values)], strict=True)
        }
        trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
        dtokens = torch.empty_like(tokens)
        dtokens[:, -1:] = 0  # as in the forward pass
        dmean = None if mean is None else torch.zeros_like(mean)
        dtrained = [torch.zeros_like(parameter) for parameter in trained]
        no_mean = dmixed.new_zeros(len(dmixed), 1, dmixed.shape[2])  # its output is dropped, and has no gradient

        for stretch, left_before in zip(reversed(ctx.order), reversed(all_left), strict=True):
            inputs = stretch.read(tokens, mean).detach().requires_grad_()
            before = [tensor.detach().requires_grad_() for tensor in left_before]
            with torch.enable_grad():
                part, left = ctx.mix(parameters, inputs, tuple(before) or None, stretch is ctx.order[-1])
            gradients = [stretch.read(dmixed, no_mean), *dleft]
            found = torch.autograd.grad([part, *left], [inputs, *before, *trained], gradients)
            stretch.write(found[0], dtokens, dmean)
            dleft = found[1 : 1 + len(before)]
            for total, here in zip(dtrained, found[1 + len(before) :], strict=True):
                total += here
        totals = iter(dtrained)
        dvalues = [next(totals) if parameter.requires_grad else None for parameter in parameters.values()]
        return None, None, None, dtokens, dmean, *dvalues, *dleft
