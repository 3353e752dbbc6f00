"""Activations of a model without a formula: its blocks are run on fake tensors, and their storages are counted.

Nothing is allocated. A pass over the whole model finds the arguments of every block; then the costliest is run forward
and backward by itself, with one image and with two, so that what grows with images is told from what does not.
Attention is fused where the CPU's is, which takes no bias that is learned. Imported on use: needs torch and timm.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from patchscale.costs.activations import Activations, Precision
from patchscale.costs.counted import _build_on_meta
from patchscale.shapes import image_height_width

TRACED_IMAGES = (16, 32)
"""Enough for activations to outweigh gradients of weights, so that the largest moment is that of large batches."""


class StorageTracker(TorchDispatchMode):
    """Bytes of the storages that operations make and that still live, now and at the most.

    Storages of `known` tensors are not counted.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}
        self._known = known  # kept alive, so that no other storage takes their place

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and look at what it returns."""
        out = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key, size).atexit = False

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


@dataclass(frozen=True)
class BlockTrace:
    """Bytes of one block."""

    stream: int
    kept: int
    """After its forward pass, with its input and without its output."""
    forward: int
    """At most in a forward pass without gradients, beside its input."""
    beyond_kept: int
    """At most in its backward pass beside that; gradients of weights as well."""


def fake_copy(model: nn.Module, device: str) -> nn.Module:
    """The model with fake parameters and buffers on `device`; call within a `FakeTensorMode`."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(
                    torch.empty(parameter.shape, dtype=parameter.dtype, device=device), parameter.requires_grad
                )
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    return model


def traced_activations(
    model: str, *, patch_size: int, img_size: int | tuple[int, int], images: int, precision: Precision
) -> Activations:
    """Of a pass with `images`; raises `UserError` if torch or timm is missing, or timm has no such model."""
    sides = image_height_width(img_size)
    depth, pair = _traces(model, patch_size, sides, precision)

    fewer, more = TRACED_IMAGES

    def at(read: Callable[[BlockTrace], int]) -> int:
        per_image = (read(pair[1]) - read(pair[0])) // (more - fewer)
        return read(pair[0]) + (images - fewer) * per_image

    stream, kept = at(lambda trace: trace.stream), at(lambda trace: trace.kept)
    image_copies = 2 * 3 * sides[0] * sides[1] * images if precision == "bf16" else 0
    return Activations(
        depth=depth,
        stream=stream,
        block=kept,
        block_forward=2 * stream + at(lambda trace: trace.forward),  # as a ViT's: see `costs/activations.py`
        # What does not grow with images is gradients of weights, which are counted elsewhere.
        block_backward=kept + images * (pair[1].beyond_kept - pair[0].beyond_kept) // (more - fewer),
        ends=(2 if precision == "fp32" else 1) * stream + image_copies,
        held=0,
    )


@cache
def _traces(
    model: str, patch_size: int, sides: tuple[int, int], precision: Precision
) -> tuple[int, tuple[BlockTrace, BlockTrace]]:
    """(number of blocks, the costliest one's traces with `TRACED_IMAGES`)."""
    built = _build_on_meta(model, patch_size=patch_size, img_size=sides).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        built = fake_copy(built, "cpu")
        blocks = list(built.blocks)  # type: ignore[arg-type]
        of_fewer, of_more = (_arguments(built, blocks, images, sides, precision) for images in TRACED_IMAGES)
        traces = [
            tuple(_trace(block, *calls[i], precision) for calls in (of_fewer, of_more))
            for i, block in _distinct(blocks)
        ]
    costliest = max(traces, key=lambda pair: pair[1].kept)
    return len(blocks), costliest  # type: ignore[return-value]


def _distinct(blocks: list[nn.Module]) -> list[tuple[int, nn.Module]]:
    """The first and the last block: one of them is as costly as any."""
    return [(i, blocks[i]) for i in sorted({0, len(blocks) - 1})]


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _arguments(
    model: nn.Module, blocks: list[nn.Module], images: int, sides: tuple[int, int], precision: Precision
) -> list[Arguments]:
    """What every block is called with."""
    found: list[Arguments] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args, kwargs: found.append((args, kwargs)), with_kwargs=True)
        for block in blocks
    ]
    with _autocast(precision):
        model.forward_features(torch.empty(images, 3, *sides))  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    return found


def _trace(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], precision: Precision) -> BlockTrace:
    args, kwargs = tree_map_only(Tensor, lambda t: t.detach().requires_grad_(t.requires_grad), (args, kwargs))
    known = [*block.parameters(), *block.buffers()]
    known += [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
    stream = args[0].untyped_storage().nbytes()
    parameters = sum(parameter.numel() for parameter in block.parameters())
    copies = 2 * parameters if precision == "bf16" else 0
    tracker = StorageTracker(known)
    with tracker, torch.no_grad(), _autocast(precision):
        block(*args, **kwargs)
    forward = tracker.peak - copies
    tracker = StorageTracker(known)
    with tracker:
        with _autocast(precision):
            out = block(*args, **kwargs)
        out = out[0] if isinstance(out, tuple) else out
        result = out.untyped_storage().nbytes()
        kept = tracker.live - result - copies
        tracker.peak = tracker.live
        out.backward(torch.empty_like(out))
    block.zero_grad()
    beyond_kept = tracker.peak - copies - kept - result
    return BlockTrace(stream=stream, kept=stream + kept, forward=forward, beyond_kept=beyond_kept)


def _autocast(precision: Precision) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
